"""Time that the test hands in, and how Google writes it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

MOMENT = datetime(2026, 6, 1, 10, tzinfo=UTC).timestamp()


class Clock:
    """Seconds since 1970 that pass when somebody says so."""

    def __init__(self, now: float = MOMENT) -> None:
        self._now = now
        self._lock = threading.Lock()

    @property
    def now(self) -> float:
        """The time."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Let time pass; return what it is then."""
        with self._lock:
            self._now += seconds
            return self._now


def stamp(now: float, digits: int = 9) -> str:
    """Write RFC 3339 with `Z`, as the services do."""
    whole = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{int(now % 1 * 10**digits):0{digits}d}Z"
