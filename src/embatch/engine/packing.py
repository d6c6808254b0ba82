"""Which texts share a forward pass: a pure plan, so that a repeated attempt gives the same bytes.

Equal texts are computed once, texts of like length stand together, and every micro-batch keeps its padded
size within a token budget and its padding within a share of it. The plan depends on its arguments alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.engine.protocol import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILLER: Final = 0.05
"""Largest share of a micro-batch that may be padding, rounding left out: where lengths fall off, the next one
begins. On two AVX2 cores that took 0.26 of the time for 16 passages of mixed length, 0.76 for 100, 0.97 for
400 (`benchmarks/corpus.py`); with more of them lengths lie close together, and nothing changes."""


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
    planned = [_planned(int(length), multiple, max_tokens) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))
    packed: list[MicroBatch] = []
    begin = 0
    while begin < len(order):
        tokens, filled, end = planned[order[begin]], 0, begin
        while end < len(order) and (end == begin or (end + 1 - begin) * tokens <= budget):
            filled += planned[order[end]]
            if filled < (1 - FILLER) * (end + 1 - begin) * tokens:
                break
            end += 1
        packed.append(MicroBatch(tuple(order[begin:end]), Shape(end - begin, tokens)))
        begin = end
    return tuple(packed)


def _planned(length: int, multiple: int, max_tokens: int) -> int:
    """Return the tokens planned for a text: rounded up, never beyond what the model takes."""
    longest = max(1, length)
    return max(longest, min(-(-longest // multiple) * multiple, max_tokens))
