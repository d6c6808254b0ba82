"""What a text looks like from here: numbers that cost no call, the same for the same text at any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from embatch.runs.alignment import ngrams
from embatch.runs.alignment.spool import CHUNK, Spool
from embatch.runs.alignment.static_vectors import StaticVectors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_NGRAMS: Final = "ngrams-1"
"""Another number for another way to hash: what was kept of earlier runs is of no use then."""


@dataclass(frozen=True, slots=True)
class Features:
    """N-grams alone, or beside static vectors where the extra `hosted` is installed."""

    static: StaticVectors | None

    @classmethod
    def installed(cls) -> Self:
        """Return the best that is installed."""
        return cls(StaticVectors.installed())

    @property
    def name(self) -> str:
        """What they are: rows of different names cannot be put beside each other."""
        return _NGRAMS if self.static is None else f"{_NGRAMS}+{self.static.name}"

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return ngrams.SLOTS + (0 if self.static is None else self.static.width)

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of texts, float32 (n, width)."""
        sketched = ngrams.sketch(texts)
        return sketched if self.static is None else np.hstack([sketched, self.static.embed(texts)])

    def spooled(self, texts: Sequence[str], folder: Path | None = None) -> Spool:
        """Return the features of very many texts, in memory or in a file of a folder; close it."""
        spool = Spool(self.width, folder)
        for first in range(0, len(texts), CHUNK):
            spool.append(self.of(texts[first : first + CHUNK]))
        return spool
