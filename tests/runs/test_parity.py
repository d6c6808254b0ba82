"""The certificate's sample: which rows, how they compare, and what several add up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.runs.parity import EACH_BLOCK, FIRST_BLOCK, Sample, choose, compare, together
from embatch.vectors import normalize


@given(st.integers(0, 30_000), st.integers(0, 5))
def test_rows_are_spread_and_within(rows: int, block: int) -> None:
    """As many as wanted or there are, each once, the same every time."""
    chosen = choose(rows, block)
    assert chosen == sorted(set(chosen)) == choose(rows, block)
    assert len(chosen) == min(rows, FIRST_BLOCK if block == 0 else EACH_BLOCK)
    assert all(0 <= row < rows for row in chosen)


def test_equal_vectors_are_sound_and_others_are_not() -> None:
    """Shifted by one row, the vectors belong to other texts, and the least cosine says so."""
    vectors = normalize(np.random.default_rng(1).normal(size=(8, 16)))
    same = compare(vectors, vectors.copy(), 40, 0.5)
    assert same == Sample(8, 1.0, 1.0, 1.0, 1.0, 40, 0.5)
    assert same.sound(0.9999)
    shifted = compare(vectors, np.roll(vectors, 1, axis=0), 40, 0.5)
    assert not shifted.sound(0.9)


def test_what_is_no_number_is_not_sound() -> None:
    """NaN has nothing in common with anything."""
    vectors = np.ones((2, 3), np.float32)
    broken = vectors.copy()
    broken[0, 0] = np.nan
    found = compare(broken, vectors, 1, 0.1)
    assert found.cosine_least == -1.0
    assert found.norm_least == 0.0


def test_samples_add_up() -> None:
    """Least and most over all, means by how many texts stand behind them."""
    one, two = Sample(1, 0.9, 0.9, 1.0, 1.0, 5, 0.1), Sample(3, 0.8, 1.0, 0.5, 2.0, 5, 0.2)
    found = together([None, one, two])
    assert found is not None
    assert replace(found, cpu_seconds=0.3) == Sample(4, 0.8, 0.975, 0.5, 2.0, 10, 0.3)
    assert found.cpu_seconds == pytest.approx(0.3)
    assert together([None]) is None
