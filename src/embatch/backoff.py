"""How long to wait: after an error (full jitter) and between polls (the guide's adaptive table).

Pure arithmetic in seconds; whoever calls decides how to wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015)."""

    first: float = 0.5
    """Ceiling of the first wait, seconds."""
    limit: float = 30.0
    """Ceiling of every wait, seconds."""
    attempts: int = 6
    """Tries in all, the first included."""

    def delay(self, failures: int, chance: float, retry_after: float | None = None) -> float | None:
        """Return the seconds to wait after the `failures`-th failure, or `None` to give up.

        Args:
            failures: failures so far, 1 for the first.
            chance: a number drawn uniformly from [0, 1).
            retry_after: what the service asked for; never undercut, and jittered upwards by a quarter.
        """
        if failures >= self.attempts:
            return None
        # 2.0 ** 1024 overflows; by 64 doublings every sensible limit is long reached.
        ceiling = min(self.limit, self.first * 2.0 ** min(failures - 1, 64))
        if retry_after is not None and math.isfinite(retry_after) and retry_after > 0:
            return retry_after * (1.0 + 0.25 * chance)
        return ceiling * chance


SUBMIT: Final = Backoff()
POLL: Final = Backoff(first=1.0, limit=30.0, attempts=10)


def poll_interval(request_count: int) -> float:
    """Return the guide's seconds between two polls of a batch of this size."""
    if request_count < 100:
        return 2.0
    if request_count < 1_000:
        return 5.0
    return 10.0 if request_count < 10_000 else 30.0


def time_limit(request_count: int) -> float:
    """Return the guide's seconds to wait for a batch: one a request and two minutes."""
    return request_count + 120.0
