"""When a batch of a run is asked for again, and when it counts as stuck.

Hosted batches take minutes or a day, and nobody says which. So the wait grows with a batch's age: once it is
old enough for its size, the end is seen late by a twentieth of it at most, and by a minute while few are in
flight. Pure: times are seconds of any clock.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from embatch.backoff import poll_interval
from embatch.states import State

if TYPE_CHECKING:
    from embatch.batch import Batch

SHARE: Final = 0.05
"""The wait as a part of the batch's age."""
LONGEST: Final = 60.0
"""Seconds between two polls of one batch at most, while few are in flight."""
LEAST_STUCK: Final = 3600.0
"""Seconds without progress that are worth a word at the least."""
MOST_STUCK: Final = 24 * 3600.0
"""The same at the most: what hosted services aim at for a whole batch."""
FIRST_STUCK: Final = 6 * 3600.0
"""The limit while no batch of the run has ended."""
TIMES: Final = 4.0
"""A batch is stuck that goes without progress so many times as long as the run's others took in all."""


def between(requests: int, age: float, in_flight: int) -> float:
    """Return the seconds until a batch is asked for again.

    Args:
        requests: of the batch. A large one is asked for no sooner than the guide says.
        age: seconds since it was handed over.
        in_flight: batches that are asked for in turn: all together make one call a second at most.
    """
    wait = max(min(poll_interval(requests), LONGEST / 2), SHARE * age)
    return max(min(LONGEST, wait), float(in_flight))


@dataclass(slots=True)
class StuckWatch:
    """Notices batches that go nowhere. Each is told of once, and again whenever its time has doubled."""

    _took: list[float] = field(default_factory=list)
    _seen: dict[str, tuple[object, float]] = field(default_factory=dict)
    """What was seen last of each batch, and since when."""
    _told: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Seconds without progress after which a batch counts as stuck, by what the others took."""
        if not self._took:
            return FIRST_STUCK
        return min(MOST_STUCK, max(LEAST_STUCK, TIMES * self.usual))

    @property
    def usual(self) -> float:
        """Seconds that a batch of this run takes; 0.0 while none has ended."""
        return statistics.median(self._took) if self._took else 0.0

    def ended(self, name: str, seconds: float) -> None:
        """Learn from a batch that was worked, and how long that took from when it was handed over."""
        self._took.append(seconds)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Watch a batch no more."""
        self._seen.pop(name, None)
        self._told.pop(name, None)

    def quiet(self, batch: Batch, now: float) -> float:
        """Return for how long a batch has shown the same state and counts, and note what it shows now."""
        shown = (batch.state, batch.batch_stats)
        then, since = self._seen.get(batch.name, (None, now))
        if then != shown:
            since = now
            self._told.pop(batch.name, None)
        self._seen[batch.name] = (shown, since)
        return now - since

    def look(self, batch: Batch, now: float) -> str | None:
        """Return what to tell of a batch that was just asked for; `None` where there is nothing new."""
        quiet = self.quiet(batch, now)
        if batch.done or quiet < max(self.limit, 2 * self._told.get(batch.name, 0.0)):
            return None
        self._told[batch.name] = quiet
        waits = "waits to be begun" if batch.state is State.PENDING else "shows no progress"
        others = f"; {_hours(self.usual)} is usual in this run" if self._took else ""
        return (
            f"{batch.name} {waits} for {_hours(quiet)} now{others}: it is still waited for. "
            "--deadline has its texts embedded another way in time, and `embatch cancel` gives it up"
        )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
