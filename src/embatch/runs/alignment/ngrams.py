"""Texts as what they are spelled of: words and runs of characters, hashed to a few hundred numbers.

Every word and every run of three to five characters of a case-folded text is hashed to one of 512 numbers,
with a sign. A text gives the same numbers on every machine and in any company, so they can be kept and put
beside those of another day.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.alignment.ridge import unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SLOTS: Final = 512
CHARACTERS: Final = 4_000
"""Characters of a text that are read: about as much as models take of it."""
_AT_ONCE: Final = 1 << 18
"""Characters hashed at once, which take some hundred bytes each."""
_RUNS: Final = (3, 4, 5)
_BASE: Final = 0x9E3779B97F4A7C15
_INVERSE: Final = pow(_BASE, -1, 1 << 64)
_PLANE: Final = 0x10000


def sketch(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the n-grams of each text, float32 (n, SLOTS): words and runs of characters at like weight.

    Rows have about length one; a text without any letter is all zeros.
    """
    found = np.zeros((len(texts), SLOTS), np.float32)
    for first, part in _parts(texts):
        found[first : first + len(part)] = _sketched(part)
    return found


def _parts(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield consecutive texts, folded and cut, with the place of the first of them."""
    held: list[str] = []
    first = length = 0
    for text in texts:
        # Whatever surrounds a word, it begins and ends with one space.
        folded = f" {' '.join(text[:CHARACTERS].casefold().split())} "
        if held and length + len(folded) > _AT_ONCE:
            yield first, held
            first, held, length = first + len(held), [], 0
        held.append(folded)
        length += len(folded)
    if held:
        yield first, held


def _sketched(texts: list[str]) -> NDArray[np.float32]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    row = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    # Sums of code points times powers of an odd number, modulo 2**64: the hash of any run of characters is
    # the difference of two of them, moved to the beginning by the inverse power.
    powers, inverse = _powers(_BASE, len(codes)), _powers(_INVERSE, len(codes) + 1)
    sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum((codes + np.uint64(1)) * powers, dtype=np.uint64)]
    )
    edges = np.diff(_letters()[np.minimum(codes, _PLANE - 1)].astype(np.int8), prepend=0, append=0)
    begin, end = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    words = _summed(len(texts), row[begin], (sums[end] - sums[begin]) * inverse[begin])
    runs = np.zeros_like(words)
    for length in _RUNS:
        at = np.arange(max(0, len(codes) - length + 1))
        at = at[row[at] == row[at + length - 1]]
        hashed = (sums[at + length] - sums[at]) * inverse[at] + np.uint64(length)
        runs += _summed(len(texts), row[at], hashed)
    return (unit(words) + unit(runs)) / np.float32(np.sqrt(2))


def _summed(rows: int, row: NDArray[np.intp], hashed: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return a signed count for every row and slot."""
    mixed = hashed ^ (hashed >> np.uint64(31))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    slot = (mixed >> np.uint64(55)).astype(np.intp)  # nine bits, and a tenth for the sign
    sign = 1.0 - 2.0 * ((mixed >> np.uint64(54)) & np.uint64(1)).astype(np.float64)
    counted = np.bincount(row * SLOTS + slot, weights=sign, minlength=rows * SLOTS)
    return counted.reshape(rows, SLOTS).astype(np.float32)


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return base**0, base**1 and so on, modulo 2**64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


@cache
def _letters() -> NDArray[np.bool_]:
    """Whether each code point of the first plane is a letter or a digit; later planes count as its last."""
    found = np.array([chr(code).isalnum() for code in range(_PLANE)], np.bool_)
    found[-1] = True  # most of them are letters of living or dead scripts
    return found
