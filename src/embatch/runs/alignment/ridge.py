"""The map from what a text looks like to the vector that a model gives it: ridge regression, whitened.

A map is learned from sums over rows alone, so it never needs the rows themselves, and what one fold added
can be taken away again. Vectors and predictions are then scaled by how the rows it was learned from stray
from it: directions in which the map is always wrong say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST: Final = 768
"""Leading dimensions that are worked on."""
PENALTY: Final = 3.0
"""On the squares of the map's coefficients, in rows of length one."""
SHRINKAGE: Final = 0.3
"""Share of the mean variance that is added to each direction before whitening."""
_OF_INTERCEPT: Final = 0.01


def leading(vectors: NDArray[np.float32], most: int | None = MOST) -> NDArray[np.float32]:
    """Return the leading dimensions of vectors at length one; zeros and what is no number become zeros."""
    return unit(np.nan_to_num(vectors[:, :most], posinf=0.0, neginf=0.0))


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows at length one; zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float32] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return found


@dataclass(slots=True)
class Moments:
    """Sums over rows of features and vectors."""

    rows: int
    features: NDArray[np.float64]
    """Features by features, the constant one last."""
    both: NDArray[np.float64]
    """Features by dimensions; the last row is the sum of the vectors."""
    vectors: NDArray[np.float64]
    """Dimensions by dimensions."""

    @classmethod
    def none(cls, width: int, dimensions: int) -> Self:
        """Return the sums over no row."""
        return cls(
            0,
            np.zeros((width + 1, width + 1)),
            np.zeros((width + 1, dimensions)),
            np.zeros((dimensions, dimensions)),
        )

    def add(self, features: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
        """Add rows: features (n, width) and vectors (n, dimensions) of length one."""
        extended = with_constant(features)
        self.rows += len(features)
        self.features += extended.T @ extended
        self.both += extended.T @ vectors
        self.vectors += vectors.T @ vectors

    def plus(self, other: Moments, sign: int = 1) -> Moments:
        """Return the sums over both, or with `sign=-1` over what is left without the other's rows."""
        return Moments(
            self.rows + sign * other.rows,
            self.features + sign * other.features,
            self.both + sign * other.both,
            self.vectors + sign * other.vectors,
        )


@dataclass(frozen=True, slots=True)
class RidgeMap:
    """Vectors and features in one whitened space, where those of the same text look alike."""

    mean: NDArray[np.float32]
    whiten: NDArray[np.float32]
    weights: NDArray[np.float32]
    """From features with the constant one, straight to the whitened space."""

    @classmethod
    def learned(cls, moments: Moments) -> Self:
        """Return the map of some rows. The rows it judges must not be among them."""
        penalty = np.full(len(moments.features), PENALTY)
        penalty[-1] = _OF_INTERCEPT
        weights = np.linalg.solve(moments.features + np.diag(penalty), moments.both)
        mean = moments.both[-1] / max(1, moments.rows)
        crossed = moments.both.T @ weights
        strayed = moments.vectors - crossed - crossed.T + weights.T @ moments.features @ weights
        strayed /= max(1, moments.rows)
        spread = np.trace(strayed) / len(strayed)
        values, directions = np.linalg.eigh(strayed + (SHRINKAGE * spread + 1e-12) * np.eye(len(strayed)))
        whiten = directions / np.sqrt(np.maximum(values, 1e-12))
        weights[-1] -= mean
        return cls(mean.astype(np.float32), whiten.astype(np.float32), (weights @ whiten).astype(np.float32))

    def given(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return where vectors stand, at length one."""
        return unit(np.asarray((vectors - self.mean) @ self.whiten, np.float32))

    def expected(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return where the vectors of texts should stand, at length one."""
        return unit(with_constant(features) @ self.weights)


def with_constant(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features with a one behind each row."""
    return np.hstack([features, np.ones((len(features), 1), np.float32)])
