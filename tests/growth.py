"""How work grows with its input: n against 4n, in processor time of this process.

Whatever else is busy only adds to a time, so each is taken at its best of several, the two in turns; and a
ratio that is too large is measured anew, for one that is never small enough is no accident.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST: Final = 6.0
"""Times the work of four times as much: four, and room for noise. A scan within a scan takes sixteen."""
LEAST: Final = 0.02
"""Seconds that the smaller work takes when it is chosen, twice what is still a measure."""
_ROUNDS: Final = (3, 5, 5, 5)
"""Rounds of each try: a scan within a scan fails the first one, and a try more is for noise alone."""
_STEP: Final = 8.0
"""Times by which the input is enlarged at once at most: work that grows faster would never end."""


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def ratio(small: Callable[[], float], large: Callable[[], float]) -> float:
    """Return how many times as long the large work takes; either returns its seconds."""
    found = _ratio(small, large)
    assert found is not None, "too little work to tell"
    return found


def _ratio(small: Callable[[], float], large: Callable[[], float]) -> float | None:
    """As `ratio`; `None`: too little work to tell.

    What was long enough when it was chosen may have been slow by something else.
    """
    found = float("inf")
    with _uncollected():
        for rounds in _ROUNDS:
            turns = [(small(), large()) for _ in range(rounds)]
            least, most = (min(times) for times in zip(*turns, strict=True))
            if least < LEAST / 2:
                return None
            found = min(found, most / least)
            if found < MOST:
                break
    return found


def growth(make: Callable[[int], Callable[[], object]], size: int, largest: int | None = None) -> float:
    """Return how many times as long four times the input takes.

    Args:
        make: returns the work on an input of a size; what it does itself is not counted.
        size: to begin with; it is enlarged until the work is long enough to be measured.
        largest: size at which work that is still too short is none to fear; the growth is 1 then.
    """
    step, found = 1.0, None
    while found is None:
        size = min(math.ceil(size * step), largest or sys.maxsize)
        small = make(size)
        if (step := _lacking(small)) == 1.0:
            large = make(4 * size)
            found = _ratio(partial(seconds, small), partial(seconds, large))
            step = 2.0
        if found is None and largest is not None and size >= largest:
            return 1.0
    return found


def growth_of_little(make: Callable[[int], Callable[[], object]], size: int) -> float:
    """Return the same, of work that is done again and again while it is short, with no larger input."""
    once, more, times = make(size), make(4 * size), 1
    step, found = 1.0, None
    while found is None:
        times = math.ceil(times * step)
        small, large = _repeated(once, times), _repeated(more, times)
        if (step := _lacking(small)) == 1.0:
            found = _ratio(partial(seconds, small), partial(seconds, large))
            step = 2.0
    return found


def _repeated(work: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            work()

    return run


def _lacking(work: Callable[[], object]) -> float:
    """Return by what the input has to be enlarged for the work to be long enough; 1 where it is."""
    with _uncollected():
        for _ in range(3):
            if (taken := seconds(work)) < LEAST:
                return min(_STEP, 1.25 * LEAST / max(taken, LEAST / 100))
    return 1.0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let no garbage be collected: what that takes depends on all that the suite has made before."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
