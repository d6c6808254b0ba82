"""Input files cut into shards, in threads, after their batches were acknowledged.

A file is read as a stream, in constant memory, always from its beginning. It gives the same shards however
often planning was cut short: those that are stored already stay as they are, for they may have been worked.
One file is read at a time; several take turns by time, so that no long one holds up the others.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from embatch.backoff import Pauses, patience
from embatch.errors import DataLoss, EmbatchError, IllegalTransition, InvalidArgument, NotFound
from embatch.events import FileNotPlanned, FileWaits, emit
from embatch.service.input_file import READ_BYTES, CheckedFile, FileTurns, decoded
from embatch.service.intake import RequestValidator, ShardWriter, known
from embatch.store.faults import unreadable
from embatch.wire.arrow import MEDIA_TYPE
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.gemini import read_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.service.caching import Cached
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord, PayloadShard
    from embatch.store.store import Store

_T = TypeVar("_T")
_PLANNED_AT_ONCE: Final = 16
"""Shards after which those that are written may be worked."""
FILES: Final = 4
"""Files that take turns: each holds a record batch or a shard in memory."""
_LINES_A_REQUEST: Final = 4
"""Lines that a file may have for each request that it may: blank ones are skipped, but each takes time."""
_STORE: Final = "store"
"""Name of what waits when nobody can tell which files there are. No batch has it: theirs are longer."""


class _StoppedError(Exception):
    """The batch, or this service, was stopped: nothing more is read of its file."""


@dataclass(slots=True)
class Planner:
    """Plans the input files of accepted batches, the oldest first, in threads of its own."""

    store: Store
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    now: Callable[[], datetime]
    cached: Cached
    planned: Callable[[], None] = lambda: None
    """Called when there are new shards, and after each file."""
    patience: Callable[[int], float] = patience
    """Seconds until a file that could not be planned so often in a row is tried again."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set once it plans no more, because the service ends."""
    _going: threading.Event = field(default_factory=threading.Event)
    """Not set while it is paused."""
    _news: threading.Event = field(default_factory=threading.Event)
    _turns: FileTurns = field(default_factory=FileTurns)
    _free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(FILES))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pauses: Pauses = field(default_factory=Pauses)
    """On the monotonic clock: files that cannot be planned yet, for reasons that are not theirs."""
    _begun: dict[str, threading.Thread] = field(default_factory=dict)
    """Who works which batch."""
    _ended: set[str] = field(default_factory=set)
    """Batches that were worked since the store was asked last: what it said of them is old."""
    _stopped: set[str] = field(default_factory=set)
    """Batches among those begun that were stopped."""
    _models: dict[str, bool] = field(default_factory=dict)
    """Whether a model is known, or a file waits for that: then no other one need wait with it."""
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._going.set()
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)

    def start(self) -> None:
        """Begin, with what was accepted before."""
        self._thread.start()

    def wake(self) -> None:
        """Tell that a batch from a file was accepted."""
        self._news.set()

    def stop(self, batch_id: str) -> None:
        """Read no more of a batch's file, soon after: the batch has ended in the store. Repeating is safe."""
        with self._lock:
            if batch_id in self._begun:
                self._stopped.add(batch_id)

    def pause(self) -> None:
        """Read on in no file until `resume`; each stays where it is. Repeating is safe."""
        self._going.clear()

    def resume(self) -> None:
        """Go on. Repeating is safe."""
        self._going.set()

    def close(self, grace: float) -> None:
        """Stop after the piece being read; wait at most `grace` seconds. The next start plans anew."""
        self.closing.set()
        self._going.set()
        self._news.set()
        self._free.release()
        deadline = time.monotonic() + grace
        with self._lock:
            threads = [self._thread, *self._begun.values()]
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self.closing.is_set():
            self._news.clear()
            now = time.monotonic()
            with self._lock:
                waiting = self._pauses.waiting(now)
            if _STORE not in waiting:
                self._begin_all(waiting)
            with self._lock:
                end = now + self._pauses.next_end(now)
            self._news.wait(None if math.isinf(end) else max(0.0, end - time.monotonic()))
            self._going.wait()

    def _begin_all(self, waiting: set[str]) -> None:
        """Begin what there is, but for batches that wait to be tried again."""
        with self._lock:
            self._ended.clear()
        try:
            records = self.store.unplanned()
        except EmbatchError as error:
            self._wait(_STORE, error.message)
            return
        with self._lock:
            self._pauses.keep({record.id for record in records})
        for record in records:
            if record.id in waiting or not self._may_begin(record):
                continue
            self._free.acquire()
            if self.closing.is_set():
                return
            if not self._begin(record):
                self._free.release()

    def _may_begin(self, record: BatchRecord) -> bool:
        """Return whether a file neither is nor was begun, nor waits for what another one waits for."""
        settled = record.id in self._begun or record.id in self._ended
        return not settled and self._models.get(record.model, True)

    def _begin(self, record: BatchRecord) -> bool:
        """Read one file in a thread of its own. `False`: since it was chosen it has become another's."""
        thread = threading.Thread(target=self._try, args=(record,), name=f"planner {record.id}", daemon=True)
        with self._lock:
            if not self._may_begin(record):
                return False
            self._begun[record.id] = thread
            self._models.setdefault(record.model, False)
        thread.start()
        return True

    def _try(self, record: BatchRecord) -> None:
        try:
            try:
                self._plan(record)
            except EmbatchError:
                raise
            except Exception as error:  # noqa: BLE001  (the next file must be planned all the same)
                emit(FileNotPlanned(batch=record.id, exception=error))
                self._fail(record, "the input file could not be planned, which is a bug of embatch")
        except EmbatchError as error:
            self._wait(record.id, error.message)
        else:
            self._over(record)

    def _over(self, record: BatchRecord) -> None:
        """Forget a file that is planned, or will never be."""
        with self._lock:
            self._pauses.end(record.id)
            self._ended.add(record.id)
        self._leave(record.id)
        self.planned()

    def _leave(self, batch_id: str) -> None:
        """Let the next file begin in place of this one."""
        with self._lock:
            self._begun.pop(batch_id, None)
            self._stopped.discard(batch_id)
        self._free.release()

    def _known(self, record: BatchRecord) -> ServedModel:
        """Return the batch's model. Loading it may take minutes, in which files of other models go on."""
        # A model that is not served now, or cannot be loaded, may be there later: nothing is decided.
        try:
            model = known(self.catalog.resolve(record.model), self.pool)
        except BaseException:
            with self._lock:
                self._models.pop(record.model, None)
            raise
        with self._lock:
            first = not self._models.get(record.model)
            self._models[record.model] = True
        if first:
            self._news.set()  # others of the model were left out
        return model

    def _wait(self, name: str, message: str) -> None:
        """Try a batch again later, told of once: nobody's file is at fault."""
        with self._lock:
            first = self._pauses.begin(name, message, time.monotonic(), self.patience)
        if name != _STORE:
            self._leave(name)
            self._news.set()
        if first:
            emit(FileWaits(batch=name, error=message))

    def _plan(self, record: BatchRecord) -> None:
        model = self._known(record)
        self._turns.begin()
        try:
            self._read(record, model)
        finally:
            self._turns.end()

    def _read(self, record: BatchRecord, model: ServedModel) -> None:
        if not self._wanted(record):
            self._tidy(record)
            return
        cached = None if record.run is None else self.cached
        earlier = tuple(shard.payload for shard in self.store.shards(record.id))
        if not earlier:
            self.blobs.remove_batch(record.id)
        writer = ShardWriter(self.blobs, record.id, RequestValidator(model, self.settings), cached, earlier)
        try:
            left = self._cut(record, writer)
        except _StoppedError:
            if not self.closing.is_set():
                self._tidy(record)
        except (InvalidArgument, DataLoss) as error:
            self._fail(record, error.message)
        except NotFound:
            self._fail(record, "the input file is gone: upload it again")
        except OSError as error:  # too many open files, say: the next try may be able to read it
            raise unreadable(error) from error
        else:
            if left is not None:
                self.store.note(record.id, writer.notes())
                self._add(record, left, complete=True)

    def _wanted(self, record: BatchRecord) -> bool:
        """Return whether a batch is still to be planned: it may have ended before it was begun."""
        with contextlib.suppress(NotFound):
            return not self.store.get(record.id).state.final
        return False

    def _cut(self, record: BatchRecord, writer: ShardWriter) -> list[PayloadShard] | None:
        """Write the shards of a file and let them be worked, group by group; return the last group.

        `None`: the batch was stopped. Raises _StoppedError where that was heard while the file was read.
        """
        group: list[PayloadShard] = []
        seen = 0
        try:
            for seen, shard in enumerate(self._written(record, writer), 1):
                if seen <= len(writer.earlier):
                    continue
                group.append(shard)
                if len(group) == _PLANNED_AT_ONCE:
                    if not self._add(record, group, complete=False):
                        return None
                    self.planned()
                    group = []
        except _StoppedError:
            for shard in group:
                self.blobs.remove(shard.path)
            raise
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
        limits, arrow = self.settings, file.mime_type == MEDIA_TYPE
        lines_at_most = math.inf if arrow else _LINES_A_REQUEST * limits.file_requests

        def look() -> None:
            self._going.wait()
            if self.closing.is_set() or record.id in self._stopped:
                raise _StoppedError
            self._turns.look()

        with self.blobs.open(file.path) as stored:
            checked = CheckedFile(stored, look, lines_at_most)
            content = io.BufferedReader(checked, READ_BYTES)
            if arrow:
                given = decoded(read_batches(content, limits.text_bytes), limits.file_bytes)
                yield from writer.shards_of(self._limited(given, len, look))
            else:  # a bad line is a faulty row
                model = writer.judge.model
                rows = read_jsonl.read_rows(content, limits.line_bytes, self.catalog.naming(model))
                yield from writer.shards(self._limited(rows, lambda _: 1, look))
            checked.check(file.sha256)

    def _limited(
        self, given: Iterable[_T], size: Callable[[_T], int], look: Callable[[], None]
    ) -> Iterator[_T]:
        """Yield what a file holds; raise InvalidArgument when it holds too many requests."""
        limit, count = self.settings.file_requests, 0
        for one in given:
            look()
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
