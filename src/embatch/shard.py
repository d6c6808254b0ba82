"""The columns of a shard: consecutive requests of one batch, their results, and both joined for a reader.

A shard is the unit claimed, retried and stored. It is cut by UTF-8 bytes when the batch is accepted and
never cut again, so that an attempt repeated years later works the same texts in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from embatch.errors import RequestError

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
UNNUMBERED: Final = pa.schema(_REQUEST[1:])
"""A payload shard without its index."""

GIVEN: Final = pa.schema(
    [REQUESTS.field(name) for name in ("text", "key", "metadata", "task_type", "title", "dimensions")]
)
"""Requests as they are given by columns: not judged, not numbered."""

PRECOMPUTED: Final = ("frozen_embedding", "frozen_tokens", "frozen_truncated")
"""Columns that a payload shard may have besides: vectors known when it was written, null elsewhere. They are
part of it from then on: every attempt gives the same bytes, whatever becomes of where they came from. Stored
shards of earlier versions have these names."""


IDENTITY: Final = b"identity"
"""Name of what a result shard's file says of the engine that computed it: `Description.identity`."""
COMPUTED_BY: Final = b"computed_by"
"""Name of what a shard's file says of all that made its vectors, the precomputed ones of a payload shard: see
`engine.protocol.computed_by`."""


def precomputed(requests: pa.RecordBatch) -> NDArray[np.bool_]:
    """Return which requests of a payload shard come with their vector, bool (n,)."""
    if PRECOMPUTED[0] not in requests.schema.names:
        return np.zeros(requests.num_rows, np.bool_)
    return np.asarray(requests.column(PRECOMPUTED[0]).is_valid(), np.bool_)


def said_of(shard: pa.RecordBatch, name: bytes) -> str | None:
    """Return what a shard's file says of itself under a name; `None` where it says nothing."""
    found = (shard.schema.metadata or {}).get(name)
    return None if found is None else found.decode()


def without_stale(requests: pa.RecordBatch, computed_by: str) -> pa.RecordBatch:
    """Return a payload shard without precomputed vectors that something else has computed."""
    if said_of(requests, COMPUTED_BY) in (None, computed_by):
        return requests
    return requests.drop_columns([name for name in PRECOMPUTED if name in requests.schema.names])


def with_precomputed(
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
            PRECOMPUTED[0],
            pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), vectors.shape[1], mask=missing),
        )
    ]
    for name, values, kind in ((PRECOMPUTED[1], tokens, np.int32), (PRECOMPUTED[2], truncated, np.bool_)):
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
