"""Texts, and vectors that follow from their words as a model's do, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embatch.vectors import normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 64


@dataclass(frozen=True)
class Rows:
    """Different texts and the vector of each."""

    texts: list[str]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, first: int, behind: int) -> Rows:
        """Return consecutive rows."""
        return Rows(self.texts[first:behind], self.vectors[first:behind])

    def moved(self, order: NDArray[np.intp]) -> Rows:
        """Return the same texts with the vectors in another order."""
        return Rows(self.texts, self.vectors[order])

    def exchanged(self, one: int, other: int) -> Rows:
        """Return the same texts with two vectors in each other's place."""
        order = np.arange(len(self))
        order[[one, other]] = other, one
        return self.moved(order)


def rows(count: int, seed: int = 0, noise: float = 0.5) -> Rows:
    """Return texts of six to eighteen words; a vector is the mean of its words' own, and noise beside them.

    The words are a thousand of one to four syllables, the same for every seed; common ones are short.
    """
    words = np.random.default_rng(7)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "en", "ar")]
    vocabulary = list(
        dict.fromkeys(
            "".join(words.choice(syllables, 1 + at // 300)) + "aeiou"[at % 5] for at in range(1_200)
        )
    )
    meanings = words.normal(size=(len(vocabulary), WIDTH))
    share = 1 / (30.0 + np.arange(len(vocabulary)))
    random = np.random.default_rng([seed, 9])
    texts: dict[str, NDArray[np.float64]] = {}
    while len(texts) < count:
        chosen = random.choice(len(vocabulary), random.integers(6, 19), p=share / share.sum())
        spoken = meanings[chosen].mean(axis=0)
        strayed = random.normal(size=WIDTH) * noise * np.sqrt(np.mean(spoken**2))
        texts[" ".join(vocabulary[at] for at in chosen)] = spoken + strayed
    return Rows(list(texts), normalize(np.stack(list(texts.values()))))
