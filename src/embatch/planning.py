"""Input files cut into shards, in a thread, after their batches were acknowledged.

A file is read as a stream, in constant memory, always from its beginning. It gives the same shards however
often planning was cut short: those that are stored already stay as they are, for they may have been worked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from embatch.backoff import Backoff
from embatch.errors import (
    DataLoss,
    EmbatchError,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from embatch.intake import Judge, ShardWriter, known
from embatch.wire import columns, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from typing import BinaryIO

    from embatch.cached import Cached
    from embatch.engine.models import Catalog
    from embatch.pool import Pool
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord, PayloadShard
    from embatch.store.store import Store

_T = TypeVar("_T")
_READ_BYTES: Final = 1 << 20
_PLANNED_AT_ONCE: Final = 16
"""Shards after which those that are written may be worked, and a batch that was stopped is noticed."""
_AGAIN: Final = Backoff(first=1.0, limit=30.0, attempts=1_000_000)
_log = logging.getLogger("embatch.planning")


@dataclass(slots=True)
class Planner:
    """Plans the input files of accepted batches, the oldest first, in a thread of its own."""

    store: Store
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    now: Callable[[], datetime]
    cached: Cached
    planned: Callable[[], None] = lambda: None
    """Called when there are new shards, and after each file."""
    _closing: threading.Event = field(default_factory=threading.Event)
    _news: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)

    def start(self) -> None:
        """Begin, with what was accepted before."""
        self._thread.start()

    def wake(self) -> None:
        """Tell that a batch from a file was accepted."""
        self._news.set()

    def close(self, grace: float) -> None:
        """Stop after the shard being written; wait at most `grace` seconds. The next start plans anew."""
        self._closing.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(grace)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._news.clear()
            left = 0
            try:
                for record in self.store.unplanned():
                    left += not self._try(record)
            except EmbatchError as error:
                _log.warning("planning waits", extra={"fields": {"error": error.message}})
                left = 1
            failures = failures + 1 if left else 0
            self._news.wait(_AGAIN.delay(failures, 1.0) if left else None)

    def _try(self, record: BatchRecord) -> bool:
        """Plan one file; `False`: not yet, for a reason that is not the file's."""
        try:
            self._plan(record)
        except EmbatchError as error:
            fields = {"batch": record.id, "error": error.message}
            _log.warning("a file cannot be planned yet", extra={"fields": fields})
            return False
        except Exception:  # noqa: BLE001  (the next file must be planned all the same)
            _log.exception("a file could not be planned", extra={"fields": {"batch": record.id}})
            self._fail(record, "the input file could not be planned, which is a bug of embatch")
        self.planned()
        return not self._closing.is_set()

    def _plan(self, record: BatchRecord) -> None:
        # A model that is not served now, or cannot be loaded, may be there later: nothing is decided.
        model = known(self.catalog.resolve(record.model), self.pool)
        cached = None if record.run is None else self.cached
        earlier = tuple(shard.payload for shard in self.store.shards(record.id))
        if not earlier:
            self.blobs.remove_batch(record.id)
        writer = ShardWriter(self.blobs, record.id, Judge(model, self.settings), cached, earlier)
        try:
            left = self._cut(record, writer)
        except (InvalidArgument, DataLoss) as error:
            self._fail(record, error.message)
        except (PermissionDenied, FileNotFoundError):
            self._fail(record, "the input file is gone: upload it again")
        except OSError:
            self._fail(record, "the input file cannot be read: upload it again")
        else:
            if left is not None:
                self.store.note(record.id, writer.notes())
                self._add(record, left, complete=True)

    def _cut(self, record: BatchRecord, writer: ShardWriter) -> list[PayloadShard] | None:
        """Write the shards of a file and let them be worked, group by group; return the last group.

        `None`: the batch, or this service, was stopped.
        """
        group: list[PayloadShard] = []
        seen = 0
        for seen, shard in enumerate(self._written(record, writer), 1):
            if self._closing.is_set():
                return None
            if seen <= len(writer.earlier):
                continue
            group.append(shard)
            if len(group) == _PLANNED_AT_ONCE:
                if not self._add(record, group, complete=False):
                    return None
                self.planned()
                group = []
        if not seen:
            raise InvalidArgument("the input file holds no request", reason="EMPTY_BATCH")
        return group

    def _add(self, record: BatchRecord, shards: list[PayloadShard], *, complete: bool) -> bool:
        """Let shards be worked. `False`: the batch was stopped; nothing is left of these."""
        if self.store.plan(record.id, shards, complete=complete, now=self.now()):
            return True
        for shard in shards:
            self.blobs.remove(shard.path)
        self._tidy(record)
        return False

    def _tidy(self, record: BatchRecord) -> None:
        """Remove the folder of a batch that ended, unless there are shards, whose results can be read."""
        if not self.store.shards(record.id):
            self.blobs.remove_batch(record.id)

    def _written(self, record: BatchRecord, writer: ShardWriter) -> Iterator[PayloadShard]:
        """Yield the shards of an input file once they are durable, in constant memory."""
        file = self.store.file(record.input_file or "")
        with self.blobs.path(file.path).open("rb") as stored:
            checked = _Checked(stored)
            content = io.BufferedReader(checked, _READ_BYTES)
            if file.mime_type == columns.MEDIA_TYPE:
                yield from writer.shards_of(self._limited(columns.read_batches(content), len))
            else:  # a bad line is a faulty row
                model = writer.judge.model
                rows = lines.read_rows(content, self.settings.line_bytes, self.catalog.naming(model))
                yield from writer.shards(self._limited(rows, lambda _: 1))
            checked.check(file.sha256)

    def _limited(self, given: Iterable[_T], size: Callable[[_T], int]) -> Iterator[_T]:
        """Yield what a file holds; raise InvalidArgument when it holds too many requests."""
        limit, count = self.settings.file_requests, 0
        for one in given:
            count += size(one)
            if count > limit:
                raise InvalidArgument(
                    f"a file holds at most {limit} requests: split it", reason="TOO_MANY_REQUESTS_IN_BATCH"
                )
            yield one

    def _fail(self, record: BatchRecord, message: str) -> None:
        # It may have been stopped meanwhile, which is what its user wanted.
        with contextlib.suppress(IllegalTransition, NotFound):
            self.store.fail(record.id, message, self.now())
        self._tidy(record)


class _Checked(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # any writable buffer
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._hash.update(content)
        return len(content)

    def check(self, digest: str) -> None:
        """Read the rest and compare. Raises DataLoss."""
        while content := self._file.read(_READ_BYTES):
            self._hash.update(content)
        if self._hash.hexdigest() != digest:
            raise DataLoss("the input file is not what was uploaded: upload it again")
