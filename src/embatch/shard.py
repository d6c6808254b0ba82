"""The columns of a shard: consecutive requests of one batch, their results, and both joined for a reader.

A shard is the unit claimed, retried and stored. It is cut by UTF-8 bytes when the batch is accepted and
never cut again, so that an attempt repeated years later works the same texts in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from embatch.errors import RequestError

SHARD_BYTES: Final = 512 * 1024
"""UTF-8 bytes of text after which a shard is cut: some seconds of work."""
SHARD_REQUESTS: Final = 8192
"""Requests after which a shard is cut all the same, so that very short texts do not make one huge shard."""

_FAULT: Final[list[pa.Field[Any]]] = [
    pa.field("error_code", pa.int32()),  # google.rpc number; null where there is no fault
    pa.field("error_reason", pa.string()),  # a word of errors.Reason
    pa.field("error_message", pa.string()),
]

_REQUEST: Final[list[pa.Field[Any]]] = [
    pa.field("index", pa.int64(), nullable=False),
    pa.field("key", pa.string()),
    pa.field("metadata", pa.string()),  # the JSON object as it came
    pa.field("text", pa.string()),  # null exactly where error_code is set: found faulty on acceptance
    pa.field("task_type", pa.string()),
    pa.field("title", pa.string()),
    pa.field("dimensions", pa.int32()),
    pa.field("auto_truncate", pa.bool_(), nullable=False),  # false: a text the model would cut fails instead
    *_FAULT,
]
REQUESTS: Final = pa.schema(_REQUEST)
"""A payload shard. Row order is request order; `index` is consecutive."""
_UNNUMBERED: Final = pa.schema(_REQUEST[1:])
_ROW_BYTES: Final = 64
"""What a request counts for beside what it says."""

GIVEN: Final = pa.schema(
    [REQUESTS.field(name) for name in ("text", "key", "metadata", "task_type", "title", "dimensions")]
)
"""Requests as they are given by columns: not judged, not numbered."""

FROZEN: Final = ("frozen_embedding", "frozen_tokens", "frozen_truncated")
"""Columns that a payload shard may have besides: vectors known when it was written, null elsewhere. They are
part of it from then on: every attempt gives the same bytes, whatever becomes of where they came from."""


IDENTITY: Final = b"identity"
"""Name of what a result shard's file says of the engine that computed it: `Description.identity`."""
COMPUTED_BY: Final = b"computed_by"
"""Name of what a shard's file says of all that made its vectors, the frozen ones of a payload shard: see
`pool.embedding.computed_by`."""


def frozen(requests: pa.RecordBatch) -> NDArray[np.bool_]:
    """Return which requests of a payload shard come with their vector, bool (n,)."""
    if FROZEN[0] not in requests.schema.names:
        return np.zeros(requests.num_rows, np.bool_)
    return np.asarray(requests.column(FROZEN[0]).is_valid(), np.bool_)


def said_of(shard: pa.RecordBatch, name: bytes) -> str | None:
    """Return what a shard's file says of itself under a name; `None` where it says nothing."""
    found = (shard.schema.metadata or {}).get(name)
    return None if found is None else found.decode()


def thawed(requests: pa.RecordBatch, computed_by: str) -> pa.RecordBatch:
    """Return a payload shard without frozen vectors that something else has computed."""
    if said_of(requests, COMPUTED_BY) in (None, computed_by):
        return requests
    return requests.drop_columns([name for name in FROZEN if name in requests.schema.names])


def freeze(
    requests: pa.RecordBatch,
    known: NDArray[np.bool_],
    vectors: NDArray[np.float32],
    tokens: NDArray[np.int32],
    truncated: NDArray[np.bool_],
) -> pa.RecordBatch:
    """Return a payload shard whose `known` requests, bool (n,), come with vectors, tokens and flags.

    Args:
        requests: a shard without such columns.
        known: for which requests.
        vectors: float32 (known, dimensions), in the order of the requests.
        tokens: of each known one.
        truncated: of each known one.
    """
    count, missing = requests.num_rows, pa.array(~known)
    full = np.zeros((count, vectors.shape[1]), np.float32)
    full[known] = vectors
    columns: list[tuple[str, Any]] = [
        (
            FROZEN[0],
            pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), vectors.shape[1], mask=missing),
        )
    ]
    for name, values, kind in ((FROZEN[1], tokens, np.int32), (FROZEN[2], truncated, np.bool_)):
        spread = np.zeros(count, kind)
        spread[known] = values
        columns.append((name, pa.array(spread)))
    for name, column in columns:
        requests = requests.append_column(name, column)
    return requests


def results_schema(dimensions: int) -> pa.Schema:
    """Return the columns of a result shard of a model with this many native dimensions.

    Row i belongs to row i of the payload shard. `embedding` is null exactly where `error_code` is set.
    """
    columns: list[pa.Field[Any]] = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), dimensions)),
        pa.field("tokens", pa.int32(), nullable=False),  # tokens the model saw; 0 on error
        pa.field("truncated", pa.bool_(), nullable=False),  # the text was longer than the model takes
        *_FAULT,
    ]
    return pa.schema(columns)


def failed_results(first: int, count: int, dimensions: int, error: RequestError) -> pa.RecordBatch:
    """Return results in which `count` requests, the first with index `first`, all have the same error."""
    columns: dict[str, list[object]] = {
        "index": list(range(first, first + count)),
        "embedding": [None] * count,
        "tokens": [0] * count,
        "truncated": [False] * count,
        "error_code": [error.code.number] * count,
        "error_reason": [error.reason.value if error.reason else None] * count,
        "error_message": [error.message] * count,
    }
    return pa.RecordBatch.from_pydict(columns, schema=results_schema(dimensions))


def refused(requests: pa.RecordBatch, dimensions: int, error: RequestError) -> pa.RecordBatch:
    """Return results in which all requests have the same error, but for those that were faulty before."""
    import pyarrow.compute as pc  # noqa: PLC0415  (clients import this module, and need none of it)

    failed = failed_results(0, requests.num_rows, dimensions, error)
    columns: dict[str, Any] = dict(zip(failed.schema.names, failed.columns, strict=True))
    faulty = requests.column("error_code").is_valid()
    for fault in _FAULT:
        columns[fault.name] = pc.if_else(faulty, requests.column(fault.name), columns[fault.name])
    columns["index"] = requests.column("index")
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=failed.schema)


class Done(NamedTuple):
    """Work of a shard that was finished since it was told of last."""

    rows: int
    """Requests that have an embedding or an error now."""
    tokens: int = 0
    """Tokens of these requests, as the model saw them; those of equal texts count each time."""
    cpu_seconds: float = 0.0
    """What engine processes spent on them."""

    def __add__(self, other: object) -> Done:
        """Return both together."""
        if not isinstance(other, Done):
            return NotImplemented
        return Done(self.rows + other.rows, self.tokens + other.tokens, self.cpu_seconds + other.cpu_seconds)


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request on its way into a payload shard: decoded, judged, not yet stored."""

    text: str | None
    """`None` exactly where `fault` is set."""
    key: str | None = None
    metadata: str | None = None
    """JSON text of an object."""
    task_type: str | None = None
    title: str | None = None
    dimensions: int | None = None
    fault: RequestError | None = None
    auto_truncate: bool = True
    """Whether a text longer than the model takes is cut, and flagged; else it fails."""


def completed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with all columns of a schema, in their order; those it has not are null."""
    found: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
    return pa.RecordBatch.from_arrays(
        [found.get(one.name, pa.nulls(batch.num_rows, one.type)) for one in schema], schema=schema
    )


def rows_of(given: pa.RecordBatch) -> Iterator[RequestRow]:
    """Yield the requests of columns as in `GIVEN`, one by one.

    Texts may be bytes: of one that is not UTF-8 what cannot be read stands there as lone surrogates.
    """
    for text, *said in zip(*(given.column(name).to_pylist() for name in GIVEN.names), strict=True):
        yield RequestRow(text.decode(errors="surrogateescape") if isinstance(text, bytes) else text, *said)


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
    return pa.RecordBatch.from_pydict(columns, schema=_UNNUMBERED)


def _sound(given: pa.RecordBatch) -> pa.RecordBatch:
    uncut = pa.array(np.ones(given.num_rows, np.bool_))
    return completed(given.append_column("auto_truncate", uncut), _UNNUMBERED)


def _sizes(given: pa.RecordBatch) -> NDArray[np.int64]:
    """Return what each request counts for in the size of its shard, as `ShardCutter.add` counts it."""
    import pyarrow.compute as pc  # noqa: PLC0415  (clients import this module, and need none of it)

    sizes = np.full(given.num_rows, _ROW_BYTES, np.int64)
    for name in ("text", "key", "metadata", "title"):
        column: Any = given.column(name)
        if column.null_count < given.num_rows:
            length = pc.binary_length(column) if name == "text" else pc.utf8_length(column)
            sizes += length.fill_null(0).to_numpy(zero_copy_only=False)
    return sizes
