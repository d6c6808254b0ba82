"""Rows embedded again beside what the batch gave them: what is equal, and which vector belongs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.alignment.ridge import leading, unit
from embatch.runs.alignment.sampling import Why
from embatch.runs.alignment.thresholds import COMPARABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from embatch.runs.alignment.survey import Survey

_TIMES: Final = 3.0
"""So many times as far apart as random rows are, a vector is another one."""
_OF_NEIGHBOURS: Final = 0.01
"""The same for a service that mostly repeats itself to the last bit: a share of what lies between two
texts."""
_WELL_PLACED: Final = 2.0
"""Rows above this z say what equal means; nearly all misplaced ones lie below."""
_AT_ONCE: Final = 8_192


class Outcome(StrEnum):
    """What comparing says."""

    SOUND = "sound"
    DAMAGED = "damaged"
    NOT_COMPARABLE = "not comparable"
    """The service does not repeat itself, or what answers at once is another model: nothing is said of
    damage."""
    IN_DOUBT = "in doubt"
    """Nothing was compared, and the survey looks wrong."""
    NOT_CHECKED = "not checked"
    """Nothing was compared."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One row that was embedded again."""

    row: int
    why: Why
    cosine: float
    """Between the two vectors of its text."""
    nearest: int
    """The row whose vector in the batch is nearest to the new one."""
    nearest_cosine: float
    equal: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing a few rows says of all of them."""

    outcome: Outcome
    compared: tuple[Compared, ...]
    equal_from: float | None
    """Least cosine at which two vectors of one text count as equal; `None` where nothing can be said."""

    @property
    def misplaced(self) -> tuple[Compared, ...]:
        """The rows whose vectors are not those of their texts."""
        return tuple(one for one in self.compared if not one.equal) if self.outcome is Outcome.DAMAGED else ()


def compare(
    again: Mapping[int, NDArray[np.float32]],
    reasons: Mapping[int, Why],
    vectors: NDArray[np.float32],
    survey: Survey | None,
) -> Comparison:
    """Compare vectors that were computed again with those of the batch.

    What equal means is told by the random rows that the survey does not speak against, never by a fixed
    number. Where these scatter below 0.99 nothing is comparable, unless the new vectors are found at other
    rows or the survey says the same of all rows: then the order is lost.

    Args:
        again: the new vector of each row, float32 (dimensions,).
        reasons: why each of them was chosen.
        vectors: float32 (n, dimensions) of the batch, of different texts.
        survey: what all rows say; `None` where they were too few.
    """
    if not again:
        return Comparison(Outcome.NOT_CHECKED, (), None)
    rows = np.array(sorted(again), np.intp)
    new = unit(np.stack([again[row] for row in rows.tolist()]).astype(np.float32))
    own = (new * leading(vectors[rows], None)).sum(axis=1)
    nearest, at, between = _nearest(new, vectors)
    random = np.array([reasons[row] is Why.RANDOM for row in rows.tolist()])
    if survey is not None and survey.trusted and (well := random & (survey.z[rows] >= _WELL_PLACED)).any():
        random = well
    # A quarter of them may be misplaced, and what equal means is still told by the others.
    apart = float(np.quantile(1.0 - own[random], 0.75, method="lower")) if random.any() else 1.0
    if apart <= 1.0 - COMPARABLE:
        equal_from = 1.0 - max(_TIMES * apart, _OF_NEIGHBOURS * between)
        equal = own >= equal_from
        outcome = Outcome.SOUND if equal.all() else Outcome.DAMAGED
    else:
        equal_from = None
        equal = (at == rows) | (nearest < COMPARABLE)
        if survey is not None and survey.trusted and "median" in survey.alarms:
            equal &= own > 1.0 - 0.5 * between
        outcome = Outcome.NOT_COMPARABLE if equal.all() else Outcome.DAMAGED
    compared = tuple(
        Compared(row, reasons[row], round(float(mine), 6), other, round(float(theirs), 6), bool(same))
        for row, mine, other, theirs, same in zip(
            rows.tolist(), own, at.tolist(), nearest, equal, strict=True
        )
    )
    return Comparison(outcome, compared, None if equal_from is None else round(equal_from, 6))


def _nearest(
    new: NDArray[np.float32], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.intp], float]:
    """Return the largest cosine of each new vector in the batch, whose it is, and 1 less the median one."""
    best, at = np.full(len(new), -2.0, np.float32), np.zeros(len(new), np.intp)
    medians = []
    for first in range(0, len(vectors), _AT_ONCE):
        cosines = new @ leading(vectors[first : first + _AT_ONCE], None).T
        medians.append(float(np.median(cosines)))
        highest = cosines.argmax(axis=1)
        found = cosines[np.arange(len(new)), highest]
        better = found > best
        best[better], at[better] = found[better], first + highest[better]
    return best, at, 1.0 - float(np.median(medians))
