"""How well each row's vector fits its own text, told by rows that the judging map has never seen.

The rows are dealt to folds by chance. Those of a fold are judged by a map learned from the others and from
earlier rows; how well a row fits is counted in deviations from how well it fits the texts of others, so that
a vector at the wrong text has a mean of nought and a deviation of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.alignment.ridge import Moments, RidgeMap, leading
from embatch.runs.alignment.spool import CHUNK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embatch.runs.alignment.spool import Spool

FOLDS: Final = 5
PARTNERS: Final = 300
"""Rows that a row is compared with to know how a wrong text looks."""
_FEW: Final = 300
"""Fewer rows are judged by the map of earlier rows alone, where there are enough of them."""
LEAST: Final = 1_000
"""Fewer rows in all, earlier ones included, are not judged."""
_STRIPE: Final = 512
_NEVER: Final = -99.0


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """Rows of the same model that were found to belong together before."""

    features: NDArray[np.float16]
    vectors: NDArray[np.float16]
    """Leading dimensions, of length one."""

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class _Fold:
    """A map, and the rows beside which it is used: where their vectors and their texts stand."""

    map: RidgeMap
    vectors: NDArray[np.float32]
    texts: NDArray[np.float32]


class Fit:
    """The rows of one check, each judged. Rows are numbered as they were given."""

    def __init__(
        self,
        features: Spool,
        vectors: NDArray[np.float32],
        earlier: EarlierRows | None = None,
        seed: int = 0,
        folds: int = FOLDS,
    ) -> None:
        """Args: row i of `vectors`, float32 (n, any), is of row i of `features`; `seed` deals the folds."""
        self._features, self._vectors = features, vectors
        random = np.random.default_rng(seed)
        rows = len(features)
        known = 0 if earlier is None else len(earlier)
        count = 1 if rows < _FEW and known >= LEAST else folds
        self._fold = random.permutation(rows) % count
        self._folds = [
            self._beside(number, learned, earlier, random)
            for number, learned in enumerate(self._learned(count, earlier))
        ]
        self.z = np.empty(rows, np.float32)
        """How well each row's vector fits its text, in deviations; about 0 where it is another's."""
        self._of_texts = np.empty((2, rows), np.float32)
        """Mean and deviation of how each text fits the vectors of others."""
        self._judge()

    def _learned(self, count: int, earlier: EarlierRows | None) -> list[RidgeMap]:
        dimensions = leading(self._vectors[:1]).shape[1]
        parts = [Moments.none(self._features.width, dimensions) for _ in range(count)]
        whole = Moments.none(self._features.width, dimensions)
        if earlier is not None:
            for first in range(0, len(earlier), CHUNK):
                some = slice(first, first + CHUNK)
                whole.add(earlier.features[some].astype(np.float32), earlier.vectors[some].astype(np.float32))
        if count == 1:
            return [RidgeMap.learned(whole)]
        for first, chunk in self._features.chunks():
            own = self._fold[first : first + len(chunk)]
            given = leading(self._vectors[first : first + len(chunk)])
            for number, part in enumerate(parts):
                part.add(chunk[own == number], given[own == number])
        for part in parts:
            whole = whole.plus(part)
        return [RidgeMap.learned(whole.plus(part, -1)) for part in parts]

    def _beside(
        self, number: int, learned: RidgeMap, earlier: EarlierRows | None, random: np.random.Generator
    ) -> _Fold:
        own = np.flatnonzero(self._fold == number)
        chosen = np.sort(random.permutation(own)[:PARTNERS])
        vectors = learned.given(leading(self._vectors[chosen]))
        texts = learned.expected(self._features.take(chosen))
        lacking = PARTNERS // 3 - len(chosen)
        if lacking > 0 and earlier is not None:
            more = random.permutation(len(earlier))[:lacking]
            vectors = np.vstack([vectors, learned.given(earlier.vectors[more].astype(np.float32))])
            texts = np.vstack([texts, learned.expected(earlier.features[more].astype(np.float32))])
        return _Fold(learned, vectors, texts)

    def _judge(self) -> None:
        for first, chunk in self._features.chunks():
            own = self._fold[first : first + len(chunk)]
            given = leading(self._vectors[first : first + len(chunk)])
            for number, fold in enumerate(self._folds):
                at = np.flatnonzero(own == number)
                vectors, texts = fold.map.given(given[at]), fold.map.expected(chunk[at])
                mine, others = _of_others(vectors, fold.texts), _of_others(texts, fold.vectors)
                self._of_texts[:, first + at] = others
                self.z[first + at] = _deviations((vectors * texts).sum(axis=1), mine, others)

    def gains(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Return what exchanging its vector with another's would gain each of some rows, and with which.

        The gain is in deviations, both rows' fits together; only rows among those given are exchanged.
        """
        count = len(rows)
        if count < 2:
            return np.full(count, _NEVER, np.float32), np.arange(count)
        given, chosen = leading(self._vectors[rows]), self._features.take(rows)
        fits = np.empty((count, count), np.float32)
        """How the vector of each row (down) fits the text of each (across)."""
        for number, fold in enumerate(self._folds):
            at = np.flatnonzero(self._fold[rows] == number)
            if not len(at):
                continue
            vectors, texts = fold.map.given(given), fold.map.expected(chosen[at])
            mine, others = _of_others(vectors, fold.texts), self._of_texts[:, rows[at]]
            fits[:, at] = _deviations(vectors @ texts.T, mine[:, :, None], others[:, None, :])
        own = np.diag(fits).copy()
        best, partner = np.empty(count, np.float32), np.empty(count, np.intp)
        for first in range(0, count, _STRIPE):
            stripe = slice(first, first + _STRIPE)
            gain = fits[stripe] + fits[:, stripe].T - own[stripe, None] - own[None]
            gain[np.arange(len(gain)), np.arange(first, first + len(gain))] = _NEVER
            best[stripe], partner[stripe] = gain.max(axis=1), gain.argmax(axis=1)
        return best, rows[partner]


def _of_others(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return mean and deviation of how each row fits the others, float32 (2, n)."""
    found = rows @ others.T
    return np.stack([found.mean(axis=1), found.std(axis=1)])


def _deviations(
    found: NDArray[np.float32], mine: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return fits as deviations from what chance gives both sides, of which `mine` is the vectors'."""
    fits: NDArray[np.float32] = (found - 0.5 * (mine[0] + others[0])) / np.sqrt(
        0.5 * (mine[1] ** 2 + others[1] ** 2) + 1e-12
    )
    return fits
