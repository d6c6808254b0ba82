"""What was embedded of shards that were not finished, for their next attempt.

An endpoint that takes fewer texts a minute than a shard has would else never finish one: each attempt would
begin with the first text again. What is kept of those is found by the texts themselves and by what embeds
them, lives in memory, and is given out once.

A service that closes leaves its parts to the next one, as columns: `leave` and `find`. Where bytes depend on
what runs together only whole micro-batches are left, and only the same plan takes them up again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from embatch.pool.protocol import Skipped
from embatch.shard import COMPUTED_BY, said_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.errors import RequestError
    from embatch.pool.poison import Group
    from embatch.pool.work import Outcome

MOST_BYTES: Final = 256 << 20
_TEXTS: Final = b"texts"
_PLAN: Final = b"plan"
_CPU: Final = b"cpu_seconds"


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


class Plan(NamedTuple):
    """The micro-batches of a shard."""

    digest: str
    """See `packing.digest`."""
    groups: Sequence[Group]


@dataclass(frozen=True, slots=True)
class KeptGroups:
    """The whole micro-batches of a shard that have run."""

    skipped: Skipped
    rows: NDArray[np.int64]
    """Theirs."""
    vectors: NDArray[np.float32]
    """(rows, dimensions), in the order of `rows`."""
    cpu_seconds: float
    """What the engine spent on the shard so far."""


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


def leave(whose: str, texts: Sequence[str], outcome: Outcome, plan: Plan | None) -> pa.RecordBatch | None:
    """Return what the next attempt need not do again, without what has an error; `None`: nothing.

    Args:
        whose: what embeds the texts, as for `Kept.put`.
        texts: all of the shard's distinct texts.
        outcome: how far they came.
        plan: what they ran in; `None` where bytes do not depend on that.
    """
    good = outcome.done.copy()
    good[list(outcome.errors)] = False
    group = np.full(len(texts), -1, np.int32)
    if plan is not None:
        for number, one in enumerate(plan.groups):
            if good[list(one.rows)].all():
                group[list(one.rows)] = number
        good &= group >= 0
    rows = np.flatnonzero(good)
    if not len(rows):
        return None
    vectors = outcome.vectors[rows]
    columns: dict[str, pa.Array[Any]] = {
        "group": pa.array(group[rows]),
        "row": pa.array(rows),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        "tokens": pa.array(outcome.tokens[rows]),
        "truncated": pa.array(outcome.truncated[rows]),
    }
    said = {
        COMPUTED_BY: whose.encode(),
        _TEXTS: _key(whose, texts).hex().encode(),
        _PLAN: b"" if plan is None else plan.digest.encode(),
        _CPU: repr(outcome.cpu_seconds).encode(),
    }
    return pa.RecordBatch.from_pydict(columns).replace_schema_metadata(said)


def find(left: pa.RecordBatch | None, whose: str, texts: Sequence[str]) -> KeptRows | KeptGroups | None:
    """Return what `leave` left of the same texts for the same `whose`; `None`: it is of something else."""
    if left is None or said_of(left, _TEXTS) != _key(whose, texts).hex():
        return None
    embedding: Any = left.column("embedding")
    rows = left.column("row").to_numpy()
    vectors = np.asarray(embedding.flatten(), np.float32).reshape(len(rows), -1)
    if plan := said_of(left, _PLAN):
        groups = np.unique(left.column("group").to_numpy()).tolist()
        return KeptGroups(Skipped(plan, groups), rows, vectors, float(said_of(left, _CPU) or 0.0))
    truncated = left.column("truncated").to_numpy(zero_copy_only=False)
    return KeptRows(rows, vectors, left.column("tokens").to_numpy(), truncated, {})


def _key(whose: str, texts: Sequence[str]) -> bytes:
    digest = hashlib.sha256(whose.encode())
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()
