"""When an engine process has to be given up: pure bookkeeping of what it does and how long it takes.

Time is handed in, in portions that are never larger than the watch itself can vouch for: when this whole
program was stopped for an hour, no engine has been silent for an hour.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from embatch.settings import Settings

Limit: TypeAlias = Literal["start", "silence", "work"]
"""What took too long."""


@dataclass(slots=True)
class Watchdog:
    """Counts seconds. Every method may be called from any thread."""

    settings: Settings
    _ready: bool = False
    _waited: float = 0.0
    """Seconds since the start, or since the process was last heard of."""
    _work: dict[tuple[int, int | None], float] = field(default_factory=dict)
    """By job and group; without a group it is being encoded."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def heard(self, *, ready: bool) -> None:
        """Note a sign of life; `ready` once the engine is loaded."""
        with self._lock:
            self._ready = ready
            if ready:
                self._waited = 0.0

    def begin(self, work: tuple[int, int | None]) -> None:
        """Note that a piece of work has begun."""
        with self._lock:
            self._work[work] = 0.0

    def end(self, work: tuple[int, int | None]) -> None:
        """Note that a piece of work has ended; one that never began is fine."""
        with self._lock:
            self._work.pop(work, None)

    def at_work(self) -> set[int]:
        """Return the jobs of which a piece of work has begun and not ended."""
        with self._lock:
            return {job for job, _ in self._work}

    def tick(self, seconds: float) -> Limit | None:
        """Let time pass; return the limit that was passed, `None` if all is well."""
        with self._lock:
            self._waited += seconds
            for work in self._work:
                self._work[work] += seconds
            if not self._ready:
                return "start" if self._waited > self.settings.engine_start_seconds else None
            if self._waited > self.settings.heartbeat_seconds:
                return "silence"
            if any(spent > self.settings.micro_batch_seconds for spent in self._work.values()):
                return "work"
            return None
