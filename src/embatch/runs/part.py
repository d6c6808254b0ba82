"""The rows of a finished block as the ledger keeps them: ids, native vectors, errors and token counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.client.results import BatchResult
    from embatch.runs.sources import Rows


@dataclass(slots=True)
class Part:
    """Consecutive rows of a run's input and what became of them; row i of each column belongs together."""

    ids: pa.Array[Any]
    vectors: NDArray[np.float32]
    """float32 (rows, native), zeros where there is an error; (rows, 0) where no row has a vector."""
    errors: list[str | None]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    """Whether another try can change anything: the row has a text, and nothing was found at fault in it."""

    @classmethod
    def of(cls, rows: Rows) -> Part:
        """Return rows that nothing was done about yet: those that cannot be read have their reason."""
        count = len(rows.texts)
        return cls(
            rows.ids,
            np.zeros((count, 0), np.float32),
            [
                rows.faults.get(at, None if text is not None else "no text")
                for at, text in enumerate(rows.texts)
            ],
            np.zeros(count, np.int32),
            np.zeros(count, np.bool_),
            np.array([text is not None for text in rows.texts], np.bool_),
        )

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which rows have an error, bool (rows,)."""
        return np.array([error is not None for error in self.errors], np.bool_)

    def fill(self, places: Mapping[int, int], result: BatchResult) -> None:
        """Put a batch's outcome at the rows that were sent: `places[row]` is the request with its text."""
        found = result.to_numpy(failed="nan")
        errors = dict(result.failed_responses)
        at, of = np.array(list(places), np.intp), np.array(list(places.values()), np.intp)
        if len(errors) < len(found) and self.vectors.shape[1] != found.shape[1]:
            # The first vectors of the block; an earlier try of it gave none.
            self.vectors = np.zeros((len(self.errors), found.shape[1]), np.float32)
        good = np.array([request not in errors for request in of.tolist()], np.bool_)
        if good.any():
            self.vectors[at[good]] = found[of[good]]
        self.tokens[at], self.truncated[at] = result.tokens[of], result.truncated[of]
        for row, request in places.items():
            error = errors.get(request)
            self.errors[row] = None if error is None else error.message
            self.readable[row] = error is None or error.retryable

    @property
    def to_mend(self) -> list[int]:
        """Rows that failed for what is in them: only whoever has the input can change that."""
        found: list[int] = np.flatnonzero(self.failed & ~self.readable).tolist()
        return found

    def record(self) -> pa.RecordBatch:
        """Return the part as it is stored: with its vectors, for a retry writes the whole block again."""
        columns: dict[str, Any] = {
            "id": self.ids,
            "error": pa.array(self.errors, pa.string()),
            "tokens": pa.array(self.tokens),
            "truncated": pa.array(self.truncated),
            "readable": pa.array(self.readable),
        }
        if self.vectors.shape[1]:
            flat = pa.array(np.ascontiguousarray(self.vectors).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1])
        return pa.RecordBatch.from_pydict(columns)

    @classmethod
    def read(cls, record: pa.RecordBatch) -> Part:
        """Return a stored part; its vectors are a copy."""
        vectors = np.zeros((record.num_rows, 0), np.float32)
        if "embedding" in record.schema.names:
            column: Any = record.column("embedding")
            vectors = np.array(column.values, np.float32).reshape(record.num_rows, -1)
        flags = [record.column(name).to_numpy(zero_copy_only=False) for name in ("truncated", "readable")]
        return cls(
            record.column("id"),
            vectors,
            record.column("error").to_pylist(),
            np.array(record.column("tokens"), np.int32),
            *(np.array(flag, np.bool_) for flag in flags),
        )


def distinct(texts: Sequence[str | None], rows: Sequence[int]) -> tuple[list[str], dict[int, int]]:
    """Return the different texts of some rows, and for each row which of them it has."""
    places: dict[str, int] = {}
    of: dict[int, int] = {}
    for row in rows:
        text = texts[row]
        if text is not None:
            of[row] = places.setdefault(text, len(places))
    return list(places), of


def to_mend(record: pa.RecordBatch, first: int) -> Iterator[tuple[int, str]]:
    """Yield row number and error of each stored row that only whoever has the input can change.

    Args:
        record: a stored part.
        first: the number of its first row.
    """
    errors, readable = record.column("error"), record.column("readable")
    for at in pc.indices_nonzero(pc.and_(errors.is_valid(), pc.invert(readable))).to_pylist():
        yield first + at, errors[at].as_py()
