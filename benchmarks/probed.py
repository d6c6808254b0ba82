"""The command line, with an event loop that writes down how late it is: what `attack.py` runs.

Every 10 ms of the loop a sample goes to the file that LAGS names: two doubles, the moment on the monotonic
clock and by how many seconds it came late. It is late for as long as anything else holds the loop.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Final

from embatch.cli import main

LAGS: Final = "EMBATCH_BENCH_LAGS"
EVERY: Final = 0.01
SAMPLE: Final = struct.Struct("dd")
_HELD: Final = 20
"""Samples between two writes."""


class _Probed(asyncio.DefaultEventLoopPolicy):
    """Makes event loops that are sampled."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file.open("ab")

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return a loop whose first sample is due when it runs."""
        loop = super().new_event_loop()
        loop.call_soon(self._sample, loop, loop.time(), 0)
        return loop

    def _sample(self, loop: asyncio.AbstractEventLoop, due: float, count: int) -> None:
        now = loop.time()
        self._file.write(SAMPLE.pack(now, max(0.0, now - due)))
        if count % _HELD == 0:
            self._file.flush()
        loop.call_at(now + EVERY, self._sample, loop, now + EVERY, count + 1)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(_Probed(Path(os.environ[LAGS])))
    main()
