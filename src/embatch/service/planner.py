"""Input files cut into shards, in a thread, after their batches were acknowledged.

A file is read as a stream, in constant memory, always from its beginning. It gives the same shards however
often planning was cut short: those that are stored already stay as they are, for they may have been worked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from embatch.backoff import Backoff, Pauses
from embatch.errors import (
    DataLoss,
    EmbatchError,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from embatch.intake import Judge, ShardWriter, known
from embatch.store.trouble import unreadable
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
_STORE: Final = "store"
"""Name of what waits when nobody can tell which files there are. No batch has it: theirs are longer."""
_log = logging.getLogger("embatch.planner")


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
    _pauses: Pauses = field(default_factory=Pauses)
    """On the monotonic clock: files that cannot be planned yet, for reasons that are not theirs."""
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
        while not self._closing.is_set():
            self._news.clear()
            now = time.monotonic()
            waiting = self._pauses.waiting(now)
            if _STORE not in waiting:
                self._plan_all(waiting)
            end = now + self._pauses.next_end(now)
            self._news.wait(None if math.isinf(end) else max(0.0, end - time.monotonic()))

    def _plan_all(self, waiting: set[str]) -> None:
        """Plan what there is, but for batches that wait to be tried again."""
        try:
            records = self.store.unplanned()
            self._pauses.keep({record.id for record in records})
            for record in records:
                if record.id not in waiting and not self._closing.is_set():
                    self._try(record)
        except EmbatchError as error:
            self._wait(_STORE, error.message)

    def _try(self, record: BatchRecord) -> None:
        try:
            self._plan(record)
        except EmbatchError as error:
            self._wait(record.id, error.message)
            return
        except Exception:  # noqa: BLE001  (the next file must be planned all the same)
            _log.exception("a file could not be planned", extra={"fields": {"batch": record.id}})
            self._fail(record, "the input file could not be planned, which is a bug of embatch")
        self._pauses.end(record.id)
        self.planned()

    def _wait(self, name: str, message: str) -> None:
        """Try a batch again later, told of once: nobody's file is at fault."""
        if self._pauses.begin(name, message, time.monotonic(), _patience):
            fields = {"batch": name, "error": message}
            _log.warning("a file cannot be planned yet", extra={"fields": fields})

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
        except (PermissionDenied, FileNotFoundError, NotADirectoryError):
            self._fail(record, "the input file is gone: upload it again")
        except OSError as error:  # too many open files, say: the next try may be able to read it
            raise unreadable(error) from error
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
                given = columns.read_batches(content, self.settings.text_bytes)
                yield from writer.shards_of(self._limited(given, len))
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
        try:
            content = self._file.read(len(buffer))
        except OSError as error:  # to a reader of Arrow an OSError is a torn stream
            raise unreadable(error) from error
        buffer[: len(content)] = content
        self._hash.update(content)
        return len(content)

    def check(self, digest: str) -> None:
        """Read the rest and compare. Raises DataLoss."""
        while content := self._file.read(_READ_BYTES):
            self._hash.update(content)
        if self._hash.hexdigest() != digest:
            raise DataLoss("the input file is not what was uploaded: upload it again")


def _patience(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, jittered: others fail at the same time."""
    return _AGAIN.delay(failures, random.uniform(0.5, 1.0)) or 0.0
