"""Cuts a batch into shards when it is accepted: by its content alone, and never again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embatch.shard import REQUESTS, UNNUMBERED, completed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from embatch.shard import RequestRow

SHARD_BYTES: Final = 512 * 1024
"""UTF-8 bytes of text after which a shard is cut: some seconds of work."""
SHARD_REQUESTS: Final = 8192
"""Requests after which a shard is cut all the same, so that very short texts do not make one huge shard."""

_ROW_BYTES: Final = 64
"""What a request counts for beside what it says."""


@dataclass(slots=True)
class ShardCutter:
    """Cuts a stream of requests into payload shards; the cut depends on nothing but the requests.

    `add` and `add_columns` give full shards when they are complete, `rest` what is left at the end. Requests
    are cut alike whether they come one by one or by columns.
    """

    limit_bytes: int = SHARD_BYTES
    limit_requests: int = SHARD_REQUESTS
    next_index: int = 0
    _columns: list[pa.RecordBatch] = field(default_factory=list)
    """Of `REQUESTS` without its index: what came before `_rows`."""
    _rows: list[RequestRow] = field(default_factory=list)
    _bytes: int = 0
    _count: int = 0

    def add(self, row: RequestRow) -> pa.RecordBatch | None:
        """Take one more request; return a shard if this one completes it."""
        self._rows.append(row)
        self._count += 1
        # A row without a text carries an error, and others a long title: all counts, so shards stay bounded.
        beside = len(row.metadata or "") + len(row.key or "") + len(row.title or "")
        self._bytes += _ROW_BYTES + beside + (len(row.text.encode()) if row.text is not None else 0)
        return self.rest() if self._full() else None

    def add_columns(self, given: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Take requests, columns as in `GIVEN`, none of them at fault; yield the shards they complete."""
        ends = np.cumsum(_sizes(given))
        begin = 0
        while begin < given.num_rows:
            before = int(ends[begin - 1]) if begin else 0
            # The request that reaches the limit still belongs to the shard.
            reached = int(np.searchsorted(ends, before + self.limit_bytes - self._bytes)) + 1
            end = min(reached, begin + self.limit_requests - self._count, given.num_rows)
            self._settle()
            self._columns.append(_sound(given.slice(begin, end - begin)))
            self._bytes += int(ends[end - 1]) - before
            self._count += end - begin
            begin = end
            if self._full() and (shard := self.rest()) is not None:
                yield shard

    def rest(self) -> pa.RecordBatch | None:
        """Return the shard begun so far, `None` if there is none, and start the next."""
        if not self._count:
            return None
        self._settle()
        first = self.next_index
        index = pa.array(np.arange(first, first + self._count))
        (columns,) = pa.Table.from_batches(self._columns).combine_chunks().to_batches()
        self._columns, self._bytes, self._count, self.next_index = [], 0, 0, first + self._count
        return pa.RecordBatch.from_arrays([index, *columns.columns], schema=REQUESTS)

    def _full(self) -> bool:
        return self._bytes >= self.limit_bytes or self._count >= self.limit_requests

    def _settle(self) -> None:
        """Make columns of the rows."""
        if self._rows:
            self._columns.append(_columns(self._rows))
            self._rows = []


def _columns(rows: Sequence[RequestRow]) -> pa.RecordBatch:
    faults = [row.fault for row in rows]
    columns: dict[str, list[Any]] = {
        "key": [row.key for row in rows],
        "metadata": [row.metadata for row in rows],
        "text": [row.text for row in rows],
        "task_type": [row.task_type for row in rows],
        "title": [row.title for row in rows],
        "dimensions": [row.dimensions for row in rows],
        "auto_truncate": [row.auto_truncate for row in rows],
        "error_code": [fault and fault.code.number for fault in faults],
        "error_reason": [fault and fault.reason and fault.reason.value for fault in faults],
        "error_message": [fault and fault.message for fault in faults],
    }
    return pa.RecordBatch.from_pydict(columns, schema=UNNUMBERED)


def _sound(given: pa.RecordBatch) -> pa.RecordBatch:
    uncut = pa.array(np.ones(given.num_rows, np.bool_))
    return completed(given.append_column("auto_truncate", uncut), UNNUMBERED)


def _sizes(given: pa.RecordBatch) -> NDArray[np.int64]:
    """Return what each request counts for in the size of its shard, as `ShardCutter.add` counts it."""
    sizes = np.full(given.num_rows, _ROW_BYTES, np.int64)
    for name in ("text", "key", "metadata", "title"):
        column: Any = given.column(name)
        if column.null_count < given.num_rows:
            length = pc.binary_length(column) if name == "text" else pc.utf8_length(column)
            sizes += length.fill_null(0).to_numpy(zero_copy_only=False)
    return sizes
