"""What has grown too old ends or goes, in sweeps every few seconds.

Age is time that has passed, not what the wall clock shows: people and time servers set that one, by years on
a machine that has none of its own while it is off.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from embatch.errors import NotFound
from embatch.events import ClockSet, SweepFailed, emit

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.store import Store

SWEEP_SECONDS: Final = 5.0
AFTER_BOOT_SECONDS: Final = 3600.0
"""How long a machine that was just switched on has to set its clock before anything is too old by it."""
_JUMP_SECONDS: Final = 10.0
"""Clocks that drift apart by less between two sweeps are only being adjusted."""
_REMEMBERED: Final = 10_000
_PRUNED_AT_ONCE: Final = 100
_SINCE_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's monotonic clock stands still while the machine sleeps; macOS's does not."""


def since_boot() -> float:
    """Return the seconds since the machine was switched on, those that it slept included."""
    return time.clock_gettime(_SINCE_BOOT)


class AgeClock:
    """The time by which things are too old: the wall clock's without its jumps. Safe from any thread.

    A jump counts as long as anything lives that may be older than it: a thing that lives a day is as old as
    it looks once the clock has run evenly for a day. So nothing ends before its time has passed, and what
    came after a jump ends when its time has passed; what came before a jump backwards stays longer.
    """

    def __init__(self, now: Callable[[], datetime], steady: Callable[[], float]) -> None:
        """Take the wall clock, and one that nobody sets: seconds since the machine was switched on."""
        self.now, self._steady = now, steady
        self._lock = threading.Lock()
        self._seen = now(), steady()
        self._jumps: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        """When, by the steady clock, and by how many seconds forwards."""

    def look(self) -> bool:
        """Compare the clocks, for which nobody may wait long; return whether ages can be told yet."""
        with self._lock:
            return self._look()[1] >= AFTER_BOOT_SECONDS

    def by(self, lifetime: float) -> datetime:
        """Return what time it is for things that live so many seconds: what ends by then has lived them.

        Never later than the wall clock's.
        """
        with self._lock:
            wall, steady = self._look()
            ahead = 0.0
            # The most that the clock went ahead since any moment within this lifetime.
            for at, jump in self._jumps:
                if at > steady - lifetime:
                    ahead = max(0.0, ahead + jump)
        return wall - timedelta(seconds=ahead)

    def _look(self) -> tuple[datetime, float]:
        # In this order a pause of ours between the two is a jump that the next look takes back.
        steady, wall = self._steady(), self.now()
        (wall_before, steady_before), self._seen = self._seen, (wall, steady)
        jump = (wall - wall_before).total_seconds() - (steady - steady_before)
        if abs(jump) > _JUMP_SECONDS:
            self._jumps.append((steady, jump))
            emit(ClockSet(seconds=round(jump, 1)))
        return wall, steady


class Ageing:
    """Expires batches, deletes results, and does what others add, until closed."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        settings: Settings,
        clock: AgeClock,
        *,
        expired: Callable[[str], object],
        seconds: float = SWEEP_SECONDS,
    ) -> None:
        """Do nothing yet.

        `expired` is told the id of each batch that has ended so; `seconds` lie between two sweeps.
        """
        self._seconds = seconds
        self._store, self._blobs, self._settings = store, blobs, settings
        self._clock, self._expired = clock, expired
        self.sweeps: list[Callable[[], object]] = [self._expire, self._prune]
        """What is done every few seconds; owners of other things that grow old add theirs."""
        self._closing, self._going = threading.Event(), threading.Event()
        self._going.set()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def pause(self) -> None:
        """Begin no more sweeps until `resume`: what has grown too old meanwhile goes then."""
        self._going.clear()

    def resume(self) -> None:
        """Go on. Repeating is safe."""
        self._going.set()

    def close(self, grace: float) -> None:
        """Begin no more sweeps; wait at most `grace` seconds for one under way. Repeating is safe."""
        self._closing.set()
        self._going.set()
        if self._thread.is_alive():
            self._thread.join(grace)

    def sweep(self) -> None:
        """Do all sweeps once; one that fails is told of and keeps none of the others. Repeating is safe."""
        if not self._clock.look():
            return
        for sweep in self.sweeps:
            try:
                sweep()
            except Exception as error:  # noqa: BLE001  (the next sweep may find the disk or the bug gone)
                emit(SweepFailed(exception=error))

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            self._going.wait()
            if not self._closing.is_set():
                self.sweep()

    def _expire(self) -> None:
        due = self._clock.by(self._settings.batch_expiry)
        for batch_id in self._store.expire(self._clock.now(), due=due):
            self._expired(batch_id)

    def _prune(self) -> None:
        lifetime = self._settings.retention
        before = self._clock.by(lifetime) - timedelta(seconds=lifetime)
        for batch_id in self._store.prunable(before, limit=_PRUNED_AT_ONCE):
            with suppress(NotFound):  # its user was quicker
                self._store.delete(batch_id)
            self._blobs.remove_batch(batch_id)
