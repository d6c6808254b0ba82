"""Which rows are embedded again, and that they are never more than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.runs.alignment.sampling import Budget, Verify, Why, choose, equal_vectors
from embatch.runs.alignment.survey import Survey

BLOCKS = st.lists(st.integers(0, 30_000), min_size=1, max_size=30)


@given(
    blocks=BLOCKS, known=st.booleans(), verify=st.sampled_from(Verify), calls=st.none() | st.integers(0, 100)
)
def test_no_run_pays_for_more_than_it_may(
    blocks: list[int], *, known: bool, verify: Verify, calls: int | None
) -> None:
    """Whatever its blocks are and whether its end is known: 40, 1 % of its rows, or what the user said."""
    budget = Budget(verify, calls)
    spent = before = 0
    for rows in blocks:
        spent += budget.of_block(rows, before, spent, sum(blocks) if known else None)
        before += rows
    total = sum(blocks)
    most = {Verify.FULL: 40, Verify.SAMPLE: 20, Verify.NONE: 0}[verify]
    if verify is not Verify.NONE and calls is not None:
        assert spent <= calls
    else:
        assert spent <= min(most, -(-total // 100))
    if known and blocks[0] and verify is not Verify.NONE and calls != 0:
        assert spent > 0


@pytest.mark.parametrize(
    ("rows", "total", "found"), [(50_000, 1_000_000, 2), (50_000, None, 20), (3_000, 3_000, 30), (60, 60, 1)]
)
def test_a_block_gets_its_share(rows: int, total: int | None, found: int) -> None:
    """Of a run of twenty blocks a twentieth; half of it where nobody knows how many will come."""
    assert Budget().of_block(rows, 0, 0, total) == found


def _survey(z: list[float], gain: list[float], partner: list[int], guard: float = 0.0) -> Survey:
    return Survey(
        np.array(z, np.float32), np.array(gain, np.float32), np.array(partner), ((400, 440),), 0, guard
    )


@pytest.fixture
def pointed() -> Survey:
    """A thousand rows of which two gain by an exchange, one fits badly, and forty do together."""
    z, gain, partner = [5.0] * 1_000, [-np.inf] * 1_000, list(range(1_000))
    z[7], z[90], z[500] = 0.5, 0.4, -1.0
    gain[7] = gain[90] = 6.0
    partner[7], partner[90] = 90, 7
    return _survey(z, gain, partner)


def test_rows_are_chosen_where_the_survey_points(pointed: Survey) -> None:
    """Exchanged rows come with their partners; the worst, a stretch and equal vectors have their turns."""
    chosen = choose(1_000, 20, pointed, [(33, 34, 35)], seed=1)
    assert len(chosen) == 20
    assert {7, 90, 500, 33, 34} <= set(chosen)
    assert any(400 <= row < 440 for row, why in chosen.items() if why is Why.STRETCH)
    assert sum(why is Why.RANDOM for why in chosen.values()) == 5
    assert chosen == choose(1_000, 20, pointed, [(33, 34, 35)], seed=1)


def test_few_calls_go_to_the_likeliest_rows(pointed: Survey) -> None:
    """Of four one is random and the others are the exchange and the worst row."""
    assert {7, 90, 500} <= set(choose(1_000, 5, pointed, seed=1))


def test_without_a_survey_that_can_be_trusted_chance_decides(pointed: Survey) -> None:
    """One whose control failed points nowhere."""
    untrusted = _survey(pointed.z.tolist(), pointed.gain.tolist(), pointed.partner.tolist(), guard=3.0)
    for survey in (None, untrusted):
        chosen = choose(1_000, 20, survey, seed=1)
        assert set(chosen.values()) == {Why.RANDOM}
        assert len(chosen) == 20


@given(st.integers(0, 12), st.integers(0, 20))
def test_no_row_is_embedded_twice(rows: int, most: int) -> None:
    """There may be fewer rows than calls."""
    assert len(choose(rows, most, None)) == min(rows, most)


def test_equal_vectors_of_other_texts_are_found() -> None:
    """Case and spaces make no other text."""
    vectors = np.random.default_rng(1).normal(size=(6, 100)).astype(np.float32)
    vectors[4] = vectors[1]
    vectors[5] = vectors[2]
    texts = ["a", "Two  words", "c", "d", "two words", "other"]
    assert equal_vectors(vectors, texts) == [(2, 5)]
