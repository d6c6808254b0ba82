"""claim → pool → commit, over and over, and the sweeps that end what has grown too old.

Two slots work at the same time, so that one shard is read and committed while the other computes. A slot
that finds nothing waits for `wake`. Everything durable is the store's: killing this at any point loses the
running shards' work and nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from embatch.errors import Code, DataLoss, EmbatchError, EngineTrouble, NotFound, Reason
from embatch.shard import results_schema
from embatch.store.records import ResultShard

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from embatch.engine.models import Catalog
    from embatch.pool import Pool
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.records import Claim
    from embatch.store.store import Store

SLOTS: Final = 2
SWEEP_SECONDS: Final = 5.0
_PRUNED_AT_ONCE: Final = 100
_log = logging.getLogger("embatch.dispatcher")


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
        self._lock = threading.Lock()
        self._wake = threading.Condition()
        self._news = 0
        self._closing = threading.Event()
        self._running: dict[tuple[str, int, int], threading.Event] = {}
        self._live: Counter[str] = Counter()
        self.trouble: str | None = None
        """Why no shard is being worked although some may wait; `None` when all is well."""
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
        """Stop the running shards of a batch between micro-batches."""
        with self._lock:
            for (owner, _, _), stop in self._running.items():
                if owner == batch_id:
                    stop.set()

    def uncommitted(self, batch_id: str) -> int:
        """Return how many requests of claimed shards are embedded and not yet durable."""
        with self._lock:
            return self._live[batch_id]

    def close(self, grace: float) -> None:
        """Stop claiming, let running micro-batches finish, release the rest; wait at most `grace` seconds."""
        self._closing.set()
        self.wake()
        with self._lock:
            for stop in self._running.values():
                stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=grace)

    # one slot

    def _slot(self) -> None:
        while not self._closing.is_set():
            with self._wake:
                seen = self._news
            try:
                claim = self._store.claim(self._now())
            except EmbatchError:
                claim = None
            if claim is None:
                with self._wake:
                    if self._news == seen:
                        self._wake.wait(timeout=SWEEP_SECONDS)
                continue
            try:
                self._work(claim)
            except EngineTrouble as error:
                self._store.release(claim)
                self._pause(error)
            except EmbatchError as error:
                _log.error(
                    "shard given back", extra={"fields": {"batch": claim.batch_id, "error": error.message}}
                )
                self._release(claim)
                self._closing.wait(1.0)

    def _pause(self, error: EngineTrouble) -> None:
        """Stop claiming for a while: nobody's texts are to blame when no engine comes up."""
        if self.trouble is None:
            _log.error("engine trouble", extra={"fields": {"error": error.message}})
        self.trouble = error.message
        self._closing.wait(min(30.0, error.retry_after or 1.0))

    def _release(self, claim: Claim) -> None:
        try:
            self._store.release(claim)
        except EmbatchError:
            _log.error("a claim could not be released", extra={"fields": {"batch": claim.batch_id}})

    def _work(self, claim: Claim) -> None:
        stop = threading.Event()
        mark = (claim.batch_id, claim.number, claim.attempt)
        with self._lock:
            self._running[mark] = stop
            if self._closing.is_set():
                stop.set()
        done = [0]

        def progress(count: int) -> None:
            with self._lock:
                done[0] += count
                self._live[claim.batch_id] += count

        try:
            results = self._embed(claim, progress, stop)
            if results is None:
                self._store.release(claim)
            else:
                self._commit(claim, results)
        finally:
            with self._lock:
                del self._running[mark]
                self._live[claim.batch_id] -= done[0]
                if not self._live[claim.batch_id]:
                    del self._live[claim.batch_id]

    def _embed(
        self, claim: Claim, progress: Callable[[int], None], stop: threading.Event
    ) -> pa.RecordBatch | None:
        try:
            model = self._catalog.resolve(claim.model)
        except NotFound as error:
            # The service was started without this batch's model: it can be worked again once it is back.
            raise EngineTrouble(
                f"a batch waits for {claim.model}, which is not served: {error.message}"
            ) from None
        try:
            requests = self._blobs.read(claim.payload.path, claim.payload.digest)
        except DataLoss as loss:
            _log.error("payload lost", extra={"fields": {"batch": claim.batch_id, "shard": claim.number}})
            return _lost(claim, loss, self._pool.describe(model).dimensions)
        suspect = claim.attempt > self._settings.suspect_attempts
        results = self._pool.embed(model, requests, on_progress=progress, stop=stop, suspect=suspect)
        self.trouble = None
        return results

    def _commit(self, claim: Claim, results: pa.RecordBatch) -> None:
        path = f"batches/{claim.batch_id}/result-{claim.number:05}-{claim.attempt}.arrow"
        failed = results.num_rows - results.column("error_code").null_count
        kind: Any = results.schema.field("embedding").type
        shard = ResultShard(
            path,
            self._blobs.write(path, results),
            results.num_rows - failed,
            failed,
            sum(int(count or 0) for count in results.column("tokens").to_pylist()),
            kind.list_size,
        )
        if not self._store.commit(claim, shard, self._now()).accepted:
            # A newer attempt owns the shard, or the batch was stopped: nobody will ask for this file.
            self._blobs.remove(path)

    # sweeps

    def _sweeper(self) -> None:
        while not self._closing.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except EmbatchError as error:
                _log.error("sweep failed", extra={"fields": {"error": error.message}})

    def sweep(self) -> None:
        """Expire what is due and prune what is past its retention. Repeating is safe."""
        now = self._now()
        for batch_id in self._store.expire(now):
            self.cancel(batch_id)
        before = now - timedelta(seconds=self._settings.retention)
        for batch_id in self._store.prunable(before, _PRUNED_AT_ONCE):
            self._store.delete(batch_id)
            self._blobs.remove_batch(batch_id)


def _lost(claim: Claim, loss: DataLoss, dimensions: int) -> pa.RecordBatch:
    """Return results in which every request of a damaged payload fails."""
    count = claim.payload.request_count
    nothing = pa.nulls(count, pa.list_(pa.float32(), dimensions))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(range(count), pa.int64()),
            nothing,
            pa.array([0] * count, pa.int32()),
            pa.array([False] * count),
            pa.array([Code.DATA_LOSS.number] * count, pa.int32()),
            pa.array([Reason.DATA_LOSS.value] * count),
            pa.array([loss.message] * count),
        ],
        schema=results_schema(dimensions),
    )
