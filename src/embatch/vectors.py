"""Vector arithmetic on float32, for one embedding and for many: norms, similarities, fewer dimensions.

One: shape (d,). Many: shape (n, d), one embedding a row. Results are float32; sums run in float64, so a
result does not depend on how many rows stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Vectors: TypeAlias = "NDArray[np.float32]"

_UNIT: Final = 1e-6
"""A length that differs from 1 by no more than this is 1 as far as float32 can say."""
_SHOWN: Final = 3
"""Numbers of an embedding that its `repr` shows."""


def norm(vectors: ArrayLike) -> Vectors:
    """Return the Euclidean length: shape () for one, (n,) for many."""
    return np.asarray(np.sqrt(np.sum(np.square(_wide(vectors)), axis=-1)), np.float32)


def normalize(vectors: ArrayLike) -> Vectors:
    """Return the same directions at length 1, same shape. A zero vector stays a zero vector."""
    wide = _wide(vectors)
    length = np.sqrt(np.sum(np.square(wide), axis=-1, keepdims=True))
    return np.asarray(np.divide(wide, length, out=np.zeros_like(wide), where=length != 0), np.float32)


def unit(vector: Vectors) -> Vectors:
    """Return one vector at length 1. One that has it is returned as it is, to the bit, and so is zero."""
    length = float(np.sqrt(np.sum(np.square(_wide(vector)))))
    return vector if length == 0 or abs(length - 1.0) <= _UNIT else normalize(vector)


def truncate(vectors: ArrayLike, dimensions: int) -> Vectors:
    """Return the first `dimensions` of each vector, then normalised (Matryoshka; Kusupati et al. 2022).

    Raises:
        InvalidArgument: `dimensions` is below 1 or above what the vectors have.
    """
    array = np.asarray(vectors, np.float32)
    native = array.shape[-1]
    if not 1 <= dimensions <= native:
        raise InvalidArgument(
            f"output_dimensionality must be from 1 to {native}", field="output_dimensionality"
        )
    return array if dimensions == native else normalize(array[..., :dimensions])


def dot(left: ArrayLike, right: ArrayLike) -> Vectors:
    """Return the dot product of each left with its right; one against many broadcasts."""
    a, b = _pair(left, right)
    return np.asarray(np.sum(a * b, axis=-1), np.float32)


def cosine(left: ArrayLike, right: ArrayLike) -> Vectors:
    """Return the cosine of the angle, -1 to 1; 0 where either vector is zero. Need not be normalised."""
    a, b = _pair(left, right)
    lengths = np.sqrt(np.sum(a * a, axis=-1) * np.sum(b * b, axis=-1))
    products = np.sum(a * b, axis=-1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)
    return np.asarray(np.clip(cosines, -1.0, 1.0), np.float32)


def euclidean(left: ArrayLike, right: ArrayLike) -> Vectors:
    """Return the straight-line distance; one against many broadcasts."""
    a, b = _pair(left, right)
    return np.asarray(np.sqrt(np.sum(np.square(a - b), axis=-1)), np.float32)


def _wide(vectors: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(vectors, np.float64)


def _pair(left: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _wide(left), _wide(right)
    if a.shape[-1:] != b.shape[-1:]:
        raise InvalidArgument(
            f"embeddings of {a.shape[-1]} and {b.shape[-1]} dimensions cannot be compared: "
            "ask for the same output_dimensionality for both",
            field="output_dimensionality",
        )
    return a, b


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class ContentEmbedding:
    """One embedding. `values` is float32 of shape (dimensionality,); treat it as read-only.

    >>> a, b = ContentEmbedding([3.0, 4.0]), ContentEmbedding([4.0, 3.0])
    >>> a.dimensionality, a.norm, a.normalize().norm
    (2, 5.0, 1.0)
    >>> round(a.cosine_similarity(b), 2), a.dot_product(b), round(a.euclidean_distance(b), 3)
    (0.96, 24.0, 1.414)
    >>> ContentEmbedding(np.arange(384))
    <ContentEmbedding of 384 dimensions: 0, 1, 2, …>
    """

    values: Vectors

    def __init__(self, values: Sequence[float] | Vectors) -> None:
        array = np.asarray(values, np.float32)
        if array.ndim != 1:
            raise InvalidArgument("an embedding is one list of numbers", field="values")
        object.__setattr__(self, "values", array)

    def __repr__(self) -> str:
        first = ", ".join(f"{number:.4g}" for number in self.values[:_SHOWN].tolist())
        more = ", …" if self.dimensionality > _SHOWN else ""
        return f"<ContentEmbedding of {self.dimensionality} dimensions: {first}{more}>"

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers, bit for bit."""
        return isinstance(other, ContentEmbedding) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())

    @property
    def dimensionality(self) -> int:
        """How many numbers the embedding has."""
        return int(self.values.shape[0])

    @property
    def norm(self) -> float:
        """Its Euclidean length."""
        return float(norm(self.values))

    def normalize(self) -> ContentEmbedding:
        """Return the same direction at length 1; a zero embedding stays zero."""
        return ContentEmbedding(normalize(self.values))

    def truncate(self, dimensions: int) -> ContentEmbedding:
        """Return its first `dimensions`, normalised again."""
        return ContentEmbedding(truncate(self.values, dimensions))

    def cosine_similarity(self, other: ContentEmbedding) -> float:
        """Return -1 to 1; 0.0 if either is zero. Raises `InvalidArgument` on a length mismatch."""
        return float(cosine(self.values, other.values))

    def dot_product(self, other: ContentEmbedding) -> float:
        """Return the dot product. Raises `InvalidArgument` on a length mismatch."""
        return float(dot(self.values, other.values))

    def euclidean_distance(self, other: ContentEmbedding) -> float:
        """Return the distance, 0 for equal ones. Raises `InvalidArgument` on a length mismatch."""
        return float(euclidean(self.values, other.values))
