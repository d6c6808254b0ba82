"""What an endpoint embedded of shards that it did not let finish, for their next attempt.

An endpoint that takes fewer texts a minute than a shard has would else never finish one: each attempt would
begin with the first text again. What is kept is found by the texts themselves and by what embeds them, lives
in memory, and is given out once.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.errors import RequestError
    from embatch.pool.work import Outcome

MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The rows of a shard that have their outcome."""

    rows: NDArray[np.int64]
    """Ascending, those with an error among them."""
    vectors: NDArray[np.float32]
    """(rows, dimensions)."""
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: Mapping[int, RequestError]


class Kept:
    """Parts by shard. Thread-safe; the oldest go when there are more than `most_bytes` of vectors."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._parts: OrderedDict[bytes, KeptRows] = OrderedDict()

    def put(self, whose: str, texts: Sequence[str], outcome: Outcome) -> None:
        """Keep what of a shard has its outcome.

        Args:
            whose: what embeds the texts, prompts and limits included; see `embedding.computed_by`.
            texts: all of the shard's distinct texts.
            outcome: how far they came.
        """
        rows = np.flatnonzero(outcome.done)
        if not len(rows):
            return
        part = KeptRows(
            rows,
            outcome.vectors[rows],
            outcome.tokens[rows],
            outcome.truncated[rows],
            {row: error for row, error in outcome.errors.items() if outcome.done[row]},
        )
        with self._lock:
            self._parts[_key(whose, texts)] = part
            while self._parts and sum(one.vectors.nbytes for one in self._parts.values()) > self._most:
                self._parts.popitem(last=False)

    def take(self, whose: str, texts: Sequence[str]) -> KeptRows | None:
        """Return what is kept of a shard, and keep it no longer; `None`: nothing is."""
        with self._lock:
            if not self._parts:
                return None
        key = _key(whose, texts)
        with self._lock:
            return self._parts.pop(key, None)


def _key(whose: str, texts: Sequence[str]) -> bytes:
    digest = hashlib.sha256(whose.encode())
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()
