"""A build of the kernel that counts the cycles of its stages and tells the rate of tiles: `profile.cpp`."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from embatch.engine.amx.library import opened

if TYPE_CHECKING:
    from pathlib import Path

STAGES: Final = (
    "embeddings, pooling",
    "query, key, value",
    "attention",
    "output",
    "norms",
    "inner, GELU",
    "outer",
)
"""In the order of `kernel/profile.h`."""
SECONDS: Final = 0.5


def counters(file: Path) -> ctypes.CDLL:
    """Return the functions of a profiled library beside those of every library."""
    opened(file).refusal()  # asks for the tiles
    found = ctypes.CDLL(str(file))
    found.embatch_amx_rate.restype = ctypes.c_double
    found.embatch_amx_rate.argtypes = (ctypes.c_int, ctypes.c_double)
    return found


def rate(counted: ctypes.CDLL, threads: int, *, random: bool) -> float:
    """Return operations a second of so many threads together."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: float(counted.embatch_amx_rate(int(random), SECONDS)), range(threads)))


def cycles(counted: ctypes.CDLL) -> tuple[list[int], int]:
    """Return the cycles of each stage since the last call, and the counter."""
    found = (ctypes.c_uint64 * (len(STAGES) + 1))()
    assert counted.embatch_amx_cycles(found) == len(STAGES)  # noqa: S101  (of the same source)
    return list(found)[:-1], found[len(STAGES)]


def tick(counted: ctypes.CDLL) -> float:
    """Return the seconds of a cycle of the counter."""
    begun, first = time.perf_counter(), cycles(counted)[1]
    time.sleep(0.2)
    return (time.perf_counter() - begun) / (cycles(counted)[1] - first)
