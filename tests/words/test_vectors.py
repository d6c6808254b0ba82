"""Vector arithmetic, for one and for many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embatch.errors import InvalidArgument
from embatch.vectors import ContentEmbedding, cosine, dot, euclidean, norm, normalize, truncate, unit

NUMBERS = st.floats(-1e6, 1e6, width=32)
MANY = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=NUMBERS)


@given(MANY)
def test_one_and_many_agree_bit_for_bit(vectors: np.ndarray) -> None:
    """A row gives the same bytes alone and among others."""
    for function in (norm, normalize):
        together = function(vectors)
        for row, alone in enumerate(vectors):
            assert function(alone).tobytes() == together[row].tobytes()
    assert (
        cosine(vectors[0], vectors).tobytes() == np.array([cosine(vectors[0], v) for v in vectors]).tobytes()
    )


@given(MANY)
def test_normalising_gives_length_one_or_keeps_zero(vectors: np.ndarray) -> None:
    """Every row ends at length 1 with its direction kept, or stays zero."""
    for before, after in zip(vectors, normalize(vectors), strict=True):
        if norm(before) == 0:
            assert not after.any()
        else:
            assert norm(after) == pytest.approx(1.0, abs=1e-5)
            assert cosine(before, after) == pytest.approx(1.0, abs=1e-5)


@given(MANY, st.integers(1, 20))
def test_truncating_takes_the_first_numbers_and_normalises(vectors: np.ndarray, dimensions: int) -> None:
    """Fewer dimensions are the leading ones at length 1; the native number changes nothing."""
    native = vectors.shape[1]
    if dimensions > native:
        with pytest.raises(InvalidArgument, match=f"1 to {native}") as caught:
            truncate(vectors, dimensions)
        assert caught.value.field == "output_dimensionality"
    elif dimensions == native:
        assert truncate(vectors, dimensions).tobytes() == vectors.tobytes()
    else:
        assert truncate(vectors, dimensions).tobytes() == normalize(vectors[:, :dimensions]).tobytes()


@given(hnp.arrays(np.float32, (2, 8), elements=NUMBERS))
def test_similarities_agree_with_their_definitions(pair: np.ndarray) -> None:
    """Cosine, dot and distance follow the textbook in float64, and cosine stays within -1 and 1."""
    a, b = pair.astype(np.float64)
    assert dot(*pair) == pytest.approx(a @ b, rel=1e-5, abs=1e-5)
    assert euclidean(*pair) == pytest.approx(np.linalg.norm(a - b), rel=1e-5, abs=1e-5)
    assert -1.0 <= cosine(*pair) <= 1.0
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    assert cosine(*pair) == pytest.approx(a @ b / lengths if lengths > 0 else 0.0, abs=1e-5)


def test_a_zero_vector_is_similar_to_nothing() -> None:
    """Cosine with a zero vector is 0, never NaN."""
    assert ContentEmbedding([0.0, 0.0]).cosine_similarity(ContentEmbedding([1.0, 0.0])) == 0.0
    assert not ContentEmbedding([0.0, 0.0]).normalize().values.any()


@pytest.mark.parametrize("name", ["cosine_similarity", "dot_product", "euclidean_distance"])
def test_unequal_lengths_are_refused_by_name(name: str) -> None:
    """Comparing 2 with 3 dimensions says what to ask for instead."""
    with pytest.raises(InvalidArgument, match=r"2 and 3 dimensions.*same output_dimensionality"):
        getattr(ContentEmbedding([1.0, 2.0]), name)(ContentEmbedding([1.0, 2.0, 3.0]))


def test_embeddings_compare_and_hash_by_their_bytes() -> None:
    """Equal numbers are equal embeddings; a table is refused."""
    assert ContentEmbedding([1.0, 2.0]) == ContentEmbedding(np.array([1, 2], np.float32))
    assert len({ContentEmbedding([1.0]), ContentEmbedding([1.0]), ContentEmbedding([2.0])}) == 2
    with pytest.raises(InvalidArgument, match="one list of numbers"):
        ContentEmbedding(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_dimensions_outside_the_native_range_are_refused(dimensions: int) -> None:
    """1 to native, and the message says so."""
    with pytest.raises(InvalidArgument, match="from 1 to 3"):
        ContentEmbedding([1.0, 2.0, 3.0]).truncate(dimensions)


def test_a_vector_of_length_1_is_left_alone() -> None:
    """To the bit; any other comes to length 1, but for zero, which has no direction."""
    there = normalize(np.array([1.0, 2.0, 3.0], np.float32))
    assert unit(there) is there
    assert unit(np.array([3.0, 4.0], np.float32)).tolist() == pytest.approx([0.6, 0.8])
    assert unit(np.zeros(2, np.float32)).tolist() == [0.0, 0.0]
