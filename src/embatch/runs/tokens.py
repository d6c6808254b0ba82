"""How many tokens texts have, where nobody counts them: reckoned from bytes, and learned from replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

USUAL_BYTES: Final = 3.3
"""Bytes of UTF-8 that are a token on average, over nine kinds of text and three public tokenizers."""
FEWEST: Final = 0.7
"""The true number as a part of the reckoned one, at the least of these 27: Russian, 128,000 pieces."""
MOST: Final = 1.7
"""At the most: Arabic, 32,000 pieces. In Latin and Cyrillic script it is 1.12."""
_SURE: Final = 1.05
"""What is learned from some blocks of a run is taken for the others with so much more."""


def estimate(texts: Iterable[str]) -> int:
    """Return about how many tokens texts have; see `FEWEST` and `MOST` for how far that can be off."""
    count = size = 0
    for text in texts:
        count, size = count + 1, size + len(text.encode(errors="surrogatepass"))
    return count + round(size / USUAL_BYTES)


@dataclass(slots=True)
class TokenRate:
    """Tokens by what `InFlight.tokens` reckons, which is high for most texts: learned as replies come in."""

    _reckoned: int = 0
    _counted: int = 0

    def learn(self, reckoned: int, counted: int) -> None:
        """Take in what texts that were reckoned to have so many tokens really had."""
        if counted > 0:
            self._reckoned, self._counted = self._reckoned + reckoned, self._counted + counted

    def tokens(self, reckoned: int) -> int:
        """Return how many tokens to expect, rather too many than too few."""
        if not self._counted:
            return reckoned
        return round(reckoned * _SURE * self._counted / max(1, self._reckoned))
