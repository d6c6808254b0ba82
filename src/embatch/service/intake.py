"""What comes in: requests judged one by one, cut into shards, and stored before anybody is told.

A fault of content fails its request alone; it travels in the payload shard and comes back as that
request's error. Judging is pure: a row in, the same row or a faulty one out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from embatch.batch import TaskType, check_display_name
from embatch.engine.texts import DEFAULT_PROMPT
from embatch.errors import Code, InvalidArgument, Reason, RequestError
from embatch.jsontext import DEPTH, encodable, is_object
from embatch.service.cutting import ShardCutter
from embatch.shard import precomputed, rows_of
from embatch.store.cache import check_run
from embatch.store.records import MIXED, NewBatch, PayloadShard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from embatch.engine.models import ServedModel
    from embatch.pool.protocol import Pool
    from embatch.service.caching import Cached
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs

IDEMPOTENCY_KEY: Final = 512
"""Most bytes of an idempotency key."""
KEY_BYTES: Final = 512
METADATA_BYTES: Final = 64 << 10
_TASK_TYPES: Final = frozenset(TaskType)
_ECHOED: Final = ("key", "metadata", "task_type", "title")
_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch as it is asked for, without its requests."""

    model: str | None = None
    """With or without `models/`, or an alias; `None` for the default."""
    display_name: str | None = None
    priority: int = 0
    idempotency_key: str | None = None
    """The same key gives the same batch again, as long as it exists; `None` makes a new one each time."""
    body_digest: str | None = None
    """Tells a repetition from another request under the same key."""
    asked_model: str | None = None
    """The name to show for the model, with or without `models/`; `None`: the model's own."""
    run: str | None = None
    """The run that the batch belongs to: the cache is asked for its texts, and told when the run ends."""

    def check(self) -> None:
        """Refuse what is wrong by its form. Raises InvalidArgument naming the field."""
        check_display_name(self.display_name, "display_name")
        check_priority(self.priority)
        if self.run is not None:
            check_run(self.run)
        key = self.idempotency_key
        if key is not None and not (
            1 <= len(key.encode(errors="replace")) <= IDEMPOTENCY_KEY and key.isprintable()
        ):
            raise InvalidArgument(
                f"an idempotency key has 1 to {IDEMPOTENCY_KEY} printable bytes", field="idempotency_key"
            )

    def new(
        self, id_: str, model: ServedModel, now: datetime, settings: Settings, input_file: str | None = None
    ) -> NewBatch:
        """Return the batch to be accepted; `input_file` is `None` for an inline one."""
        asked = (self.asked_model or model.name).removeprefix("models/")
        return NewBatch(
            id_,
            model.name,
            self.display_name,
            self.priority,
            input_file is None,
            input_file,
            self.idempotency_key,
            self.body_digest,
            now,
            now + timedelta(seconds=settings.batch_expiry),
            run=self.run,
            asked_model=None if asked == model.name else asked,
        )


def check_priority(priority: int) -> None:
    """Refuse a priority that is no 64-bit integer. Raises InvalidArgument."""
    if priority not in _INT64:
        raise InvalidArgument("priority is a 64-bit integer", field="priority", reason="OUT_OF_RANGE")


@dataclass(slots=True)
class RequestValidator:
    """Judges the requests of one batch, in order. Use one for each batch."""

    model: ServedModel
    """With its native dimensions, if requests ask for a number of them; see `known`."""
    settings: Settings
    task_types: set[str] = field(default_factory=set)
    """Task types seen in good requests."""
    _keys: set[int] = field(default_factory=set)

    def judge(self, row: RequestRow) -> RequestRow:
        """Return the row, or the row as faulty: without its text, with what is wrong and what to do.

        A faulty row keeps its key and metadata, so that the error finds its way back, unless they are the
        fault. The first row with a key has it, though it be faulty.
        """
        row, unfit = _storable(row)
        duplicate = self._duplicate(row.key)
        fault = row.fault or unfit or duplicate or self._text(row) or self._options(row)
        if fault is not None:
            asked = row.dimensions if self._possible(row.dimensions) else None
            return replace(row, text=None, title=None, dimensions=asked, fault=fault)
        if row.task_type is not None:
            self.task_types.add(row.task_type)
        return row

    def passes(self, given: pa.RecordBatch) -> bool:
        """Return whether no request, columns as in `shard.GIVEN`, is at fault, as far as columns show.

        `False` says nothing of any one of them: judge them one by one.
        """
        known: dict[str, Any] = dict(zip(given.schema.names, given.columns, strict=True))
        said = {name for name, column in known.items() if column.null_count < given.num_rows}
        text, task_type = known["text"], known["task_type"]
        if "text" not in said or text.null_count or text.type != pa.string() or said & {"key", "metadata"}:
            return False
        sizes = pc.binary_length(text)
        if "title" in said:
            sizes = pc.add(sizes, pc.binary_length(known["title"]).fill_null(0))
            titled = task_type.filter(known["title"].is_valid())
            if pc.unique(titled).to_pylist() != [TaskType.RETRIEVAL_DOCUMENT]:
                return False
        task_types = set(pc.unique(task_type).to_pylist()) - {None}
        if (
            pc.max(sizes).as_py() > self.settings.text_bytes
            or not task_types <= _TASK_TYPES
            or not all(map(self._possible, pc.unique(known["dimensions"]).to_pylist()))
            or _any_blank(text)
        ):
            return False
        self.task_types |= task_types
        return True

    def _duplicate(self, key: str | None) -> RequestError | None:
        if key is None:
            return None
        # 128 bits stand for the key: a million keys of 512 bytes would not be bounded memory.
        mark = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest())
        if mark in self._keys:
            return _fault(Reason.DUPLICATE_KEY, "this key stands earlier in the batch: the first one counts")
        self._keys.add(mark)
        return None

    def _text(self, row: RequestRow) -> RequestError | None:
        if row.text is None:
            return _fault(Reason.NOT_TEXT, "there is no text")
        if not row.text.strip():
            return _fault(Reason.EMPTY_TEXT, "the text is empty: leave it out or fill it")
        if not encodable(row.text):
            return _fault(Reason.BAD_UNICODE, "the text holds a lone surrogate: send whole characters")
        limit, whole = self.settings.text_bytes, row.text + (row.title or "")
        if len(whole) > limit or len(whole.encode()) > limit:
            return _fault(Reason.TEXT_TOO_LARGE, f"text and title are over {limit} bytes of UTF-8: split it")
        return None

    def _options(self, row: RequestRow) -> RequestError | None:
        if row.task_type is not None and row.task_type not in _TASK_TYPES:
            return _fault(Reason.BAD_FIELD, f"task_type is one of {', '.join(TaskType)}")
        if row.title is not None and row.task_type != TaskType.RETRIEVAL_DOCUMENT:
            return _fault(
                Reason.BAD_FIELD, "title counts with task_type RETRIEVAL_DOCUMENT only: leave it out"
            )
        if not self._possible(row.dimensions):
            most = self.model.dimensions or "the native number"
            return _fault(Reason.BAD_FIELD, f"output_dimensionality is from 1 to {most}")
        return None

    def _possible(self, dimensions: int | None) -> bool:
        return dimensions is None or 1 <= dimensions <= (self.model.dimensions or (1 << 31) - 1)


def _any_blank(texts: Any) -> bool:
    # Nearly every text has a letter or digit of ASCII, which is quickly seen.
    rest = texts.filter(pc.invert(pc.match_substring_regex(texts, "[0-9A-Za-z]")))
    return not all(text.strip() for text in rest.to_pylist())


def _storable(row: RequestRow) -> tuple[RequestRow, RequestError | None]:
    """Return the row without what cannot be stored or echoed, and the fault that is."""
    if row.key is row.metadata is row.task_type is row.title is None:  # of a million rows, nearly all
        return row, None
    unfit = [name for name in _ECHOED if not encodable(getattr(row, name) or "")]
    fault = _fault(Reason.BAD_UNICODE, f"{unfit[0]} holds a lone surrogate") if unfit else None
    if row.key is not None and "key" not in unfit and (len(row.key.encode()) > KEY_BYTES or "\0" in row.key):
        unfit.append("key")
        fault = fault or _fault(
            Reason.BAD_FIELD, f"a key is at most {KEY_BYTES} bytes of UTF-8 without NUL: it is not echoed"
        )
    if row.metadata is not None and len(row.metadata) > METADATA_BYTES:
        unfit.append("metadata")
        fault = fault or _fault(
            Reason.BAD_FIELD, f"metadata is at most {METADATA_BYTES} characters of JSON: it is not echoed"
        )
    elif row.metadata is not None and not is_object(row.metadata):
        unfit.append("metadata")
        fault = fault or _fault(
            Reason.BAD_FIELD,
            f"metadata is no JSON object of whole characters in at most {DEPTH} levels: it is not echoed",
        )
    if not unfit:
        return row, None
    emptied: dict[str, Any] = dict.fromkeys(unfit)
    return replace(row, **emptied), fault


def _fault(reason: Reason, message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, reason, message)


def known(model: ServedModel, pool: Pool) -> ServedModel:
    """Return the model with its native dimensions, which for some engines only loading tells.

    Raises:
        EngineTrouble: it has to be loaded and no engine comes up.
    """
    if model.dimensions is not None:
        return model
    return replace(model, dimensions=pool.describe(model).dimensions)


def refuse(row: RequestRow, at: int, model: ServedModel) -> None:
    """Refuse an inline submit for a field that is wrong by its form, before anything is stored.

    Raises:
        InvalidArgument: naming the field.
    """
    if row.task_type is not None and row.task_type not in _TASK_TYPES:
        raise InvalidArgument(f"task_type is one of {', '.join(TaskType)}", field=f"requests[{at}].task_type")
    check_dimensions(row.dimensions, at, model)


def check_dimensions(dimensions: int | None, at: int, model: ServedModel) -> None:
    """Refuse dimensions that the model cannot give to a request. Raises InvalidArgument naming its place."""
    native = model.dimensions
    if dimensions is None or 1 <= dimensions <= (native or dimensions):
        return
    most = f"{native}, what {model.name} has" if native else "the model's native number"
    raise InvalidArgument(
        f"output_dimensionality is from 1 to {most}",
        field=f"requests[{at}].output_dimensionality",
        reason="OUT_OF_RANGE",
    )


@dataclass(slots=True)
class ShardWriter:
    """Writes the payload shards of one batch, durable one by one."""

    blobs: Blobs
    batch_id: str
    judge: RequestValidator
    cached: Cached | None = None
    """What to ask for known vectors; `None` where the batch is nobody's run."""
    earlier: Sequence[PayloadShard] = ()
    """The first shards, stored by an earlier try: they are given out again and not written."""
    cutter: ShardCutter = field(default_factory=ShardCutter)
    """Decides where a shard ends."""
    _asked: int = 0
    _shortened: bool = False
    _number: int = 0

    def shards(self, rows: Iterable[RequestRow]) -> Iterator[PayloadShard]:
        """Judge and cut the rows; yield each shard once it is durable. Raises Unavailable."""
        yield from self._cut(rows)
        yield from self._last()

    def shards_of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[PayloadShard]:
        """As `shards`, of columns as in `shard.GIVEN`: many times as fast where nothing is at fault."""
        for given in batches:
            if self.judge.passes(given):
                for full in self.cutter.add_columns(given):
                    yield self._write(full)
            else:
                yield from self._cut(rows_of(given))
        yield from self._last()

    def notes(self) -> tuple[str, ...]:
        """Return what a user should know about how the requests seen so far are worked."""
        model = self.judge.model
        said = [
            f"{model.name} has no prompt for {word}: its texts "
            + ("get its default prompt" if model.prompts.get(DEFAULT_PROMPT) else "are embedded as they are")
            for word in sorted(self.judge.task_types - set(model.prompts))
        ]
        if self._shortened:
            said.append(
                f"{model.name} is not known to be trained for fewer dimensions: "
                "compare before you rely on them"
            )
        return tuple(said)

    def _cut(self, rows: Iterable[RequestRow]) -> Iterator[PayloadShard]:
        for row in rows:
            if (full := self.cutter.add(self.judge.judge(row))) is not None:
                yield self._write(full)

    def _last(self) -> Iterator[PayloadShard]:
        if (rest := self.cutter.rest()) is not None:
            yield self._write(rest)

    def _write(self, shard: pa.RecordBatch) -> PayloadShard:
        number, self._number = self._number, self._number + 1
        path = f"batches/{self.batch_id}/payload-{number:05}.arrow"
        dimensions = self._dimensions(shard)
        if number < len(self.earlier):
            if self.earlier[number].request_count != shard.num_rows:
                raise InvalidArgument("another version began with this file: submit it again")
            return self.earlier[number]
        texts = shard.nbytes
        if self.cached is not None:
            shard = self.cached.with_precomputed(self.judge.model, shard)
        digest = self.blobs.write(path, shard)
        return PayloadShard(
            number, path, digest, shard.num_rows, texts, dimensions, int(precomputed(shard).sum())
        )

    def _dimensions(self, shard: pa.RecordBatch) -> int:
        """Return what the good requests ask for. A shard without any agrees with the one before."""
        good = shard.column("dimensions").filter(shard.column("error_code").is_null())
        asked = {dimensions or 0 for dimensions in pc.unique(good).to_pylist()}
        self._shortened |= not asked <= {0, self.judge.model.dimensions}
        if asked:
            self._asked = asked.pop() if len(asked) == 1 else MIXED
        return self._asked
