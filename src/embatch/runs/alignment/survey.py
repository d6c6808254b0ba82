"""What the check over all rows says: where it looks wrong, and whether it could have seen anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.alignment.fit import LEAST, Fit
from embatch.runs.alignment.spool import Spool
from embatch.runs.alignment.thresholds import (
    CANDIDATE_Z,
    CANDIDATES,
    GAIN,
    GUARD_MOST,
    GUARD_ROWS,
    LOW_ROWS,
    LOW_SHARE,
    LOW_Z,
    MEDIAN_LEAST,
    STRETCH_LEAST,
    STRETCH_ROWS,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embatch.runs.alignment.fit import EarlierRows

_SPREAD_OF_MEDIAN: Final = 1.25


@dataclass(frozen=True, slots=True)
class Survey:
    """How well the vector of each row fits its text. Rows are numbered as they were given."""

    z: NDArray[np.float32]
    gain: NDArray[np.float32]
    """What exchanging the row's vector with its `partner`'s would gain both; -inf where the row fits well."""
    partner: NDArray[np.intp]
    stretches: tuple[tuple[int, int], ...]
    """First row and the one behind the last of rows that fit badly together."""
    earlier: int
    """Rows of before that helped to judge."""
    guard: float
    """Median z of the same rows with their vectors shuffled."""

    @property
    def median(self) -> float:
        """The median z: how much the check can see in these texts."""
        return float(np.median(self.z)) if len(self.z) else 0.0

    @property
    def trusted(self) -> bool:
        """Whether the shuffled control looks as it must; else the survey is worth nothing."""
        rows = max(1, min(len(self.z), GUARD_ROWS))
        return abs(self.guard) <= GUARD_MOST + 4 * _SPREAD_OF_MEDIAN / math.sqrt(rows)

    @property
    def alarms(self) -> tuple[str, ...]:
        """What looks wrong in words that stay: `median`, `stretch`, `low`, `exchange`."""
        low = int((self.z < LOW_Z).sum())
        found = {
            "median": self.median < MEDIAN_LEAST,
            "stretch": bool(self.stretches),
            "low": low > max(LOW_ROWS, LOW_SHARE * len(self.z)),
            "exchange": bool((self.gain > GAIN).any()),
        }
        return tuple(name for name, there in found.items() if there)


def survey(
    features: Spool, vectors: NDArray[np.float32], earlier: EarlierRows | None, seed: int = 0
) -> Survey | None:
    """Judge all rows by each other and by earlier ones; `None` where they are too few in all.

    Args:
        features: of the texts.
        vectors: float32 (n, any), row i of text i.
        earlier: rows of the same model that were verified before.
        seed: deals folds and draws the control; the same one gives the same answer.
    """
    rows = len(features)
    known = 0 if earlier is None else len(earlier)
    if not rows or rows + known < LEAST:
        return None
    fit = Fit(features, vectors, earlier, seed)
    gain, partner = np.full(rows, -np.inf, np.float32), np.arange(rows)
    doubted = np.flatnonzero(fit.z < CANDIDATE_Z)
    if len(doubted) > CANDIDATES:
        doubted = np.sort(doubted[np.argsort(fit.z[doubted], kind="stable")[:CANDIDATES]])
    gain[doubted], partner[doubted] = fit.gains(doubted)
    guard = _shuffled(features, vectors, earlier, seed)
    return Survey(fit.z, gain, partner, _stretches(fit.z), known, guard)


def _shuffled(features: Spool, vectors: NDArray[np.float32], earlier: EarlierRows | None, seed: int) -> float:
    """Return the median z of some of the rows, each with the vector of another."""
    random = np.random.default_rng([seed, 1])
    chosen = np.sort(random.permutation(len(features))[:GUARD_ROWS])
    control = Spool(features.width)
    control.append(features.take(chosen))
    shuffled = vectors[random.permutation(chosen)]
    return float(np.median(Fit(control, shuffled, earlier, seed, folds=2).z))


def _stretches(z: NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """Return the runs of rows whose windows of some twenty fit badly on average; rows of two may meet."""
    if len(z) < STRETCH_ROWS:
        return ()
    sums = np.cumsum(np.concatenate([[0.0], z.astype(np.float64)]))
    means = (sums[STRETCH_ROWS:] - sums[:-STRETCH_ROWS]) / STRETCH_ROWS
    within = np.zeros(len(z) + 1, np.int64)
    bad = np.flatnonzero(means < STRETCH_LEAST)
    np.add.at(within, bad, 1)
    np.add.at(within, bad + STRETCH_ROWS, -1)
    edges = np.diff((np.cumsum(within)[:-1] > 0).astype(np.int8), prepend=0, append=0)
    return tuple(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))
