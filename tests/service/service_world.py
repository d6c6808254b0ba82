"""What a service stands in, for tests to disturb: its clocks and its disk."""

from __future__ import annotations

import errno
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Clock:
    """The time as the service is told it; it stands still until it is turned."""

    def __init__(self) -> None:
        self._time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self._up = 1_000_000.0
        self._ahead = 0.0

    def __call__(self) -> datetime:
        """Return what time it is."""
        return self._time

    def steady(self) -> float:
        """Return the seconds since the machine was switched on."""
        return self._up

    def monotonic(self) -> float:
        """Return a time that passes by itself, as that of back-offs does."""
        return time.monotonic() + self._ahead

    def hurry(self, seconds: float) -> None:
        """Put the time of back-offs forward."""
        self._ahead += seconds

    def turn(self, seconds: float) -> None:
        """Let time pass."""
        self._time += timedelta(seconds=seconds)
        self._up += seconds

    def set(self, seconds: float) -> None:
        """Put the wall clock forwards though no time passes."""
        self._time += timedelta(seconds=seconds)

    def boot(self, seconds: float = 0.0) -> None:
        """Have the machine switched on so long ago."""
        self._up = seconds


def unreadable(monkeypatch: pytest.MonkeyPatch, word: str, times: int) -> list[str]:
    """Have so many opens of files whose path holds a word fail, as without free descriptors; return them."""
    opened, refused = Path.open, list[str]()

    def refuse(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if mode == "rb" and word in str(path) and len(refused) < times:
            refused.append(str(path))
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, mode, *more, **named)

    monkeypatch.setattr(Path, "open", refuse)
    return refused
