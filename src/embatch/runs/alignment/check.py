"""One block's check, from texts and vectors to a verdict and the rows that have to be embedded again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.alignment.comparison import Comparison, Outcome, compare
from embatch.runs.alignment.sampling import Verify, choose, equal_vectors
from embatch.runs.alignment.survey import survey
from embatch.runs.alignment.thresholds import COMPARABLE, DOUBTED_Z, GAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.runs.alignment.earlier import EarlierFile
    from embatch.runs.alignment.features import Features
    from embatch.runs.alignment.survey import Survey

MISPLACED: Final = "the vector that came for it is not its text's: embedded again alone it has another one"
DOUBTED: Final = "its vector is in doubt: others of its block belong to other texts"
BROKEN: Final = "the vector that came for it has no direction"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of the rows of one block. Rows are numbered as they were given."""

    outcome: Outcome
    rows: int
    """Different texts that were looked at."""
    survey: Survey | None
    """`None` where there was none, or its control did not look as it must."""
    comparison: Comparison
    faults: dict[int, str]
    """Why rows have to be embedded again."""
    features: str
    """What rows were judged by; empty where none were."""
    cpu_seconds: float
    """That the check took here."""


@dataclass(frozen=True, slots=True)
class Check:
    """How the blocks of one run are checked."""

    verify: Verify
    features: Features
    earlier: EarlierFile
    again: Callable[[list[str]], Sequence[NDArray[np.float32] | None]]
    """Embeds texts again at once: float32 (dimensions,) of each, `None` where it has none."""
    folder: Path | None = None
    """Where files for the time of the check are made; `None`: the system's."""

    def block(self, texts: Sequence[str], vectors: NDArray[np.float32], most: int, seed: int = 0) -> Checked:
        """Check the rows of a block, and keep them for later ones if nothing is wrong with them.

        Args:
            texts: of the rows, each different from the others.
            vectors: float32 (n, dimensions), of each text as the batch gave it.
            most: texts that may be embedded again.
            seed: of all that is drawn by chance.
        """
        started = time.process_time()
        directed = np.abs(np.nan_to_num(vectors, nan=0.0)).max(axis=1, initial=0.0) > 0
        directed &= np.isfinite(vectors).all(axis=1)
        kept = np.flatnonzero(directed)
        if len(kept) < len(texts):
            texts, vectors = [texts[row] for row in kept.tolist()], vectors[kept]
        found, comparison, spent = self._looked_at(texts, vectors, most, seed)
        faults = dict.fromkeys(np.flatnonzero(~directed).tolist(), BROKEN)
        faults |= {int(kept[row]): why for row, why in _faults(len(texts), found, comparison).items()}
        return Checked(
            _outcome(found, comparison, faults),
            len(directed),
            found,
            _renumbered(comparison, kept),
            faults,
            self.features.name if found is not None else "",
            time.process_time() - started - spent,
        )

    def _looked_at(
        self, texts: Sequence[str], vectors: NDArray[np.float32], most: int, seed: int
    ) -> tuple[Survey | None, Comparison, float]:
        if self.verify is not Verify.FULL or not texts:
            return None, *self._compared(texts, vectors, most, None, seed)
        with self.features.spooled(texts, self.folder) as spool:
            found = survey(spool, vectors, self.earlier.read(), seed)
            found = found if found is not None and found.trusted else None
            comparison, spent = self._compared(texts, vectors, most, found, seed)
            if comparison.outcome is Outcome.SOUND:
                self.earlier.add(spool, vectors, seed)
        return found, comparison, spent

    def _compared(
        self, texts: Sequence[str], vectors: NDArray[np.float32], most: int, found: Survey | None, seed: int
    ) -> tuple[Comparison, float]:
        """Embed some rows again and compare; also return the processor time of asking."""
        equal = equal_vectors(vectors, texts) if self.verify is Verify.FULL else []
        reasons = choose(len(texts), most, found, equal, seed)
        rows = sorted(reasons)
        before = time.process_time()
        new = self.again([texts[row] for row in rows]) if rows else []
        spent = time.process_time() - before
        given = {row: one for row, one in zip(rows, new, strict=True) if one is not None}
        return compare(given, reasons, vectors, found), spent


def _outcome(found: Survey | None, comparison: Comparison, faults: Mapping[int, str]) -> Outcome:
    if faults:
        return Outcome.DAMAGED
    looks_wrong = found is not None and not {"median", "stretch", "exchange"}.isdisjoint(found.alarms)
    unknown = comparison.outcome is Outcome.NOT_CHECKED
    return Outcome.IN_DOUBT if unknown and looks_wrong else comparison.outcome


def _faults(rows: int, found: Survey | None, comparison: Comparison) -> dict[int, str]:
    """Return the rows that cannot stay, once a vector was found at a wrong text."""
    misplaced = comparison.misplaced
    if not misplaced:
        return {}
    if found is None or "median" in found.alarms:
        doubted = set(range(rows))
    else:
        doubted = set(np.flatnonzero((found.z < DOUBTED_Z) | (found.gain > GAIN)).tolist())
        doubted |= set(found.partner[found.gain > GAIN].tolist())
        doubted |= {row for first, last in found.stretches for row in range(first, last)}
        doubted |= {one.nearest for one in misplaced if one.nearest_cosine > COMPARABLE}
    # What was embedded again and is the same is in no doubt.
    doubted -= {one.row for one in comparison.compared if one.equal}
    return dict.fromkeys(sorted(doubted), DOUBTED) | {one.row: MISPLACED for one in misplaced}


def _renumbered(comparison: Comparison, kept: NDArray[np.intp]) -> Comparison:
    compared = (
        replace(one, row=int(kept[one.row]), nearest=int(kept[one.nearest])) for one in comparison.compared
    )
    return replace(comparison, compared=tuple(compared))
