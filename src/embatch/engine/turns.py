"""Whose micro-batch is next: pure bookkeeping of the jobs that are open in one engine process.

The highest priority first, and among equals the batch that had the fewest tokens. A batch that comes anew
counts as one that had as many as the least of those that were given any at its priority: it waits for about
one micro-batch of each other one at most, and a stream of small ones starves no large one. The groups of a
job that runs alone come before all others, wait for those that run and for nothing else, and nothing is begun
beside them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Turn(NamedTuple):
    """A micro-batch that may run now."""

    job: int
    group: int
    alone: bool
    """Whether nothing may be begun before it has ended."""


@dataclass(slots=True)
class _Batch:
    priority: int
    tokens: int
    """What it was given so far, counted from where it began."""
    age: int
    """Less than that of every batch that came later."""
    served: bool = False
    """Whether it was given any since it came, or since its priority changed."""
    jobs: int = 0


@dataclass(slots=True)
class _Job:
    number: int
    key: str | int
    batch: _Batch
    alone: bool
    left: deque[tuple[int, int]] = field(default_factory=deque)
    """Groups that are not begun, and the tokens of each."""
    running: int = 0
    encoding: bool = False
    planned: bool = False
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing of it is under way or will be."""
        return not (self.left or self.running or self.encoding) and (self.planned or self.cancelled)


class Turns:
    """The open jobs. Not safe for threads: the caller has them come one by one.

    Whoever is told that a job is over (`True`) hears no more of it, and it is open no longer.
    """

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._batches: dict[str | int, _Batch] = {}
        self._came = 0
        self._running = 0
        self._exclusive = False

    def open(self, job: int, batch: str, priority: int, *, alone: bool = False) -> None:
        """Take a job that is to be encoded.

        Args:
            job: its number, of no other open one.
            batch: whose it is, for whom turns are counted; empty: nobody else's.
            priority: what the batch has by now.
            alone: whether each group of it runs by itself.
        """
        key = batch or job
        if key in self._batches:
            self._change(self._batches[key], priority)
        else:
            self._came += 1
            self._batches[key] = _Batch(priority, self._least(priority), self._came)
        self._batches[key].jobs += 1
        self._jobs[job] = _Job(job, key, self._batches[key], alone)

    def prioritise(self, job: int, priority: int) -> None:
        """Change the priority of a job's batch, for all its jobs; of one that is over nothing changes."""
        if job in self._jobs:
            self._change(self._jobs[job].batch, priority)

    def encode(self) -> int | None:
        """Return the job to encode next, which then is being encoded; `None`: all are.

        Among equal priorities it is one of a batch that has nothing to run, where there is one.
        """
        waiting = [job for job in self._jobs.values() if not (job.planned or job.encoding)]
        if not waiting:
            return None
        ready = {id(job.batch) for job in self._jobs.values() if job.left}
        job = min(
            waiting,
            key=lambda job: (
                not job.alone,
                -job.batch.priority,
                id(job.batch) in ready,
                job.batch.tokens,
                job.batch.age,
            ),
        )
        job.encoding = True
        return job.number

    def plan(self, job: int, groups: Iterable[tuple[int, int]]) -> bool:
        """Take the groups of a job that was encoded, each with its tokens, in the order in which they run.

        Returns whether the job is over, for it has none or was cancelled meanwhile.
        """
        found = self._jobs[job]
        found.encoding, found.planned = False, True
        if not found.cancelled:
            found.left.extend(groups)
        return self._settle(found)

    def next(self) -> Turn | None:
        """Return what to run now, which then is running; `None`: nothing may begin before something ends."""
        if self._exclusive:
            return None
        ready = [job for job in self._jobs.values() if job.left]
        alone = next((job for job in ready if job.alone), None)
        if alone is not None and self._running:
            return None
        # Of equal keys the first is taken: within a batch jobs run in the order in which they came.
        job = alone or min(
            ready, key=lambda job: (-job.batch.priority, job.batch.tokens, job.batch.age), default=None
        )
        if job is None:
            return None
        group, tokens = job.left.popleft()
        job.running += 1
        job.batch.tokens += tokens
        job.batch.served = True
        self._running += 1
        self._exclusive = job.alone
        return Turn(job.number, group, job.alone)

    def end(self, turn: Turn) -> bool:
        """Take note that a micro-batch has ended; return whether its job is over with it."""
        job = self._jobs[turn.job]
        job.running -= 1
        self._running -= 1
        self._exclusive = False
        return self._settle(job)

    def cancel(self, job: int) -> bool:
        """Begin nothing more of a job; return whether it is over, for nothing of it is under way.

        One that is over was so before, and is not told again.
        """
        found = self._jobs.get(job)
        if found is None:
            return False
        found.cancelled = True
        found.left.clear()
        return self._settle(found)

    def cancelled(self, job: int) -> bool:
        """Return whether an open job was cancelled."""
        return self._jobs[job].cancelled

    def _least(self, priority: int) -> int:
        """Return what a newcomer at a priority begins with."""
        among = [one for one in self._batches.values() if one.priority == priority]
        # By one that still waits for its first it would come before whoever is served: so would the next.
        served = [one.tokens for one in among if one.served]
        return min(served or [one.tokens for one in among], default=0)

    def _change(self, batch: _Batch, priority: int) -> None:
        if batch.priority != priority:
            batch.tokens, batch.priority, batch.served = self._least(priority), priority, False

    def _settle(self, job: _Job) -> bool:
        if not job.over:
            return False
        del self._jobs[job.number]
        job.batch.jobs -= 1
        if not job.batch.jobs:
            del self._batches[job.key]
        return True
