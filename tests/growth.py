"""How work grows with its input: n against 4n, in processor time of this process.

Whatever else is busy only adds to a time, so each is taken at its best of five, the two in turns; and a ratio
that is too large is measured anew, for one that is never small enough is no accident.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 6.0
"""Times the work of four times as much: four, and room for noise. A scan within a scan takes sixteen."""
LEAST: Final = 0.04
"""Seconds that the smaller work takes when it is chosen, twice what is still a measure."""
_ROUNDS: Final = 5
_TRIES: Final = 4


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def ratio(small: Callable[[], float], large: Callable[[], float]) -> float:
    """Return how many times as long the large work takes; either returns its seconds."""
    found = float("inf")
    gc.collect()
    gc.disable()  # what it does depends on all that the suite has made before
    try:
        for _ in range(_TRIES):
            turns = [(small(), large()) for _ in range(_ROUNDS)]
            least, most = (min(times) for times in zip(*turns, strict=True))
            assert least >= LEAST / 4, "too little work to tell"
            found = min(found, most / least)
            if found < MOST:
                break
        return found
    finally:
        gc.enable()


def growth(make: Callable[[int], Callable[[], object]], size: int, largest: int | None = None) -> float:
    """Return how many times as long four times the input takes.

    Args:
        make: returns the work on an input of a size; what it does itself is not counted.
        size: to begin with; it is doubled until the work is long enough to be measured.
        largest: size at which work that is still too short is none to fear; the growth is 1 then.
    """
    small = make(size)
    while min(seconds(small) for _ in range(3)) < LEAST:
        size *= 2
        if largest is not None and size > largest:
            return 1.0
        small = make(size)
    large = make(4 * size)
    return ratio(lambda: seconds(small), lambda: seconds(large))
