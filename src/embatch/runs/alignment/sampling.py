"""Which rows are embedded again, and how many: a few that look wrong, a few that say what equal means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from embatch.runs.alignment.survey import Survey

MOST: Final = 40
"""Texts of a run that are embedded again for its full check."""
SAMPLE: Final = 20
"""Texts of a run that are embedded again where only a sample is wanted."""
SHARE: Final = 0.01
"""Most of a run's rows that are embedded again, rounded up, unless somebody asks for more."""


class Verify(StrEnum):
    """How a run's vectors are checked."""

    FULL = "full"
    """All rows by each other, and some embedded again where that points."""
    SAMPLE = "sample"
    """Some random rows embedded again."""
    NONE = "none"


class Why(StrEnum):
    """Why a row is embedded again."""

    RANDOM = "random"
    EXCHANGE = "exchange"
    LOW = "low"
    STRETCH = "stretch"
    EQUAL = "equal"


_COMPARED: Final = 64
"""Leading numbers that tell two vectors apart."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many texts of a run may be embedded again. Counted over all its calls."""

    verify: Verify = Verify.FULL
    calls: int | None = None
    """Most of them, as the user gave it; `None` for 40 (20 of a sample), and no more than 1 % of the rows."""

    def of_run(self, rows: int) -> int:
        """Return how many texts of a run of so many rows may be embedded again."""
        if self.verify is Verify.NONE:
            return 0
        if self.calls is not None:
            return self.calls
        return min(MOST if self.verify is Verify.FULL else SAMPLE, -(-rows // round(1 / SHARE)))

    def of_block(self, rows: int, before: int, spent: int, total: int | None) -> int:
        """Return how many of them one block may have.

        A block has its share of a run whose length is known, and half of what is left of any other, so that
        later ones have some too; one at least while anything is left.

        Args:
            rows: of the block.
            before: rows of all blocks that were checked before.
            spent: texts that were embedded again for them.
            total: rows of the run; `None`: not known.
        """
        if not rows:
            return 0
        left = self.of_run(max(before + rows, total or 0)) - spent
        share = -(-left * rows // max(rows, total - before)) if total is not None else -(-left // 2)
        # Of a short run with an unknown end there may be no more.
        return max(0, min(left, self.of_run(before + rows) - spent, max(1, share)))


def choose(
    rows: int, most: int, survey: Survey | None, equal: Sequence[tuple[int, ...]] = (), seed: int = 0
) -> dict[int, Why]:
    """Return the rows to embed again, at most so many, and why each of them.

    A quarter is drawn at random, and says what equal means; of the others the rows take turns that gain most
    by an exchange, each with its partner, those that fit worst, those of a stretch, and those whose vectors
    are equal under different texts. Without a survey all but the equal ones are random.

    Args:
        rows: how many there are.
        most: texts that may be embedded again.
        survey: what all rows say.
        equal: groups of rows with one vector and different texts.
        seed: draws the random ones.
    """
    most = min(most, rows)
    drawn = np.random.default_rng([seed, 2]).permutation(rows)
    chosen: dict[int, Why] = {}
    for row in drawn[: -(-most // 4)].tolist():
        chosen[row] = Why.RANDOM
    for why, rows_of in _in_turn(survey, equal):
        for row in rows_of:
            if len(chosen) < most:
                chosen.setdefault(row, why)
    for row in drawn.tolist():
        if len(chosen) >= most:
            break
        chosen.setdefault(row, Why.RANDOM)
    return chosen


def _in_turn(
    survey: Survey | None, equal: Sequence[tuple[int, ...]]
) -> Iterator[tuple[Why, tuple[int, ...]]]:
    """Yield rows that look wrong, each kind of reason in its turn, and what has to be looked at together."""
    reasons: dict[Why, Iterator[tuple[int, ...]]] = {}
    if survey is not None and survey.trusted:
        reasons[Why.EXCHANGE] = _exchanged(survey)
        reasons[Why.LOW] = ((row,) for row in np.argsort(survey.z, kind="stable")[:MOST].tolist())
        reasons[Why.STRETCH] = (_within(stretch) for stretch in survey.stretches)
    reasons[Why.EQUAL] = (group[:2] for group in equal)
    while reasons:
        for why in list(reasons):
            rows = next(reasons[why], None)
            if rows is None:
                del reasons[why]
            else:
                yield why, rows


def _exchanged(survey: Survey) -> Iterator[tuple[int, ...]]:
    """Yield the rows that an exchange gains most, each with its partner."""
    for row in np.argsort(-survey.gain, kind="stable")[:MOST].tolist():
        if np.isfinite(survey.gain[row]):
            yield row, int(survey.partner[row])


def _within(stretch: tuple[int, int]) -> tuple[int, ...]:
    """Return two rows of a stretch, away from its ends, where rows may be sound."""
    first, last = stretch
    return first + (last - first) // 3, first + 2 * (last - first) // 3


def equal_vectors(vectors: NDArray[np.float32], texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return groups of rows that have one vector to four decimals and different texts, the largest first.

    Texts that differ in case or spaces alone are no different: models may take them for the same.
    """
    rounded = np.round(vectors[:, :_COMPARED], 4).astype(np.float16)
    kinds = (
        np.ascontiguousarray(rounded).view(np.dtype((np.void, rounded.shape[1] * rounded.itemsize))).ravel()
    )
    _, kind, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(counts[kind] > 1).tolist():
        groups.setdefault(int(kind[row]), []).append(row)
    found = []
    for rows in groups.values():
        different = {" ".join(texts[row].casefold().split()): row for row in rows}
        if len(different) > 1:
            found.append(tuple(different.values()))
    return sorted(found, key=len, reverse=True)
