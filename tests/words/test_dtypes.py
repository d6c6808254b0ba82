"""The forms of numbers: how near they stay to float32, and that neighbours stay neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embatch.dtypes import Dtype, dequantize, quantize
from embatch.vectors import normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTORS = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 6), st.integers(1, 40)), elements=st.floats(-1, 1, width=32)
)


@given(VECTORS, st.sampled_from(list(Dtype)))
def test_shapes_and_types(vectors: NDArray[np.float32], numbers: Dtype) -> None:
    """Values are as wide as the form says; only int8 has a scale; the shape comes back."""
    values, scales = quantize(vectors, numbers)
    assert values.shape == (len(vectors), numbers.width(vectors.shape[1]))
    assert values.dtype == numbers.numpy
    assert (scales is not None) == (numbers is Dtype.INT8)
    back = dequantize(values, scales, numbers, vectors.shape[1])
    assert back.shape == vectors.shape
    assert back.dtype == np.float32


@given(VECTORS)
def test_int8_is_within_half_a_step(vectors: NDArray[np.float32]) -> None:
    """Each number is off by at most half the scale; a zero vector stays one."""
    values, scales = quantize(vectors, Dtype.INT8)
    assert scales is not None
    off = np.abs(dequantize(values, scales, Dtype.INT8, vectors.shape[1]) - vectors)
    assert (off <= scales[:, None] * 0.5001 + 1e-6).all()


def test_a_zero_vector_has_the_scale_0() -> None:
    """And float32 is what it was, bit for bit."""
    vectors = np.zeros((1, 3), np.float32)
    values, scales = quantize(vectors, Dtype.INT8)
    assert values.tolist() == [[0, 0, 0]]
    assert scales is not None
    assert scales.tolist() == [0.0]
    assert quantize(vectors, Dtype.FLOAT32)[0].tobytes() == vectors.tobytes()


def test_bits_are_signs_from_the_highest_on() -> None:
    """The ninth starts the second byte."""
    vector = np.array([[1, -1, 0, 2, -3, 1, 1, -1, 5]], np.float32)
    values, _ = quantize(vector, Dtype.BITS)
    assert values.tolist() == [[0b10010110, 0b10000000]]
    assert dequantize(values, None, Dtype.BITS, 9).tolist() == [[1, -1, -1, 1, -1, 1, 1, -1, 1]]


@pytest.mark.parametrize(("numbers", "least"), [(Dtype.FLOAT16, 0.99), (Dtype.INT8, 0.95), (Dtype.BITS, 0.3)])
def test_neighbours_stay_neighbours(numbers: Dtype, least: float) -> None:
    """Of the ten nearest among 2,000 clustered vectors, the share that each form still finds."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(50, 128))
    vectors = normalize(centres[random.integers(0, 50, 2000)] + 0.7 * random.normal(size=(2000, 128)))
    values, scales = quantize(vectors, numbers)
    back = normalize(dequantize(values, scales, numbers, 128))

    def ten(of: NDArray[np.float32]) -> list[set[int]]:
        scores = of[:100] @ of.T
        return [set(row) for row in np.argsort(-scores, axis=1)[:, :10].tolist()]

    shares = [len(mine & true) / 10 for mine, true in zip(ten(back), ten(vectors), strict=True)]
    assert np.mean(shares) >= least
