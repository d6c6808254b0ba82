"""The results of a batch on their way out.

Payload and result shards are joined, checked by SHA-256, in order, one shard in memory at a time. No
database transaction is open meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from embatch.errors import Code, DataLoss, NotFound, Reason, RequestError
from embatch.shard import REQUESTS, failed_results, refused
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embatch.batch import Batch
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord, ShardRecord

_UNSERVED: Final = {
    State.CANCELLED: RequestError(
        Code.CANCELLED, Reason.CANCELLED, "the batch was cancelled before this request's turn"
    ),
    State.EXPIRED: RequestError(
        Code.DEADLINE_EXCEEDED, Reason.EXPIRED, "the batch expired before this request's turn"
    ),
    State.FAILED: RequestError(Code.INTERNAL, None, "the batch failed as a whole"),
}
LOST: Final = RequestError(
    Code.DATA_LOSS, Reason.DATA_LOSS, "the stored request does not match its checksum: submit it again"
)
"""What is said of a request whose payload shard is damaged or gone."""
_ECHOED: Final = ("key", "metadata", "dimensions")
_ERROR: Final = ("error_code", "error_reason", "error_message")
_COLUMNS: Final = ("embedding", "tokens", "truncated", *_ERROR)


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a batch."""

    batch: Batch
    dimensions: int
    """What the requests asked for: 0 native for all, n for all, -1 mixed."""
    native: int
    """Dimensions of the vectors in `parts`."""
    parts: Iterator[pa.RecordBatch]
    """Columns index, key, metadata, dimensions, embedding (list<float32>[native], null on error), tokens,
    truncated, error_code, error_reason, error_message. What a request asked for is not applied yet."""


def read_results(
    batch: Batch, record: BatchRecord, shards: Sequence[ShardRecord], blobs: Blobs, *, native: int
) -> Results:
    """Return the results of a final batch; files are read as `parts` is, which raises DataLoss.

    Args:
        batch: the batch as it is shown.
        record: the same as it is stored.
        shards: all of them, by number.
        blobs: where their files are.
        native: dimensions to assume where no shard was finished; those asked for, if they are more.
    """
    # A model that changed may have fewer than were asked for: such requests are errors.
    size = record.native_dimensions or max(native, record.dimensions)
    return Results(batch, min(record.dimensions, size), size, _parts(record, shards, blobs, size))


def unless_deleted(parts: Iterator[pa.RecordBatch], look: Callable[[], object]) -> Iterator[pa.RecordBatch]:
    """Yield the parts; files that went with their batch are no loss: `look` then raises NotFound."""
    try:
        yield from parts
    except DataLoss:
        try:
            look()
        except NotFound as gone:
            raise NotFound("the batch was deleted just now") from gone
        raise


def _parts(
    record: BatchRecord, shards: Sequence[ShardRecord], blobs: Blobs, native: int
) -> Iterator[pa.RecordBatch]:
    first = 0
    for shard in shards:
        yield _part(record, shard, blobs, first, native)
        first += shard.payload.request_count


def _part(record: BatchRecord, shard: ShardRecord, blobs: Blobs, first: int, native: int) -> pa.RecordBatch:
    count = shard.payload.request_count
    result = None if shard.result is None else blobs.read(shard.result.path, shard.result.digest)
    if result is not None and shard.result is not None and not shard.result.successful_count:
        result = _without_vectors(result, native)
    try:
        payload = blobs.read(shard.payload.path, shard.payload.digest)
    except DataLoss:
        # Vectors without their keys could be taken for others'. Errors cannot.
        if shard.result is not None and shard.result.successful_count:
            raise
        return _joined(first, None, failed_results(first, count, native, LOST) if result is None else result)
    if result is None:
        return _joined(first, payload, refused(payload, native, _UNSERVED[record.state]))
    kind: Any = result.schema.field("embedding").type
    if result.num_rows != count or payload.num_rows != count or kind.list_size != native:
        raise DataLoss(f"shard {shard.number} does not hold what was counted: submit the batch again")
    return _joined(first, payload, result)


def _without_vectors(results: pa.RecordBatch, native: int) -> pa.RecordBatch:
    """Return results that are errors alone with the batch's dimensions, whatever model stood behind them."""
    columns: list[Any] = [
        pa.nulls(results.num_rows, pa.list_(pa.float32(), native)) if name == "embedding" else column
        for name, column in zip(results.schema.names, results.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=results.schema.names)


def _joined(first: int, payload: pa.RecordBatch | None, results: pa.RecordBatch) -> pa.RecordBatch:
    count = results.num_rows
    arrays: dict[str, Any] = {"index": pa.array(range(first, first + count), pa.int64())}
    for name in _ECHOED:
        kind: Any = REQUESTS.field(name).type
        arrays[name] = pa.nulls(count, kind) if payload is None else payload.column(name)
    arrays |= {name: results.column(name) for name in _COLUMNS}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
