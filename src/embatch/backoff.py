"""How long to wait: after an error (full jitter) and between polls (the guide's adaptive table).

Pure arithmetic in seconds; whoever calls decides how to wait.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST: Final = 1e9
"""Thirty years: whoever asks for more gets this, with which dates and durations can still be reckoned."""
_DATE_CHARACTERS: Final = 64
"""No HTTP date is longer."""
_FIRST_POLL: Final = 0.1
"""Seconds between the first two polls of a batch."""
LONGEST_PAUSE: Final = 3600.0
"""Nothing that could be tried again waits longer than an hour, whoever says so."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015)."""

    first: float = 0.5
    """Ceiling of the first wait, seconds."""
    limit: float = 30.0
    """Ceiling of every wait, seconds."""
    attempts: int = 6
    """Tries in all, the first included."""
    obeyed: float = 120.0
    """Longest wait that is obeyed when it is asked for, seconds: whoever asks for more is not asked again."""

    def delay(self, failures: int, chance: float, retry_after: float | None = None) -> float | None:
        """Return the seconds to wait after the `failures`-th failure, or `None` to give up.

        Args:
            failures: failures so far, 1 for the first.
            chance: a number drawn uniformly from [0, 1).
            retry_after: what the service asked for; never undercut, and jittered upwards by a quarter. Above
                `obeyed` it is a reason to give up.
        """
        if failures >= self.attempts:
            return None
        # 2.0 ** 1024 overflows; by 64 doublings every sensible limit is long reached.
        ceiling = min(self.limit, self.first * 2.0 ** min(failures - 1, 64))
        if retry_after is not None and math.isfinite(retry_after) and retry_after > 0:
            return retry_after * (1.0 + 0.25 * chance) if retry_after <= self.obeyed else None
        return ceiling * chance


@dataclass(frozen=True, slots=True)
class Pause:
    """Why something waits although it could be tried."""

    message: str
    failures: int
    """In a row."""
    until: float
    """Past it, by the caller's clock, it is tried again."""


@dataclass(slots=True)
class Pauses:
    """What waits for a while after a failure, by name; each further failure makes it wait anew.

    Times are seconds of the caller's clock. Not for two threads at once.
    """

    _pauses: dict[str, Pause] = field(default_factory=dict)

    def begin(self, name: str, message: str, now: float, wait: Callable[[int], float]) -> bool:
        """Let one wait; return whether it did not before, which is when it should be told of.

        Args:
            name: what failed.
            message: why.
            now: the time.
            wait: seconds by the number of failures in a row, 1 for the first; `LONGEST_PAUSE` at most counts.
        """
        before = self._pauses.get(name)
        failures = 1 if before is None else before.failures + 1
        self._pauses[name] = Pause(message, failures, now + min(LONGEST_PAUSE, wait(failures)))
        return before is None

    def end(self, name: str) -> None:
        """Forget the failures of one: it was done, or nobody wants it any more."""
        self._pauses.pop(name, None)

    def waiting(self, now: float) -> set[str]:
        """Return what is not to be tried yet."""
        return {name for name, pause in self._pauses.items() if pause.until > now}

    def keep(self, names: Collection[str]) -> None:
        """Forget all but these."""
        self._pauses = {name: pause for name, pause in self._pauses.items() if name in names}

    def next_end(self, now: float) -> float:
        """Return the seconds until the first of those that wait is tried again; infinite if none waits."""
        ends = (pause.until - now for pause in self._pauses.values())
        return min((end for end in ends if end > 0), default=math.inf)

    def messages(self) -> dict[str, str]:
        """Return why each waits."""
        return {name: pause.message for name, pause in self._pauses.items()}


SUBMIT: Final = Backoff()
_AGAIN: Final = Backoff(first=1.0, limit=30.0, attempts=1_000_000)
POLL: Final = Backoff(first=1.0, limit=30.0, attempts=10)
_MEANWHILE: Final = Backoff(first=30.0, limit=900.0, attempts=1_000_000)


def patience(failures: int) -> float:
    """Return the seconds to wait with work that failed so often in a row, 1 for the first; no count ends it.

    Jittered by half, for others fail at the same time; this alone draws its chance itself.
    """
    return _AGAIN.delay(min(failures, 64), random.uniform(0.5, 1.0)) or _AGAIN.limit


def meanwhile(asked: float, failures: int) -> float:
    """Return the seconds to leave somebody alone who asked for `asked` of them, and whom work waits for.

    Up to two minutes are obeyed as they were said. Who asks for more is tried again meanwhile, ever more
    seldom: after half a minute, a minute, two, and so on up to a quarter of an hour. Such a time is a guess
    of whoever says it, and a mistaken one would hold the work for years.

    Args:
        asked: seconds; what is no number above 0 asks for nothing.
        failures: how often in a row it has failed, 1 for the first.
    """
    if not asked > 0:
        return 0.0
    if asked <= _MEANWHILE.obeyed:
        return asked
    # By 64 doublings the limit is long reached, and no count of failures is a reason to give up.
    return min(asked, _MEANWHILE.delay(min(failures, 64), 1.0) or _MEANWHILE.limit)


def seconds(text: str) -> float | None:
    """Return the seconds that somebody asks to wait: above 0, finite, at most thirty years.

    `None` for what is no such number, with a fraction or without, or no time.
    """
    wait = float(text) if _SECONDS.fullmatch(text) else 0.0
    return min(wait, _LONGEST) if wait > 0 else None


def retry_after(header: str | None, now: datetime | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait: above 0, finite, at most thirty years.

    Args:
        header: seconds, also with a fraction, or an HTTP date in any of its forms; `None` if there is none.
        now: the time by the clock of whoever answered, with a zone. `None` where nobody knows it: a date then
            means nothing, for our own clock may go otherwise.

    Returns:
        `None` where nothing is asked for: no header, one that makes no sense, no time, a time that is past.
    """
    said = (header or "").strip()
    until = http_date(said) if now is not None and not _SECONDS.fullmatch(said) else None
    if until is None or now is None:
        return seconds(said)
    wait = (until - now).total_seconds()
    return min(wait, _LONGEST) if wait > 0 else None


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait; see `retry_after`.

    Args:
        headers: names in lower case, or found in any case.
    """
    return retry_after(headers.get("retry-after"), http_date(headers.get("date")))


def http_date(header: str | None) -> datetime | None:
    """Return the moment that an HTTP date names, with its zone, UTC where it names none.

    `None` if there is no header, or if it is no date that a calendar has.
    """
    if header is None or len(header) > _DATE_CHARACTERS:
        return None
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, TypeError, OverflowError, IndexError):  # what the library raises for odd ones
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def poll_interval(request_count: int) -> float:
    """Return the guide's seconds between two polls of a batch of this size."""
    if request_count < 100:
        return 2.0
    if request_count < 1_000:
        return 5.0
    return 10.0 if request_count < 10_000 else 30.0


def early_interval(polls: int, interval: float) -> float:
    """Return the seconds until the next poll: 0.1 after the first, then twice as long, up to the interval.

    A small batch is seen as soon as it is done; a large one takes some polls more.

    Args:
        polls: polls so far, 1 after the first.
        interval: seconds between two polls in the long run.
    """
    return min(interval, _FIRST_POLL * 2.0 ** min(polls - 1, 64))


def time_limit(request_count: int) -> float:
    """Return the guide's seconds to wait for a batch: one a request and two minutes."""
    return request_count + 120.0
