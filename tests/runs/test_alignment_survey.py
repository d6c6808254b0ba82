"""The check over all rows: what it sees of damage and says of honest rows, and that no row judges itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from alignment_rows import Rows, rows

from embatch.runs.alignment.features import Features
from embatch.runs.alignment.fit import EarlierRows, Fit
from embatch.runs.alignment.ridge import leading
from embatch.runs.alignment.spool import Spool
from embatch.runs.alignment.survey import Survey, survey
from embatch.runs.alignment.thresholds import GAIN, LOW_Z

if TYPE_CHECKING:
    from collections.abc import Callable

NGRAMS = Features(None)


def _survey(given: Rows, earlier: EarlierRows | None = None) -> Survey | None:
    with NGRAMS.spooled(given.texts) as spool:
        return survey(spool, given.vectors, earlier)


def _kept(given: Rows) -> EarlierRows:
    features = NGRAMS.of(given.texts)
    return EarlierRows(features.astype(np.float16), leading(given.vectors).astype(np.float16))


@pytest.fixture(scope="module")
def honest() -> Rows:
    """As many rows as a batch needs to judge itself."""
    return rows(1_200)


def _shifted(given: Rows) -> Rows:
    order = np.arange(len(given))
    order[700:740] = np.roll(order[700:740], 1)
    return given.moved(order)


def _reversed(given: Rows) -> Rows:
    order = np.arange(len(given))
    order[300:330] = order[300:330][::-1]
    return given.moved(order)


def _shuffled(given: Rows) -> Rows:
    return given.moved(np.random.default_rng(1).permutation(len(given)))


def _one_percent(given: Rows) -> Rows:
    order, chosen = np.arange(len(given)), np.random.default_rng(2).permutation(len(given))[:16]
    order[chosen] = order[np.roll(chosen, 1)]
    return given.moved(order)


def _repeated(given: Rows) -> Rows:
    order = np.arange(len(given))
    order[np.random.default_rng(3).permutation(len(given))[:16]] = 5
    return given.moved(order)


def test_honest_rows_raise_no_alarm(honest: Rows) -> None:
    """They fit their texts, and the control with shuffled vectors lies at nought."""
    found = _survey(honest)
    assert found is not None
    assert found.alarms == ()
    assert found.median > 3
    assert abs(found.guard) < 0.2
    assert found.trusted


@pytest.mark.parametrize(
    ("damage", "alarm"),
    [
        (_shifted, "stretch"),
        (_reversed, "stretch"),
        (_shuffled, "median"),
        (_one_percent, "low"),
        (_repeated, "low"),
    ],
)
def test_damage_is_alarmed(honest: Rows, damage: Callable[[Rows], Rows], alarm: str) -> None:
    """Each kind by the alarm that is meant for it."""
    found = _survey(damage(honest))
    assert found is not None
    assert alarm in found.alarms


def test_two_exchanged_rows_gain_most_by_being_exchanged_back(honest: Rows) -> None:
    """Among all rows these two stand out, and each names the other."""
    found = _survey(honest.exchanged(40, 1_100))
    assert found is not None
    assert set(np.argsort(-found.gain)[:2].tolist()) == {40, 1_100}
    assert (found.partner[40], found.partner[1_100]) == (1_100, 40)
    assert found.gain[40] > GAIN
    assert "exchange" in found.alarms


def test_a_stretch_is_named_by_its_rows(honest: Rows) -> None:
    """The rows that were shifted lie within it, and few others do."""
    found = _survey(_shifted(honest))
    assert found is not None
    ((first, last),) = found.stretches
    assert first <= 702
    assert last >= 738
    assert last - first < 80


def test_nobody_judges_himself(honest: Rows) -> None:
    """Shuffled vectors fit like chance whatever is learned from them: mean nought, deviation one."""
    shuffled = _shuffled(honest)
    with NGRAMS.spooled(shuffled.texts) as spool:
        fit = Fit(spool, shuffled.vectors)
    assert abs(float(np.median(fit.z))) < 0.2
    assert 0.8 < float(np.std(fit.z)) < 1.2
    assert 0.6 < float((fit.z < LOW_Z).mean()) < 0.78


def test_a_control_that_does_not_lie_at_nought_is_not_trusted(honest: Rows) -> None:
    """Rows that tell the map themselves what to say of them look sound however they are shuffled."""
    found = _survey(honest)
    assert found is not None
    told = Survey(found.z, found.gain, found.partner, found.stretches, 0, guard=2.9)
    assert not told.trusted


def test_few_rows_are_judged_by_earlier_ones() -> None:
    """Ninety rows say nothing alone; beside verified ones of the model an exchange stands out."""
    few, earlier = rows(90, seed=5), _kept(rows(1_100, seed=6))
    assert _survey(few) is None
    found = _survey(few.exchanged(11, 61), earlier)
    assert found is not None
    assert found.earlier == 1_100
    assert set(np.argsort(-found.gain)[:2].tolist()) == {11, 61}
    assert found.trusted
    assert float(np.median(found.z)) > 2.5


def test_the_same_rows_get_the_same_answer(honest: Rows) -> None:
    """However often they are asked about, and from memory as from a file."""
    few, earlier = honest.part(0, 310), _kept(honest.part(310, 1_200))
    filed = Spool(NGRAMS.width, held=10)
    filed.append(NGRAMS.of(few.texts))
    with filed, NGRAMS.spooled(few.texts) as held:
        found = [
            survey(spool, few.vectors, earlier, seed) for spool, seed in ((held, 4), (filed, 4), (held, 5))
        ]
    first, again, other = [one.z for one in found if one is not None]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_leading_dimensions_are_worked_on() -> None:
    """What stands behind the 768th changes nothing."""
    wide = np.random.default_rng(2).normal(size=(3, 900)).astype(np.float32)
    changed = wide.copy()
    changed[:, 768:] = 0.0
    assert np.array_equal(leading(wide), leading(changed))
    assert leading(wide).shape == (3, 768)
