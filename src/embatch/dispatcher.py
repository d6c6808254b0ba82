"""claim → pool → commit, over and over, and the sweeps that end what has grown too old.

Two slots work at the same time, so that one shard is read and committed while the other computes. A slot
that finds nothing waits for `wake`. Everything durable is the store's: killing this at any point loses the
running shards' work and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

from embatch.backoff import Backoff
from embatch.errors import (
    Code,
    DataLoss,
    EmbatchError,
    EngineTrouble,
    NotFound,
    Reason,
    RequestError,
    Unavailable,
)
from embatch.shard import Done, failed_results
from embatch.store.records import ResultShard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    import pyarrow as pa

    from embatch.engine.models import Catalog
    from embatch.pool import Pool
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.records import Claim
    from embatch.store.store import Store

SLOTS: Final = 2
SWEEP_SECONDS: Final = 5.0
_AGAIN: Final = Backoff(first=1.0, limit=30.0, attempts=1_000_000)
_LOST: Final = RequestError(
    Code.DATA_LOSS, Reason.DATA_LOSS, "the stored request does not match its checksum: submit it again"
)
_log = logging.getLogger("embatch.dispatcher")


@dataclass(slots=True, eq=False)
class _Running:
    """A claimed shard that a slot works on."""

    claim: Claim
    stop: threading.Event = field(default_factory=threading.Event)
    done: Done = field(default_factory=lambda: Done(0))
    """What is embedded and not yet durable."""


@dataclass(frozen=True, slots=True)
class _Pause:
    """Why the shards of a model wait although slots are free. It ends with a success."""

    message: str
    failures: int
    until: float
    """On the monotonic clock: past it the model is tried again."""


class Dispatcher:
    """Works the store's shards until closed."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        catalog: Catalog,
        pool: Pool,
        settings: Settings,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._blobs, self._catalog, self._pool = store, blobs, catalog, pool
        self._settings, self._now = settings, now
        self.sweeps: list[Callable[[], object]] = [self._expire, self._prune]
        """What is done every few seconds; owners of other things that grow old add theirs."""
        self._wake = threading.Condition()
        self._news = 0
        self._closing = threading.Event()
        # Held from the claim until it stands in `_running`: who ends a batch in the store and then looks here
        # under this lock meets every shard that was claimed before.
        self._claiming = threading.Lock()
        self._lock = threading.Lock()
        self._running: list[_Running] = []
        self._pauses: dict[str, _Pause] = {}
        self._threads = [
            threading.Thread(target=self._slot, name=f"slot-{number}", daemon=True) for number in range(SLOTS)
        ]
        self._threads.append(threading.Thread(target=self._sweeper, name="sweeper", daemon=True))

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell the slots that something may wait for them."""
        with self._wake:
            self._news += 1
            self._wake.notify_all()

    def cancel(self, batch_id: str) -> None:
        """Stop the running shards of a batch, between micro-batches, after the store has ended it."""
        with self._claiming, self._lock:
            for running in self._running:
                if running.claim.batch_id == batch_id:
                    running.stop.set()

    def uncommitted(self, batch_id: str) -> Done:
        """Return what of a batch's claimed shards is embedded and not yet durable."""
        with self._lock:
            found = (running.done for running in self._running if running.claim.batch_id == batch_id)
            return sum(found, Done(0))

    def troubles(self) -> Mapping[str, str]:
        """Return by model why its shards wait although they could be worked; empty when all is well."""
        with self._lock:
            return {model: pause.message for model, pause in self._pauses.items()}

    def close(self, grace: float) -> None:
        """Claim no more, let running micro-batches finish, release the rest; wait at most `grace` seconds."""
        self._closing.set()
        self.wake()
        with self._claiming, self._lock:
            for running in self._running:
                running.stop.set()
        deadline = time.monotonic() + grace
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            late = list(self._running)
        for running in late:  # whatever these slots still do, the store refuses it from here on
            self._release(running.claim)

    def _slot(self) -> None:
        while not self._closing.is_set():
            with self._wake:
                seen = self._news
            try:
                running = self._take()
                if running is None:
                    self._rest(seen)
                else:
                    self._work(running)
            except Exception as error:  # noqa: BLE001  (a slot that dies would leave a service that works nothing)
                fields = {"message": error.message} if isinstance(error, EmbatchError) else {}
                _log.exception("a slot pauses", extra={"fields": fields})
                self._closing.wait(_AGAIN.first)

    def _take(self) -> _Running | None:
        with self._claiming:
            if self._closing.is_set():
                return None
            now = time.monotonic()
            with self._lock:
                paused = {model for model, pause in self._pauses.items() if pause.until > now}
                idle = self._pauses.keys() - paused - {running.claim.model for running in self._running}
            claim = self._store.claim(self._now(), without=paused)
            with self._lock:
                if claim is None:
                    for model in idle:  # nothing of it waits: whatever troubled it troubles nobody any more
                        del self._pauses[model]
                    return None
                running = _Running(claim)
                self._running.append(running)
                return running

    def _rest(self, seen: int) -> None:
        with self._lock:
            ends = [pause.until - time.monotonic() for pause in self._pauses.values()]
        with self._wake:
            if self._news == seen and not self._closing.is_set():
                self._wake.wait(max(0.0, min([SWEEP_SECONDS, *ends])))

    def _work(self, running: _Running) -> None:
        claim = running.claim
        try:
            results = self._embed(running)
            if results is None:
                self._store.release(claim)
            else:
                self._commit(claim, results, running.done.cpu_seconds)
        except EngineTrouble as error:
            self._pause(claim.model, error)
            self._release(claim)
        except Exception:
            self._release(claim)
            raise
        finally:
            with self._lock:
                self._running.remove(running)

    def _release(self, claim: Claim) -> None:
        """Give a shard back after something went wrong. If that goes wrong too, the next start does it."""
        with suppress(EmbatchError):
            self._store.release(claim)

    def _pause(self, model: str, error: EngineTrouble) -> None:
        """Claim nothing of a model for a while: nobody's texts are to blame when no engine comes up."""
        with self._lock:
            before = self._pauses.get(model)
            failures = 1 if before is None else before.failures + 1
            wait = _AGAIN.delay(failures, 1.0) if error.retry_after is None else error.retry_after
            self._pauses[model] = _Pause(error.message, failures, time.monotonic() + (wait or 0.0))
        if before is None:
            _log.error("engine trouble", extra={"fields": {"model": model, "error": error.message}})

    def _embed(self, running: _Running) -> pa.RecordBatch | None:
        claim = running.claim
        suspect = claim.attempt > self._settings.suspect_attempts
        try:
            model = self._catalog.resolve(claim.model)
        except NotFound as error:
            # The service was started without this batch's model: it can be worked again once it is back.
            raise EngineTrouble(f"a batch waits for {claim.model}: {error.message}") from None
        try:
            requests = self._blobs.read(claim.payload.path, claim.payload.digest)
        except DataLoss as loss:
            # Too many open files, say: another attempt may be able to read it.
            if isinstance(loss.__cause__, OSError) and not suspect:
                raise
            _log.error("payload lost", extra={"fields": {"batch": claim.batch_id, "shard": claim.number}})
            native = model.dimensions or self._pool.describe(model).dimensions
            return failed_results(0, claim.payload.request_count, native, _LOST)

        def progress(done: Done) -> None:
            with self._lock:
                running.done += done

        results = self._pool.embed(model, requests, on_progress=progress, stop=running.stop, suspect=suspect)
        with self._lock:
            self._pauses.pop(claim.model, None)
        return results

    def _commit(self, claim: Claim, results: pa.RecordBatch, cpu_seconds: float) -> None:
        path = f"batches/{claim.batch_id}/result-{claim.number:05}-{claim.attempt}.arrow"
        failed = results.num_rows - results.column("error_code").null_count
        kind: Any = results.schema.field("embedding").type
        shard = ResultShard(
            path,
            self._blobs.write(path, results),
            results.num_rows - failed,
            failed,
            int(pc.sum(results.column("tokens")).as_py() or 0),
            kind.list_size,
            round(cpu_seconds * 1e6),
        )
        try:
            done = self._store.commit(claim, shard, self._now())
        except Unavailable as error:
            # Unless its fate is unknown, nothing was committed, and nobody will ask for this file.
            if error.reason != "STORAGE_ERROR":
                self._blobs.remove(path)
            raise
        if not done.accepted:  # a newer attempt owns the shard, or the batch was stopped
            self._blobs.remove(path)
        if done.state is None:  # it was deleted, and the file made its folder anew
            self._blobs.remove_batch(claim.batch_id)

    # sweeps

    def _sweeper(self) -> None:
        while not self._closing.wait(SWEEP_SECONDS):
            self.sweep()

    def sweep(self) -> None:
        """Do all sweeps once; one that fails is logged and keeps none of the others. Repeating is safe."""
        for sweep in self.sweeps:
            try:
                sweep()
            except Exception:  # noqa: BLE001  (the next sweep may find the disk or the bug gone)
                _log.exception("a sweep failed")

    def _expire(self) -> None:
        for batch_id in self._store.expire(self._now()):
            self.cancel(batch_id)

    def _prune(self) -> None:
        before = self._now() - timedelta(seconds=self._settings.retention)
        for batch_id in self._store.prunable(before, limit=100):
            with suppress(NotFound):  # its user was quicker
                self._store.delete(batch_id)
            self._blobs.remove_batch(batch_id)
