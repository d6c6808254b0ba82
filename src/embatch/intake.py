"""What comes in: requests judged one by one, cut into shards, and stored before anybody is told.

A fault of content fails its request alone; it travels in the payload shard and comes back as that request's
error. Judging is pure: a row in, the same row or a faulty one out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from embatch.batch import TaskType
from embatch.errors import Code, InvalidArgument, Reason, RequestError
from embatch.shard import ShardCutter
from embatch.store.records import MIXED, PayloadShard
from embatch.wire import columns, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from embatch.engine.models import ServedModel
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs
    from embatch.store.records import FileRecord

KEY_BYTES: Final = 512
METADATA_BYTES: Final = 64 << 10
_TASK_TYPES: Final = frozenset(TaskType)


@dataclass(slots=True)
class Judge:
    """Judges the requests of one batch, in order. Use one for each batch."""

    model: ServedModel
    settings: Settings
    prompted: set[str] = field(default_factory=set)
    """Task types seen."""
    _keys: set[int] = field(default_factory=set)

    def judge(self, row: RequestRow) -> RequestRow:
        """Return the row, or the row as faulty: without its text, with what is wrong and what to do."""
        if row.fault is not None:
            return replace(row, text=None)
        fault = self._key(row.key) or _text(row.text, self.settings.text_bytes) or self._options(row)
        return row if fault is None else replace(row, text=None, fault=fault)

    def _key(self, key: str | None) -> RequestError | None:
        if key is None:
            return None
        if not _encodable(key) or len(key.encode()) > KEY_BYTES or "\0" in key:
            return _fault(Reason.BAD_FIELD, f"a key is at most {KEY_BYTES} bytes of UTF-8 without NUL")
        # 64 bits of Python's keyed hash: a million keys collide with a chance of one in thirty million.
        mark = hash(key)
        if mark in self._keys:
            return _fault(Reason.DUPLICATE_KEY, "this key stands earlier in the batch: the first one counts")
        self._keys.add(mark)
        return None

    def _options(self, row: RequestRow) -> RequestError | None:
        if row.task_type is not None:
            if row.task_type not in _TASK_TYPES:
                return _fault(Reason.BAD_FIELD, f"taskType is one of {', '.join(TaskType)}")
            self.prompted.add(row.task_type)
        if row.title is not None:
            if not _encodable(row.title):
                return _fault(Reason.BAD_UNICODE, "the title holds a lone surrogate: send whole characters")
            if row.task_type != TaskType.RETRIEVAL_DOCUMENT:
                return _fault(
                    Reason.BAD_FIELD, "title counts with taskType RETRIEVAL_DOCUMENT only: leave it out"
                )
        if row.metadata is not None and len(row.metadata) > METADATA_BYTES:
            return _fault(Reason.BAD_FIELD, f"metadata is at most {METADATA_BYTES} characters of JSON")
        native = self.model.dimensions
        if row.dimensions is not None and not 1 <= row.dimensions <= (native or row.dimensions):
            return _fault(
                Reason.BAD_FIELD, f"outputDimensionality is from 1 to {native or 'the native number'}"
            )
        return None


def refuse(row: RequestRow, at: int, model: ServedModel) -> None:
    """Refuse an inline submit for a field that is wrong by its form, before anything is stored.

    Raises:
        InvalidArgument: naming the field.
    """
    place = f"batch.inputConfig.requests.requests[{at}].request"
    if row.task_type is not None and row.task_type not in _TASK_TYPES:
        raise InvalidArgument(f"taskType is one of {', '.join(TaskType)}", field=f"{place}.taskType")
    check_dimensions(row.dimensions, model, f"{place}.outputDimensionality")


def check_dimensions(dimensions: int | None, model: ServedModel, place: str) -> None:
    """Refuse dimensions that the model cannot give. Raises InvalidArgument naming the field."""
    native = model.dimensions
    if dimensions is None or 1 <= dimensions <= (native or dimensions):
        return
    most = f"{native}, what {model.name} has" if native else "the model's native number"
    raise InvalidArgument(f"outputDimensionality is from 1 to {most}", field=place, reason="OUT_OF_RANGE")


def notes(model: ServedModel, prompted: Iterable[str], dimensioned: bool) -> tuple[str, ...]:  # noqa: FBT001
    """Return what a user should know about how requests with these options are worked."""
    missing = sorted(set(prompted) - set(model.prompts))
    said = [f"{model.name} has no prompt for {word}: its texts are embedded as they are" for word in missing]
    if dimensioned:
        said.append(
            f"{model.name} is not known to be trained for fewer dimensions: compare before you rely on them"
        )
    return tuple(said)


def _text(text: str | None, limit: int) -> RequestError | None:
    if text is None:
        return _fault(Reason.NOT_TEXT, "there is no text")
    if not text.strip():
        return _fault(Reason.EMPTY_TEXT, "the text is empty: leave it out or fill it")
    if not _encodable(text):
        return _fault(Reason.BAD_UNICODE, "the text holds a lone surrogate: send whole characters")
    if len(text) > limit or len(text.encode()) > limit:
        return _fault(Reason.TEXT_TOO_LARGE, f"the text is over {limit} bytes of UTF-8: split it")
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(reason: Reason, message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, reason, message)


@dataclass(slots=True)
class ShardWriter:
    """Writes the payload shards of one batch, durable one by one."""

    blobs: Blobs
    batch_id: str
    judge: Judge
    dimensioned: bool = False
    _cutter: ShardCutter = field(default_factory=ShardCutter)
    _number: int = 0

    def shards(self, rows: Iterable[RequestRow]) -> Iterator[PayloadShard]:
        """Judge and cut the rows; yield each shard once it is durable."""
        for row in rows:
            if (full := self._cutter.add(self.judge.judge(row))) is not None:
                yield self._write(full)
        if (rest := self._cutter.rest()) is not None:
            yield self._write(rest)

    def _write(self, shard: pa.RecordBatch) -> PayloadShard:
        number, self._number = self._number, self._number + 1
        path = f"batches/{self.batch_id}/payload-{number:05}.arrow"
        asked = {dimensions or 0 for dimensions in shard.column("dimensions").to_pylist()}
        self.dimensioned |= asked != {0}
        return PayloadShard(
            number,
            path,
            self.blobs.write(path, shard),
            shard.num_rows,
            shard.nbytes,
            asked.pop() if len(asked) == 1 else MIXED,
        )


def read_file(
    path: Path, record: FileRecord, settings: Settings, same_model: Callable[[str], bool]
) -> Iterator[RequestRow]:
    """Yield the requests of an input file, in constant memory; a bad line is a faulty row.

    Raises:
        InvalidArgument: the file as a whole cannot be read, or holds too many requests.
    """
    with path.open("rb") as file:
        arrow = record.mime_type == columns.MEDIA_TYPE
        rows = columns.read_rows(file) if arrow else lines.read_rows(file, settings.line_bytes, same_model)
        for count, row in enumerate(rows, 1):
            if count > settings.file_requests:
                raise InvalidArgument(
                    f"a file holds at most {settings.file_requests} requests: split it",
                    field="batch.inputConfig.fileName",
                    reason="TOO_MANY_REQUESTS_IN_BATCH",
                )
            yield row
