"""The forms in which embeddings are written and sent: float32, float16, int8, or one bit a dimension."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Dtype(StrEnum):
    """A form; bytes of one dimension in brackets."""

    FLOAT32 = "float32"
    """As computed (4)."""
    FLOAT16 = "float16"
    """Half precision (2)."""
    INT8 = "int8"
    """Whole numbers times a scale for each vector: the largest becomes 127 (1, and 4 for the scale)."""
    BITS = "bits"
    """1 where the number is positive, packed from the highest bit of each byte on (1/8)."""

    def width(self, dimensions: int) -> int:
        """Return how many values a vector of so many dimensions has in this form."""
        return -(-dimensions // 8) if self is Dtype.BITS else dimensions

    @property
    def numpy(self) -> np.dtype[Any]:
        """The type of one value, as numpy has it."""
        return np.dtype(np.uint8 if self is Dtype.BITS else self.value)


def quantize(vectors: NDArray[np.float32], dtype: Dtype) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return vectors in a form: values (n, width), and the scale of each for int8, float32 (n,), else `None`.

    A zero vector has the scale 0. `values * scale` is nearest to what it was.
    """
    match dtype:
        case Dtype.BITS:
            return np.packbits(vectors > 0, axis=1), None
        case Dtype.INT8:
            largest = np.abs(vectors).max(axis=1, initial=0.0)
            scales = (largest / 127.0).astype(np.float32)
            safe = np.where(scales > 0, scales, np.float32(1.0))
            return np.rint(vectors / safe[:, None]).clip(-127, 127).astype(np.int8), scales
        case _:
            return np.ascontiguousarray(vectors, dtype.numpy), None


def dequantize(
    values: NDArray[Any], scales: NDArray[np.float32] | None, dtype: Dtype, dimensions: int
) -> NDArray[np.float32]:
    """Return what a form says of the vectors: float32 (n, dimensions). A bit reads as -1 or 1."""
    if dtype is Dtype.BITS:
        bits = np.unpackbits(values, axis=1, count=dimensions)
        return (bits.astype(np.float32) * 2) - 1
    wide = values.astype(np.float32)
    return wide if scales is None else wide * scales[:, None]
