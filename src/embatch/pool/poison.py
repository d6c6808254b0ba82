"""Which text is to blame: bisection as pure decisions over what happened to groups of rows.

A group that failed is halved and tried again, padded to the shape it was planned in, so that the innocent
keep their bytes. Where the numbers were wrong, or the engine refused the rows, the process is as good as
before, and a row that fails alone is to blame. Where the process died, hung or raised, suspects go one at a
time to processes of their own, and only a row that fails alone in a fresh one is to blame: anything else may
have been its neighbours' doing, or somebody's `kill -9`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from embatch.errors import Code, Reason, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embatch.engine.protocol import Shape


class Fault(Enum):
    """How a group failed."""

    DIED = "dies"
    KILLED = "is killed"
    """By a signal that engines do not send themselves: memory ran out, or somebody did it."""
    HUNG = "does not come back"
    RAISED = "fails"
    WRONG = "answers with something else than numbers"
    """The numbers or their shape cannot be right."""
    REFUSED = "refuses"
    """The engine says that a row is not acceptable."""

    @property
    def spoils(self) -> bool:
        """Whether the process is gone or no longer to be trusted."""
        return self not in (Fault.WRONG, Fault.REFUSED)


_TIMES: Final = {Fault.KILLED: 3}
"""How often a row must fail alone in a fresh process: once, but a kill from outside is a weak proof."""

_ERRORS: Final = {
    Fault.DIED: (
        Code.INTERNAL,
        Reason.ENGINE_CRASH,
        "the engine process dies on this text, alone in a fresh process too",
    ),
    Fault.KILLED: (
        Code.INTERNAL,
        Reason.ENGINE_CRASH,
        "the engine process is killed on this text whenever it is tried alone: it may need too much memory",
    ),
    Fault.HUNG: (
        Code.INTERNAL,
        Reason.ENGINE_HANG,
        "the engine does not come back from this text, alone in a fresh process either",
    ),
    Fault.RAISED: (
        Code.INTERNAL,
        Reason.ENGINE_CRASH,
        "the engine fails on this text, alone in a fresh process too",
    ),
    Fault.WRONG: (
        Code.INTERNAL,
        Reason.ENGINE_BAD_OUTPUT,
        "the engine's answer for this text alone is not a vector of finite numbers",
    ),
    Fault.REFUSED: (Code.INVALID_ARGUMENT, Reason.BAD_FIELD, "the engine refuses this text"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that run together, padded to a planned shape."""

    rows: tuple[int, ...]
    shape: Shape | None
    """`None`: the rows are encoded and no more."""

    def halves(self) -> tuple[Group, ...]:
        """Return both halves of two or more rows, each to run in the shape of the whole."""
        middle = len(self.rows) // 2
        return Group(self.rows[:middle], self.shape), Group(self.rows[middle:], self.shape)


@dataclass(frozen=True, slots=True)
class Blame:
    """A row that failed alone, and how."""

    row: int
    fault: Fault

    def error(self, detail: str = "") -> RequestError:
        """Return what its request is told; `detail` is the engine's own reason for a refusal."""
        code, reason, message = _ERRORS[self.fault]
        return RequestError(code, reason, detail if detail and self.fault is Fault.REFUSED else message)


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try next."""

    group: Group
    new_process: bool
    """Whether a process has to be started for it: there is none yet, or the last one is spoilt."""
    failures: int = 0
    """How often the group, a single row, has failed in a process that had tried nothing else."""


class Inquiry:
    """Finds the rows to blame among suspects that are tried one group at a time, in processes of their own.

    Pure: `next` says what to try, `report` takes what came of it. The caller starts the processes.
    """

    def __init__(self, suspects: Iterable[Group]) -> None:
        self._left = [Trial(group, new_process=False) for group in suspects][::-1]
        self._spoilt = True

    def next(self) -> Trial | None:
        """Return the next trial; `None` when every row has passed or has been blamed."""
        return replace(self._left[-1], new_process=self._spoilt) if self._left else None

    def report(self, fault: Fault | None) -> Blame | None:
        """Take the outcome of the trial that `next` returned, `None` if it passed; return whom to blame."""
        trial = self._left.pop()
        alone = self._spoilt  # a process was started for this trial
        self._spoilt = fault is not None and fault.spoils
        if fault is None:
            return None
        group = trial.group
        if len(group.rows) > 1:
            self._left += [Trial(half, new_process=False) for half in reversed(group.halves())]
            return None
        failures = trial.failures + (1 if alone else 0)
        if not fault.spoils or failures >= _TIMES.get(fault, 1):
            return Blame(group.rows[0], fault)
        self._left.append(replace(trial, failures=failures))
        return None

    def lost(self) -> None:
        """Take note that the process was gone before the trial began: nothing is known of the group."""
        self._spoilt = True


def suspects(running: Iterable[Group]) -> tuple[Group, ...]:
    """Return what to try of the groups that ran when a process failed.

    One group alone did it, and its halves tell more than trying it again. Among several each may be innocent:
    they are tried whole.
    """
    groups = tuple(running)
    if len(groups) == 1 and len(groups[0].rows) > 1:
        return groups[0].halves()
    return groups
