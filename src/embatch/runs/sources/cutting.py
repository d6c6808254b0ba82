"""Where a block of rows ends: by its rows and by the bytes of its texts, whichever comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ENDLESS: Final = 1 << 62


def text_bytes(text: str | None) -> int:
    """Return the bytes of a text in UTF-8; none for a row without."""
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def running_bytes(texts: Sequence[str | None]) -> NDArray[np.int64]:
    """Return, for each text, the bytes of UTF-8 up to its end, int64 (texts,)."""
    return np.cumsum(np.array([text_bytes(text) for text in texts], np.int64))


@dataclass(slots=True)
class Space:
    """What a block still takes."""

    rows: int
    bytes: int
    empty: bool = True

    @classmethod
    def of(cls, known: int | None, rows: int, size: int) -> Space:
        """Return the space of a block without a row yet: of `known` rows where that is not for us to say."""
        return cls(rows, size) if known is None else cls(known, _ENDLESS)

    def fitting(self, ends: NDArray[np.int64], start: int) -> int:
        """Return how many rows from `start` on fit; the first one of a block always does.

        Args:
            ends: as `running_bytes` gives them.
            start: a place in them.
        """
        before = int(ends[start - 1]) if start else 0
        count = int(np.searchsorted(ends, before + self.bytes, side="right")) - start
        return min(max(count, 1 if self.empty else 0), self.rows, len(ends) - start)

    def take(self, ends: NDArray[np.int64], start: int, count: int) -> int:
        """Take rows, and return the place behind them."""
        end = start + count
        self.bytes -= int(ends[end - 1]) - (int(ends[start - 1]) if start else 0)
        self.rows, self.empty = self.rows - count, False
        return end
