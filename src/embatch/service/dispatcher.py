"""claim → pool → commit, over and over.

Two slots work at the same time, so that one shard is read and committed while the other computes. A slot
that finds nothing waits for `wake`. Everything durable is the store's: killing this at any point loses the
running shards' work and nothing else.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

from embatch.backoff import Backoff, Pauses, meanwhile
from embatch.engine.protocol import EndpointTrouble, OthersTaken, computed_by
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
from embatch.events import BatchModelChanged, PayloadLost, SlotPaused, WorkPaused, emit
from embatch.pool.protocol import BULK
from embatch.shard import COMPUTED_BY, Done, failed_results, refused, said_of
from embatch.store.records import ResultShard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    import pyarrow as pa

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.records import Claim
    from embatch.store.store import Store

SLOTS: Final = 2
_REST_SECONDS: Final = 5.0
_AGAIN: Final = Backoff(first=1.0, limit=30.0, attempts=1_000_000)
_LOST: Final = RequestError(
    Code.DATA_LOSS, Reason.DATA_LOSS, "the stored request does not match its checksum: submit it again"
)
_CHANGED: Final = RequestError(
    Code.FAILED_PRECONDITION,
    Reason.MODEL_CHANGED,
    "the model changed after the batch had begun (its files, its options or the engine), and vectors of two "
    "models cannot be compared: submit this request again, or the whole batch for vectors of one model",
)


@dataclass(slots=True, eq=False)
class _Running:
    """A claimed shard that a slot works on."""

    claim: Claim
    stop: threading.Event = field(default_factory=threading.Event)
    done: Done = field(default_factory=lambda: Done(0))
    """What is embedded and not yet durable."""


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
        self._wake = threading.Condition()
        self._news = 0
        self._closing = threading.Event()
        # Held from the claim until it stands in `_running`: who ends a batch in the store and then looks here
        # under this lock meets every shard that was claimed before.
        self._claiming = threading.Lock()
        self._lock = threading.Lock()
        self._running: list[_Running] = []
        # On the monotonic clock: models that no engine comes up for, and batches that the disk troubles.
        self._models, self._batches = Pauses(), Pauses()
        self._threads = [
            threading.Thread(target=self._slot, name=f"slot-{number}", daemon=True) for number in range(SLOTS)
        ]

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
            self._batches.end(batch_id)
            for running in self._running:
                if running.claim.batch_id == batch_id:
                    running.stop.set()

    def at_work(self) -> tuple[str, ...]:
        """Return the ids of the batches that are worked now."""
        with self._lock:
            return tuple(running.claim.batch_id for running in self._running)

    def uncommitted(self, batch_id: str) -> Done:
        """Return what of a batch's claimed shards is embedded and not yet durable."""
        with self._lock:
            found = (running.done for running in self._running if running.claim.batch_id == batch_id)
            return sum(found, Done(0))

    def troubles(self) -> Mapping[str, str]:
        """Return by model or batch why its shards wait although they could be worked; empty: all is well."""
        # Engines begin to load with the service: one that did not is known before a shard waits for it.
        broken = {one.model: one.message for one in self._pool.status() if one.lane == BULK and one.message}
        with self._lock:
            batches = {f"batches/{name}": message for name, message in self._batches.messages().items()}
            return broken | self._models.messages() | batches

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
        failures = 0
        while not self._closing.is_set():
            with self._wake:
                seen, now = self._news, time.monotonic()
            try:
                running = self._take(now)
                if running is None:
                    self._rest(seen, now)
                    continue
                worked = self._work(running)
            except Exception as error:  # noqa: BLE001  (a slot that dies would leave a service that works nothing)
                worked = False
                message = error.message if isinstance(error, EmbatchError) else None
                if not failures or message is None:  # trouble is told of once, a bug whenever it shows
                    emit(SlotPaused(message=message, exception=error))
            failures = 0 if worked else failures + 1
            if failures:
                self._closing.wait(_patience(failures))

    def _take(self, now: float) -> _Running | None:
        with self._claiming:
            if self._closing.is_set():
                return None
            with self._lock:
                paused, resting = self._models.waiting(now), self._batches.waiting(now)
                at_work = [running.claim for running in self._running]
            claim = self._store.claim(self._now(), without=paused, resting=resting)
            with self._lock:
                if claim is None:  # nothing of the others waits: what troubled them troubles nobody any more
                    self._models.keep(paused | {one.model for one in at_work})
                    self._batches.keep(resting | {one.batch_id for one in at_work})
                    return None
                running = _Running(claim)
                self._running.append(running)
                return running

    def _rest(self, seen: int, now: float) -> None:
        with self._lock:
            end = min(self._models.next_end(now), self._batches.next_end(now), _REST_SECONDS)
        with self._wake:
            if self._news == seen and not self._closing.is_set():
                self._wake.wait(end)

    def _work(self, running: _Running) -> bool:
        """Work a shard; return whether it went as it should, which the disk may have prevented."""
        claim = running.claim
        try:
            results = self._embed(running)
            if results is None:  # stopped
                self._store.release(claim, excused=True)
            else:
                self._commit(claim, results, running.done.cpu_seconds)
                with self._lock:
                    self._batches.end(claim.batch_id)
        except EngineTrouble as error:
            if isinstance(error, OthersTaken):  # one text of one batch would hold up everybody's
                self._pause(self._batches, claim.batch_id, error.message, error.retry_after)
            else:
                self._pause(self._models, claim.model, error.message, error.retry_after)
            self._release(claim, excused=isinstance(error, EndpointTrouble))
        except Unavailable as error:
            self._pause(self._batches, claim.batch_id, error.message)
            self._release(claim, excused=True)  # no engine has anything against it
            return False
        except Exception:
            self._release(claim)
            raise
        finally:
            with self._lock:
                self._running.remove(running)
        return True

    def _release(self, claim: Claim, *, excused: bool = False) -> None:
        """Give a shard back after something went wrong. If that goes wrong too, the next start does it."""
        with suppress(EmbatchError):
            self._store.release(claim, excused=excused)

    def _pause(self, pauses: Pauses, name: str, message: str, asked: float | None = None) -> None:
        """Claim nothing of a model or a batch for a while, and say why once: no text is to blame.

        `asked` is how long whoever failed asked to be left alone.
        """
        wait = _patience if asked is None else partial(meanwhile, asked)
        with self._lock:
            before = pauses.messages()
            pauses.begin(name, message, time.monotonic(), wait)
        if name not in before and message not in before.values():
            emit(WorkPaused(of=name, error=message))

    def _embed(self, running: _Running) -> pa.RecordBatch | None:
        claim = running.claim
        suspect = claim.attempt - claim.excused > self._settings.suspect_attempts
        model = self._served(claim)
        try:
            requests = self._blobs.read(claim.payload.path, claim.payload.digest)
        except DataLoss:
            emit(PayloadLost(batch=claim.batch_id, shard=claim.number))
            native = model.dimensions or self._pool.describe(model).dimensions
            return failed_results(0, claim.payload.request_count, native, _LOST)
        if claim.computed_by is not None:
            about = self._pool.describe(model)
            if computed_by(about) != claim.computed_by:
                emit(BatchModelChanged(batch=claim.batch_id, shard=claim.number))
                return refused(requests, about.dimensions, _CHANGED)

        def progress(done: Done) -> None:
            with self._lock:
                running.done += done

        results = self._pool.embed(model, requests, on_progress=progress, stop=running.stop, suspect=suspect)
        with self._lock:
            self._models.end(claim.model)
        return results

    def _served(self, claim: Claim) -> ServedModel:
        try:
            return self._catalog.resolve(claim.model)
        except NotFound as error:
            # The service was started without this batch's model: it can be worked again once it is back.
            raise EngineTrouble(f"a batch waits for {claim.model}: {error.message}") from None

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
            said_of(results, COMPUTED_BY) if failed < results.num_rows else None,
        )
        try:
            done = self._store.commit(claim, shard, self._now())
        except Unavailable as error:
            # Unless its fate is unknown, nothing was committed, and nobody will ask for this file.
            if error.reason != "STORAGE_ERROR":
                self._blobs.remove(path)
            raise
        if not done.accepted:  # a newer attempt owns the shard, the batch was stopped, or began otherwise
            self._blobs.remove(path)
        if done.foreign:  # the next attempt finds the model changed
            self._release(claim, excused=True)
        if done.state is None:  # it was deleted, and the file made its folder anew
            self._blobs.remove_batch(claim.batch_id)


def _patience(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, jittered: others fail at the same time."""
    return _AGAIN.delay(failures, random.uniform(0.5, 1.0)) or 0.0
