"""Which texts share a forward pass: a pure plan, so that a repeated attempt gives the same bytes.

Equal texts are computed once. For an engine that pads, texts of like length stand together, and every
micro-batch keeps its padded size within a token budget and its padding within a share of it. For one that
lays texts end to end in blocks, lengths are mixed so that blocks are full. The plan depends on its arguments
alone.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from embatch.engine.protocol import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import Description

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
    """The texts of one forward pass in the order they are forwarded, as indices into what was packed."""

    rows: tuple[int, ...]
    shape: Shape
    """Exactly `len(rows)` rows; tokens enough for the longest."""


def plan(lengths: Sequence[int], budget: int, about: Description) -> tuple[MicroBatch, ...]:
    """Return the micro-batches in which an engine takes texts of these lengths.

    See `pack_padded` and `pack_blocks`.
    """
    if about.block:
        return pack_blocks(lengths, budget, about.block, about.streams)
    return pack_padded(lengths, budget, about.multiple, about.max_tokens)


def digest(groups: object, lengths: NDArray[np.int32]) -> str:
    """Return what tells a plan, and the lengths it was made of, from all others.

    Args:
        groups: the plan as JSON has it: rows, and the shape, of each micro-batch.
        lengths: tokens of each text, int32 (n,).
    """
    return hashlib.sha256(orjson.dumps(groups) + lengths.astype("<i4").tobytes()).hexdigest()


def distinct(texts: Iterable[str]) -> Distinct:
    """Return the texts with equal ones merged: equal code point for code point, NFC and NFD differ."""
    places: dict[str, int] = {}
    of = tuple(places.setdefault(text, len(places)) for text in texts)
    return Distinct(tuple(places), of)


def pack_padded(
    lengths: Sequence[int], budget: int, multiple: int, max_tokens: int
) -> tuple[MicroBatch, ...]:
    """Return micro-batches that hold every text exactly once, longest first, equal lengths in order.

    Args:
        lengths: tokens of each text, none above `max_tokens`.
        budget: most padded tokens (rows times planned tokens) of a micro-batch. A text that exceeds it
            alone gets a micro-batch of its own.
        multiple: planned tokens are rounded up to a multiple of this, so that few shapes occur.
        max_tokens: what the model takes; rounding up never goes beyond it.
    """
    given = np.asarray(lengths, np.int64)
    order = np.argsort(-given, kind="stable")
    planned = _planned(given[order], multiple, max_tokens)
    packed: list[MicroBatch] = []
    begin = 0
    while begin < len(order):
        tokens = int(planned[begin])
        end = begin + max(1, budget // tokens)
        # How much is filled by the first, the first two, ...: it falls off once and for all, for they shrink.
        filled = np.cumsum(planned[begin:end])
        kept = filled >= (1 - FILLER) * tokens * np.arange(1, len(filled) + 1)
        count = len(filled) if kept.all() else int(np.argmin(kept))
        packed.append(MicroBatch(tuple(order[begin : begin + count].tolist()), Shape(count, tokens)))
        begin += count
    return tuple(packed)


def pack_blocks(lengths: Sequence[int], budget: int, block: int, streams: int = 1) -> tuple[MicroBatch, ...]:
    """Return micro-batches that hold every text exactly once, block after block, each as full as can be.

    A block begins with the longest text that is left and goes on with the longest that still fits. When it
    ends no text that is left would fit into it: whoever fills blocks in the order of the rows, beginning the
    next when a row does not fit, gets exactly these.

    Args:
        lengths: tokens of each text.
        budget: most tokens of a micro-batch, and of a block where that is less. A text that exceeds it
            alone gets a micro-batch of its own.
        block: most tokens of a block.
        streams: how many micro-batches run at once: as many blocks as can be shared out evenly go to each.
    """
    room = min(block, budget)
    waiting: dict[int, list[int]] = {}
    for row in range(len(lengths) - 1, -1, -1):  # backwards: equal lengths are then taken in order
        waiting.setdefault(lengths[row], []).append(row)
    sizes = sorted(waiting)
    full: list[list[int]] = []
    while sizes:
        filled: list[int] = []
        left = room
        place = len(sizes) - 1
        while place >= 0:
            size = sizes[place]
            filled.append(waiting[size].pop())
            if not waiting[size]:
                del sizes[place]
            left -= size
            place = bisect_right(sizes, left) - 1
        full.append(filled)
    turns = max(1, math.ceil(len(full) / max(1, budget // block) / streams))  # of every stream
    blocks = max(1, math.ceil(len(full) / (turns * streams)))
    parts = (list(chain(*full[first : first + blocks])) for first in range(0, len(full), blocks))
    return tuple(
        MicroBatch(tuple(rows), Shape(len(rows), max(1, *(lengths[row] for row in rows)))) for rows in parts
    )


def _planned(lengths: NDArray[np.int64], multiple: int, max_tokens: int) -> NDArray[np.int64]:
    """Return the tokens planned for each text: rounded up, never beyond what the model takes."""
    longest = np.maximum(1, lengths)
    rounded = np.minimum(-(-longest // multiple) * multiple, max_tokens)
    return np.asarray(np.maximum(longest, rounded))
