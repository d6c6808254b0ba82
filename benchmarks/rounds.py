"""Rounds in which ways are measured in turn, and the ratios within them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def in_turn(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Yield every name once a round; each round begins with another one."""
    order = list(names)
    for number in range(rounds):
        turn = number % len(order)
        yield from (*order[turn:], *order[:turn])


def ratios(mine: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Return median, least and most of the ratios within rounds."""
    found = sorted(one / other for one, other in zip(mine, others, strict=True))
    return statistics.median(found), found[0], found[-1]
