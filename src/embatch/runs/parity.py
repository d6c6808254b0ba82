"""The parity certificate: some texts embedded again by the reference path, and how well vectors agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.vectors import cosine, norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embatch.vectors import Vectors

THRESHOLD: Final = 0.999
"""Least cosine between what a run gives and the reference: what bfloat16 reaches with room to spare."""
FIRST_BLOCK: Final = 16
EACH_BLOCK: Final = 4
"""Rows compared of the first block and of every later one: some thousandths of the work."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How vectors compare to those of the reference path (float32, one text at a time)."""

    count: int
    cosine_least: float
    cosine_mean: float
    norm_least: float
    norm_most: float
    tokens: int
    """Tokens of the texts that were compared."""
    cpu_seconds: float
    """What the engine spent on them, one at a time: what asking interactively costs at least."""

    def sound(self, threshold: float) -> bool:
        """Return whether the vectors are what they should be."""
        return self.cosine_least >= threshold


def choose(rows: int, block: int) -> list[int]:
    """Return which of a block's rows are compared: spread evenly, the same in every repetition."""
    wanted = min(rows, FIRST_BLOCK if block == 0 else EACH_BLOCK)
    return sorted({(2 * at + 1) * rows // (2 * wanted) for at in range(wanted)}) if wanted else []


def compare(vectors: Vectors, reference: Vectors, tokens: int, cpu_seconds: float) -> Sample:
    """Return the sample of vectors, float32 (n, dimensions), against reference vectors of the same rows."""
    lengths = np.nan_to_num(norm(vectors), posinf=0.0)
    # What is no number has nothing in common with anything; NaN would slip through every comparison.
    cosines = np.nan_to_num(cosine(vectors, reference), nan=-1.0)
    return Sample(
        len(vectors),
        # Rounding can lift it above one; six digits are what float32 can tell.
        round(min(1.0, float(cosines.min())), 6),
        round(min(1.0, float(cosines.mean())), 6),
        round(float(lengths.min()), 6),
        round(float(lengths.max()), 6),
        tokens,
        cpu_seconds,
    )


def together(samples: Iterable[Sample | None]) -> Sample | None:
    """Return all samples as one; `None` where there is none."""
    found = [sample for sample in samples if sample is not None and sample.count]
    if not found:
        return None
    count = sum(sample.count for sample in found)
    return Sample(
        count,
        min(sample.cosine_least for sample in found),
        round(sum(sample.cosine_mean * sample.count for sample in found) / count, 6),
        min(sample.norm_least for sample in found),
        max(sample.norm_most for sample in found),
        sum(sample.tokens for sample in found),
        sum(sample.cpu_seconds for sample in found),
    )
