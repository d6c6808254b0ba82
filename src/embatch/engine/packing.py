"""Which texts share a forward pass: a pure plan, so that a repeated attempt gives the same bytes.

Equal texts are computed once, texts of like length stand together, and every micro-batch keeps its padded
size within a token budget. The plan depends on nothing but its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.engine.protocol import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Distinct:
    """Texts without their repetitions. `texts[of[i]]` is the i-th text that was given."""

    texts: tuple[str, ...]
    """Each different text once, in order of first appearance."""
    of: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The texts of one forward pass, as indices into the lengths that were packed, longest first."""

    rows: tuple[int, ...]
    shape: Shape
    """Exactly `len(rows)` rows; tokens enough for the longest."""


def distinct(texts: Iterable[str]) -> Distinct:
    """Return the texts with equal ones merged: equal code point for code point, NFC and NFD differ."""
    places: dict[str, int] = {}
    of = tuple(places.setdefault(text, len(places)) for text in texts)
    return Distinct(tuple(places), of)


def pack(lengths: Sequence[int], budget: int, multiple: int, max_tokens: int) -> tuple[MicroBatch, ...]:
    """Return micro-batches that hold every text exactly once, longest first, equal lengths in order.

    Args:
        lengths: tokens of each text, none above `max_tokens`.
        budget: most padded tokens (rows times planned tokens) of a micro-batch. A text that exceeds it
            alone gets a micro-batch of its own.
        multiple: planned tokens are rounded up to a multiple of this, so that few shapes occur.
        max_tokens: what the model takes; rounding up never goes beyond it.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))
    packed: list[MicroBatch] = []
    while order:
        longest = max(1, int(lengths[order[0]]))
        tokens = max(longest, min(-(-longest // multiple) * multiple, max_tokens))
        rows = tuple(order[: max(1, budget // tokens)])
        packed.append(MicroBatch(rows, Shape(len(rows), tokens)))
        del order[: len(rows)]
    return tuple(packed)
