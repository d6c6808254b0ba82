"""Which request is to blame: bisection as pure decisions over what happened to groups of rows.

A group on which a process died or hung, or whose numbers were wrong, is tried again: whole in a fresh place,
then in halves, always padded to the shape it was planned in, so the innocent keep their bytes. Only a row
that fails alone is blamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from embatch.errors import Code, Reason, RequestError

if TYPE_CHECKING:
    from embatch.pool.process import Group


class Fault(Enum):
    """How a group failed."""

    DIED = "died"
    HUNG = "hung"
    WRONG = "wrong"
    """The numbers or their shape cannot be right; the process lives."""
    RAISED = "raised"
    REFUSED = "refused"
    """The engine says that a row is not acceptable."""


_ERRORS: Final = {
    Fault.DIED: RequestError(
        Code.INTERNAL,
        Reason.ENGINE_CRASH,
        "the engine process dies on this text, alone in a fresh process too",
    ),
    Fault.HUNG: RequestError(
        Code.INTERNAL, Reason.ENGINE_HANG, "the engine does not come back from this text, alone and fresh"
    ),
    Fault.WRONG: RequestError(
        Code.INTERNAL,
        Reason.ENGINE_BAD_OUTPUT,
        "the engine's answer for this text is not a vector of numbers",
    ),
    Fault.RAISED: RequestError(
        Code.INTERNAL, Reason.ENGINE_CRASH, "the engine fails on this text, also alone"
    ),
    Fault.REFUSED: RequestError(Code.INVALID_ARGUMENT, Reason.BAD_FIELD, "the engine refuses this text"),
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A group to be tried again."""

    group: Group
    proven: bool
    """Whether it failed in a fresh process already, with nobody else to blame."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do after a group failed: try these again, or blame this row."""

    retry: tuple[Suspect, ...] = ()
    blamed: int | None = None
    error: RequestError | None = None


def judge(suspect: Suspect, fault: Fault) -> Verdict:
    """Decide about a group that failed.

    A group that failed among others is tried whole once more, since any of them may have been the cause.
    One that failed alone is halved, and a single row is blamed.
    """
    group = suspect.group
    if not suspect.proven:
        return Verdict((Suspect(group, proven=True),))
    if len(group.rows) == 1:
        return Verdict(blamed=group.rows[0], error=error_of(fault))
    middle = len(group.rows) // 2
    halves = (type(group)(group.rows[:middle], group.shape), type(group)(group.rows[middle:], group.shape))
    return Verdict(tuple(Suspect(half, proven=True) for half in halves))


def error_of(fault: Fault) -> RequestError:
    """Return what the blamed request is told."""
    return _ERRORS[fault]
