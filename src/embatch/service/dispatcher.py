"""claim → pool → commit, over and over.

As many slots as the pool has work at the same time: one shard is read and committed while others compute, and
what comes waits for a turn in the engine. See `room` for what is claimed beside what. A slot that finds
nothing waits for `wake`. Everything durable is the store's: killing this at any point loses the running
shards' work and nothing else, and closing it leaves what is finished of them to the next attempt.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from embatch.backoff import Pauses, meanwhile, patience
from embatch.engine.protocol import EndpointTrouble, OthersTaken
from embatch.errors import EmbatchError, EngineTrouble, Unavailable
from embatch.events import SlotPaused, WorkPaused, emit
from embatch.pool.protocol import Stopped
from embatch.service.attempt import ForeignVectors, Running, Steps
from embatch.service.room import AtWork, room
from embatch.service.staying import Staying
from embatch.shard import Done

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embatch.engine.models import Catalog
    from embatch.pool.protocol import Pool
    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.claims import Claims
    from embatch.store.records import Claim

_REST_SECONDS: Final = 5.0
_LONGEST_REST: Final = 1e6


class _Ending(NamedTuple):
    """What becomes of a claim without a commit: it is released, and perhaps something rests."""

    excused: bool
    """Whether the claim says nothing against the shard; enough that do make it suspect."""
    pauses: Literal["model", "batch"] | None = None
    """Of which nothing is claimed for a while."""
    slot_rests: bool = False
    bug: bool = False


def _ending(error: Exception) -> _Ending:
    """Judge why a step failed."""
    match error:
        case Stopped() | ForeignVectors():  # after the latter the next attempt finds the model changed
            return _Ending(excused=True)
        case OthersTaken():  # one text of one batch would hold up everybody's
            return _Ending(excused=True, pauses="batch")
        case EndpointTrouble():
            return _Ending(excused=True, pauses="model")
        case EngineTrouble():
            return _Ending(excused=False, pauses="model")
        case Unavailable():  # the disk or the store: no engine has anything against it
            return _Ending(excused=True, pauses="batch", slot_rests=True)
        case _:
            return _Ending(excused=False, slot_rests=True, bug=True)


@dataclass(slots=True, eq=False)
class Dispatcher:
    """Works the store's shards until closed."""

    claims: Claims
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    patience: Callable[[int], float] = patience
    """Seconds until what failed so often in a row is tried again."""
    monotonic: Callable[[], float] = time.monotonic
    """The clock of pauses."""
    _steps: Steps = field(init=False)
    _threads: list[threading.Thread] = field(init=False)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _news: int = 0
    _paused: bool = False
    _watched: bool = False
    """Whether one of the slots that rest looks now and then."""
    _closing: threading.Event = field(default_factory=threading.Event)
    _claiming: threading.Lock = field(default_factory=threading.Lock)
    """Held from the claim until it stands in `_running`: who ends a batch in the store and then looks here
    under this lock meets every shard that was claimed before."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list[Running] = field(default_factory=list)
    _owed: list[tuple[Running, bool]] = field(default_factory=list)
    """What the store would not take back yet, and whether it is excused."""
    _staying: Staying = field(default_factory=Staying)
    """Under `_claiming`."""
    _models: Pauses = field(default_factory=Pauses)
    """Models that no engine comes up for."""
    _batches: Pauses = field(default_factory=Pauses)
    """Batches that the disk troubles."""

    def __post_init__(self) -> None:
        attempts = int(self.settings.suspect_attempts)
        self._steps = Steps(self.claims, self.blobs, self.catalog, self.pool, attempts)
        self._threads = [
            threading.Thread(target=self._slot, name=f"slot-{number}", daemon=True)
            for number in range(self.pool.slots)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell a slot that something may wait for it; one that takes something tells the next."""
        with self._wake:
            self._news += 1
            self._wake.notify()

    def cancel(self, batch_id: str) -> None:
        """Stop the running shards of a batch, between micro-batches, after the store has ended it."""
        with self._claiming, self._lock:
            self._batches.end(batch_id)
            for running in self._running:
                if running.claim.batch_id == batch_id:
                    running.draining = False  # nobody will work the rest
                    running.stop.set()

    def prioritise(self, batch_id: str, priority: int) -> None:
        """Let the running shards of a batch have another priority, after the store has changed it."""
        with self._claiming, self._lock:
            for running in self._running:
                if running.claim.batch_id == batch_id:
                    running.origin.priority = priority
        self.wake()

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
        # One that does not come up may be known before a shard waits for it.
        broken = self.pool.troubles()
        with self._lock:
            batches = {f"batches/{name}": message for name, message in self._batches.messages().items()}
            return dict(broken) | self._models.messages() | batches

    def pause(self) -> None:
        """Claim no more until `resume`, let running micro-batches finish and release the rest."""
        with self._wake:
            self._paused = True
        self._drain()

    def resume(self) -> None:
        """Go on. Repeating is safe."""
        with self._wake:
            self._paused = False
            self._news += 1
            self._wake.notify_all()

    def close(self, grace: float) -> None:
        """Claim no more, let running micro-batches finish, release the rest; wait at most `grace` seconds."""
        self._closing.set()
        with self._wake:
            self._wake.notify_all()
        self._drain()
        deadline = time.monotonic() + grace
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            late = list(self._running)
        for running in late:  # whatever these slots still do, the store refuses it from here on
            running.draining = False  # so that nobody would find what they leave
            with suppress(EmbatchError):
                self.claims.release(running.claim, excused=True)  # it is we who do not wait

    def _drain(self) -> None:
        """Stop what is claimed after the running micro-batches; what is finished of it is left for later."""
        with self._claiming, self._lock:
            for running in self._running:
                running.draining = running.draining or not running.stop.is_set()  # else it was cancelled
                running.stop.set()

    def _slot(self) -> None:
        failures = 0
        while not self._closing.is_set():
            with self._wake:
                seen, now = self._news, self.monotonic()
            try:
                self._give_back()
                running = self._take(now)
                if running is None:
                    self._rest(seen, now)
                    continue
                with self._wake:
                    self._wake.notify()
                worked = self._work(running)
            except Exception as error:  # noqa: BLE001  (a slot that dies would leave a service that works nothing)
                worked = False
                message = error.message if isinstance(error, EmbatchError) else None
                if not failures or message is None:  # trouble is told of once, a bug whenever it shows
                    emit(SlotPaused(message=message, exception=error))
            failures = 0 if worked else failures + 1
            if failures:
                self._closing.wait(self.patience(failures))

    def _take(self, now: float) -> Running | None:
        with self._claiming:
            if self._closing.is_set() or self._paused:
                return None
            with self._lock:
                paused, resting = self._models.waiting(now), self._batches.waiting(now)
                at_work = [
                    AtWork(one.claim.batch_id, one.claim.model, one.origin.priority) for one in self._running
                ]
            left = room(at_work, len(self._threads))
            loaded = self.pool.loaded()
            claimed = self.claims.claim(
                1,
                without=paused,
                resting=resting | left.crowded,
                least=left.least,
                beside=left.beside,
                first=self._staying.preferred((model.name for model in self.catalog), loaded, now),
            )
            with self._lock:
                if not claimed:
                    # Nothing of the others waits: what troubled them troubles nobody any more.
                    if left.least is None:
                        self._models.keep(paused | {one.model for one in at_work})
                        self._batches.keep(resting | {one.batch for one in at_work})
                    return None
                self._staying.took(claimed[0].model, loaded, now)
                running = Running(claimed[0])
                self._running.append(running)
                return running

    def _rest(self, seen: int, now: float) -> None:
        with self._lock:
            end = min(self._models.next_end(now), self._batches.next_end(now))
        with self._wake:
            if self._news != seen or self._closing.is_set():
                return
            # One of those that rest looks now and then: others may write to the store.
            looks, self._watched = not self._watched, True
            end = min(end, _REST_SECONDS) if looks else end
            self._wake.wait(end if end < _LONGEST_REST and not self._paused else None)
            self._watched = self._watched and not looks

    def _work(self, running: Running) -> bool:
        """Work a shard; return whether the slot may go on at once, which disk and store may forbid."""
        claim, steps = running.claim, self._steps
        try:
            served = steps.serve(running)
            payload = steps.read(served)
            checked = steps.check(payload)
            embedded = steps.embed(checked)
            if embedded.computed_by is not None:
                self._recovered(self._models, claim.model)
            written = steps.write(embedded)
            steps.commit(written)
            self._recovered(self._batches, claim.batch_id)
        except Exception as error:
            ending = _ending(error)
            self._end(running, ending, error)
            if ending.bug:
                raise
            return not ending.slot_rests
        finally:
            with self._lock:
                self._running.remove(running)
        return True

    def _end(self, running: Running, ending: _Ending, error: Exception) -> None:
        if ending.pauses is not None and isinstance(error, Unavailable):  # first: the next claim is not far
            self._pause(running.claim, ending.pauses, error)
        with self._lock:
            self._owed.append((running, ending.excused))
        with suppress(EmbatchError):  # if that goes wrong too, it is tried again
            self._give_back()

    def _give_back(self) -> None:
        """Release what is owed. Raises Unavailable: the rest of it still is, or the next start does it."""
        while True:
            with self._lock:
                if not self._owed:
                    return
                running, excused = self._owed.pop()
            try:
                self._steps.release(running, excused=excused)
            except EmbatchError:
                with self._lock:
                    self._owed.append((running, excused))
                raise

    def _pause(self, claim: Claim, what: Literal["model", "batch"], error: Unavailable) -> None:
        """Claim nothing of a model or a batch for a while, and say why once: no text is to blame."""
        pauses, name = (self._models, claim.model) if what == "model" else (self._batches, claim.batch_id)
        # An engine may say how long it wants to be left alone.
        asked = error.retry_after if isinstance(error, EngineTrouble) else None
        wait = self.patience if asked is None else partial(meanwhile, asked)
        with self._lock:
            before = pauses.messages()
            pauses.begin(name, error.message, self.monotonic(), wait)
        if name not in before and error.message not in before.values():
            emit(WorkPaused(of=name, error=error.message))

    def _recovered(self, pauses: Pauses, name: str) -> None:
        with self._lock:
            pauses.end(name)
