"""What may be claimed beside what is at work: a pure decision.

Shards of several batches are at work at once, so that a small batch waits in the engine for its turn and not
here for a slot. One batch has two of them, for one to be read and committed while the other computes; where
three are at work there is that anyway, and further batches have one. The last slot is for what comes before
everything at work. Within one engine the higher priority runs first; between engines nobody sees to that, so
that beside a batch with as many shards at work as it may have nothing of a lower priority is claimed for
another model.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

OF_ONE: Final = 2
"""Shards of one batch at once."""
_FEW: Final = 3
"""Shards at work from which on nobody gets a second one."""


class AtWork(NamedTuple):
    """A shard that a slot works on."""

    batch: str
    model: str
    priority: int


class Room(NamedTuple):
    """What a claim has to leave out."""

    crowded: frozenset[str] = frozenset()
    """Batches with as many shards at work as there is room for."""
    least: int | None = None
    """Batches of a lower priority whose model is not among `beside`; `None`: whatever their priority."""
    beside: frozenset[str] = frozenset()


def room(at_work: Sequence[AtWork], slots: int) -> Room:
    """Return what there is room for in the next slot of so many."""
    taken = Counter(one.batch for one in at_work)
    most = OF_ONE if len(at_work) < _FEW else 1
    crowded = [one for one in at_work if taken[one.batch] >= most]
    batches = frozenset(one.batch for one in crowded)
    if slots > 2 * OF_ONE and len(at_work) == slots - 1:
        return Room(batches, max(one.priority for one in at_work) + 1)
    if not crowded:
        return Room()
    top = max(one.priority for one in crowded)
    return Room(batches, top, frozenset(one.model for one in crowded if one.priority == top))
