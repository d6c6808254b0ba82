"""Where a run takes its time from: tests give their own and wait for nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the run's own process has it, and as others have it too."""

    now: Callable[[], float] = time.time
    """Seconds since 1970: what a ledger keeps, for a later call or another machine to read."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds from any origin, never running backwards: intervals within one call."""
    sleep: Callable[[float], None] = time.sleep
