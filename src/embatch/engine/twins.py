"""Vectors that cannot be those of their texts: nothing but zeros, or one vector for texts that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ALIKE = 0.99
"""Cosine of one text's vectors from two calls: endpoints compute in as little as 8 bits."""


def without_zeros(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors, NaN where all numbers of one are zero: it says nothing of any text."""
    empty = ~vectors.any(axis=1)
    if not empty.any():
        return vectors
    vectors = vectors.copy()
    vectors[empty] = np.nan
    return vectors


def twins(texts: Sequence[str], vectors: NDArray[np.float32]) -> tuple[int, int] | None:
    """Return the places of two texts of other words that have the very same vector; `None`: there are none.

    Texts may be one and the same to a model that ignores case and marks, or that cuts them.
    """
    seen: dict[bytes, int] = {}
    for at, vector in enumerate(vectors):
        first = seen.setdefault(vector.tobytes(), at)
        if first != at and _plain(texts[first]) != _plain(texts[at]):
            return first, at
    return None


def alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two vectors may be one text's, of two calls."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return bool(a @ b >= _ALIKE * np.linalg.norm(a) * np.linalg.norm(b))


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()
