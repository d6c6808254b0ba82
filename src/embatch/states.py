"""The life of a batch: one table of transitions, from which everything else about states derives.

    PENDING → PROCESSING → COMPLETED
         ↘            ↘→ FAILED · CANCELLED · EXPIRED

The diagram in `docs/lifecycle.md`, the CHECK constraints of the store and every refusal come from
`TRANSITIONS`. No I/O, no clock.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from embatch.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where a batch is in its life. The wire's spellings of these live in `embatch.wire` only."""

    PENDING = "PENDING"
    """Accepted and durable; no shard has been claimed yet."""
    PROCESSING = "PROCESSING"
    """At least one shard has been claimed."""
    COMPLETED = "COMPLETED"
    """Every request has its embedding or its error."""
    FAILED = "FAILED"
    """The batch as a whole could not be worked, for example because its input file cannot be read."""
    CANCELLED = "CANCELLED"
    """Stopped on request; what was finished before stays readable."""
    EXPIRED = "EXPIRED"
    """Not finished within its time; what was finished stays readable."""

    @property
    def final(self) -> bool:
        """Whether the batch can never change its state again."""
        return not TRANSITIONS[self]


class Event(StrEnum):
    """What moves a batch from one state to the next."""

    CLAIM = "claim"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {
        State.PENDING: MappingProxyType(
            {
                Event.CLAIM: State.PROCESSING,
                Event.FAIL: State.FAILED,
                Event.CANCEL: State.CANCELLED,
                Event.EXPIRE: State.EXPIRED,
            }
        ),
        State.PROCESSING: MappingProxyType(
            {
                Event.FINISH: State.COMPLETED,
                Event.FAIL: State.FAILED,
                Event.CANCEL: State.CANCELLED,
                Event.EXPIRE: State.EXPIRED,
            }
        ),
        State.COMPLETED: MappingProxyType({}),
        State.FAILED: MappingProxyType({}),
        State.CANCELLED: MappingProxyType({}),
        State.EXPIRED: MappingProxyType({}),
    }
)

ACTIVE: Final = frozenset(state for state in State if TRANSITIONS[state])
FINAL: Final = frozenset(State) - ACTIVE


def advance(state: State, event: Event) -> State:
    """Return the state that `event` leads to from `state`.

    Raises:
        IllegalTransition: the table has no such arrow.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"a {state} batch cannot {event}") from None


def sources(event: Event) -> frozenset[State]:
    """Return the states in which `event` is allowed: the guard of the statement that performs it."""
    return frozenset(state for state, arrows in TRANSITIONS.items() if event in arrows)
