"""Threads for what takes long, apart from those that answer polls, small submits, cancel and health.

A cold model or a remote endpoint that has gone holds each of its callers for minutes, and a query waits for
those before it. So every line of callers, one for each lane of a model, has threads of its own: nobody else
stands behind it. So has the reading of results, which is as slow as the disk and as long as the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from anyio import CapacityLimiter, Semaphore, fail_after, to_thread

from embatch.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")
Args = TypeVarTuple("Args")

THREADS: Final = 40
"""Calls of one line that are with the engine at once."""
WAITING: Final = 200
"""Calls of one line that wait for a thread; one more is refused at once."""
PATIENCE: Final = 30.0
"""Seconds that a call waits for a thread."""
READING: Final = 8
"""Results that are read from the disk at once."""
_RETRY_SECONDS: Final = 5.0


_NO_ENGINE: Final = "too many calls wait for the engine of this model: come back later, or submit a batch"


class WaitingLines:
    """Runs calls that take long in lines, each of which has threads of its own."""

    def __init__(
        self,
        threads: int = THREADS,
        waiting: int = WAITING,
        patience: float = PATIENCE,
        *,
        refusal: str = _NO_ENGINE,
    ) -> None:
        self._threads, self._waiting, self._patience = threads, waiting, patience
        self._refusal = refusal
        self._lines: dict[str, Semaphore] = {}
        # Who has its turn has a thread: the framework's own count of threads is that of all other calls.
        self._unlimited = CapacityLimiter(math.inf)

    async def run(self, line: str, call: Callable[[*Args], T], *args: *Args) -> T:
        """Return what a call gives, once its turn in a line has come.

        Raises:
            Unavailable: too many wait already, or its turn did not come in time; nothing was done.
        """
        turns = self._lines.setdefault(line, Semaphore(self._threads))
        if turns.statistics().tasks_waiting >= self._waiting:
            raise self._overloaded()
        try:
            with fail_after(self._patience):
                await turns.acquire()
        except TimeoutError:
            raise self._overloaded() from None
        try:
            return await to_thread.run_sync(call, *args, limiter=self._unlimited)
        finally:
            turns.release()

    def _overloaded(self) -> Unavailable:
        return Unavailable(self._refusal, reason="OVERLOADED", retry_after=_RETRY_SECONDS)


class EngineThreads(WaitingLines):
    """Runs calls that may wait for an engine."""


class ResultThreads:
    """Runs calls that read results, piece by piece: whoever is slow to take a piece holds no thread."""

    def __init__(self, threads: int = READING) -> None:
        self._limiter = CapacityLimiter(threads)

    async def run(self, call: Callable[[*Args], T], *args: *Args) -> T:
        """Return what a call gives, once a thread is free."""
        return await to_thread.run_sync(call, *args, limiter=self._limiter)

    async def stream(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the pieces, each made in a thread of these; what making one raises is raised here."""
        while (piece := await self.run(_next, pieces)) is not None:
            yield piece


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
