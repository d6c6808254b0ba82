"""What becomes of a create whose reply was lost: when it may be sent again, as one rule for runs and calls.

A batch costs money when it is created, and who was cut off does not know whether it was. So the batches are
listed, and ours is taken from the list. But lists are late: one that does not hold it proves nothing alone.
Only what is older than `OLD` and stands in neither of two whole lists, `APART` from each other, was not
created. Until then one waits, and what is not settled within `TOO_OLD` is for people to decide.

Pure: times are seconds since 1970 of whichever clock the intent was written down by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from embatch.client.calls import NOT_SENT
from embatch.errors import (
    AlreadyExists,
    ConnectionFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)

OLD: Final = 15 * 60.0
"""Age before which no list is believed that does not hold it."""
APART: Final = 5 * 60.0
"""Between the beginnings of the two lists."""
TOO_OLD: Final = 24 * 3600.0
"""Age at which what is still not settled is quarantined."""

_REFUSALS: Final = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    PermissionDenied,
    Unauthenticated,
    ResourceExhausted,
)


def undecided(error: BaseException) -> bool:
    """Return whether a create that ended so may have been taken all the same.

    It was not where the service refused it for what it is, or nothing was sent. A server's own trouble, a
    gateway's time-out, an answer that cannot be read and whatever is no error of ours say neither.
    """
    if isinstance(error, ConnectionFailed):
        return error.reason != NOT_SENT
    return not isinstance(error, _REFUSALS)


class Next(Enum):
    """What is to be done about a create of unknown fate, once a list does not hold it."""

    WAIT = "wait"
    REPEAT = "repeat"
    """It was not created: send it again."""
    QUARANTINE = "quarantine"
    """Leave it alone and report it: `embatch runs adopt` or `abandon` settles it."""


@dataclass(frozen=True, slots=True)
class UnknownCreate:
    """A create of unknown fate, and the whole lists that did not hold its batch."""

    since: float
    """When its intent was written down, before it went out."""
    first: float | None = None
    """When the first such list was begun; `None` before there was one."""
    last: float | None = None
    """When the last one was."""

    def missed(self, begun: float) -> UnknownCreate:
        """Return what is known after another whole list, begun at this time, that does not hold it.

        A list from before the intent says nothing. One that seems to be from before the last list shows that
        the clock was put back: how far apart the two are cannot be told, and the first one does not count.
        """
        if begun < self.since:
            return self
        if self.first is None or self.last is None or begun < self.last:
            return replace(self, first=begun, last=begun)
        return replace(self, last=begun)

    def next(self, now: float) -> Next:
        """Return what is to be done now. Lists come first: who asks has just read one, whole."""
        if self.first is not None and self.last is not None and self.last >= self.due:
            return Next.REPEAT
        # Either way: a clock that was a day wrong tells nothing of how old it is.
        return Next.QUARANTINE if abs(now - self.since) >= TOO_OLD else Next.WAIT

    @property
    def due(self) -> float:
        """When a list can settle it that is begun then; `since` itself before there was a first one."""
        if self.first is None:
            return self.since
        return max(self.since + OLD, self.first + APART)
