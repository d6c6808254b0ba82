"""What rows embedded again say: equal is what this service's random rows are, and scatter is no damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from embatch.runs.alignment.comparison import Outcome, compare
from embatch.runs.alignment.sampling import Why
from embatch.runs.alignment.survey import Survey
from embatch.vectors import normalize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from embatch.runs.alignment.comparison import Comparison

ROWS = 200
RANDOM = tuple(range(0, 100, 10))


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    """Of two hundred texts."""
    return normalize(np.random.default_rng(4).normal(size=(ROWS, 64)))


def _strayed(vectors: NDArray[np.float32], cosine: float, seed: int = 1) -> NDArray[np.float32]:
    """Return the same vectors, each as far away as a cosine says."""
    aside = np.random.default_rng(seed).normal(size=vectors.shape)
    aside -= (aside * vectors).sum(axis=1, keepdims=True) * vectors
    return normalize(cosine * vectors + np.sqrt(1 - cosine**2) * normalize(aside))


def _survey(median: float) -> Survey:
    z = np.full(ROWS, median, np.float32)
    return Survey(z, np.full(ROWS, -9.0, np.float32), np.arange(ROWS), (), 0, 0.0)


def _compare(
    truth: NDArray[np.float32],
    given: NDArray[np.float32],
    more: Mapping[int, Why] | None = None,
    survey: Survey | None = None,
) -> Comparison:
    reasons = dict.fromkeys(RANDOM, Why.RANDOM) | dict(more or {})
    return compare({row: truth[row] for row in reasons}, reasons, given, survey)


def test_a_service_that_repeats_itself_is_sound(vectors: NDArray[np.float32]) -> None:
    """All rows are their texts' own, also where it repeats itself roughly."""
    for cosine in (1.0, 0.9999, 0.995):
        found = _compare(_strayed(vectors, cosine), vectors)
        assert found.outcome is Outcome.SOUND
        assert found.equal_from is not None
        assert cosine - 0.04 < found.equal_from < cosine


@pytest.mark.parametrize("cosine", [1.0, 0.9999, 0.995])
def test_one_vector_at_a_wrong_text_is_damage(vectors: NDArray[np.float32], cosine: float) -> None:
    """Pointed at or met by chance, and the row that has its vector is named."""
    given = vectors.copy()
    given[[RANDOM[0], 150]] = vectors[[150, RANDOM[0]]]
    found = _compare(_strayed(vectors, cosine), given, {150: Why.EXCHANGE, 151: Why.LOW}, _survey(5.0))
    assert found.outcome is Outcome.DAMAGED
    assert [(one.row, one.nearest) for one in found.misplaced] == [(RANDOM[0], 150), (150, RANDOM[0])]


def test_what_scatters_is_not_comparable(vectors: NDArray[np.float32]) -> None:
    """A service that gives a text another vector each time says nothing of the order, good or bad."""
    given = vectors.copy()
    given[[150, 160]] = vectors[[160, 150]]
    found = _compare(_strayed(vectors, 0.97), given, {150: Why.LOW}, _survey(5.0))
    assert found.outcome is Outcome.NOT_COMPARABLE
    assert found.equal_from is None
    assert not found.misplaced


def test_another_model_is_not_comparable(vectors: NDArray[np.float32]) -> None:
    """What answers at once may be another version: the batch fits its texts all the same."""
    other = normalize(np.random.default_rng(8).normal(size=vectors.shape))
    assert _compare(other, vectors, survey=_survey(5.0)).outcome is Outcome.NOT_COMPARABLE
    assert _compare(other, vectors).outcome is Outcome.NOT_COMPARABLE


def test_a_lost_order_is_damage_however_few_rows_there_are(vectors: NDArray[np.float32]) -> None:
    """Every vector is found at another row: that is no scatter."""
    assert _compare(vectors, np.roll(vectors, 1, axis=0)).outcome is Outcome.DAMAGED


def test_vectors_of_another_batch_are_damage(vectors: NDArray[np.float32]) -> None:
    """They are nobody's here, and the survey says that none of them fits its text."""
    foreign = normalize(np.random.default_rng(9).normal(size=vectors.shape))
    assert _compare(vectors, foreign, survey=_survey(0.0)).outcome is Outcome.DAMAGED


def test_a_few_misplaced_random_rows_do_not_say_what_equal_means(vectors: NDArray[np.float32]) -> None:
    """Two of ten are damage, and the level is that of the others."""
    given = vectors.copy()
    given[[RANDOM[0], RANDOM[1]]] = vectors[[RANDOM[1], RANDOM[0]]]
    found = _compare(_strayed(vectors, 0.9999), given)
    assert found.outcome is Outcome.DAMAGED
    assert found.equal_from is not None
    assert found.equal_from > 0.98


def test_without_anything_compared_nothing_is_said(vectors: NDArray[np.float32]) -> None:
    """Not checked is not sound."""
    found = compare({}, {}, vectors, None)
    assert found.outcome is Outcome.NOT_CHECKED
    assert found.compared == ()
