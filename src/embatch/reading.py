"""Results on their way out: payload and result shards joined, checked, in order, one shard at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from embatch.errors import Code, DataLoss, Reason
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from embatch.batch import Batch
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord, ShardRecord

_UNSERVED: Final = {
    State.CANCELLED: (Code.CANCELLED, Reason.CANCELLED, "the batch was cancelled before this request's turn"),
    State.EXPIRED: (Code.DEADLINE_EXCEEDED, Reason.EXPIRED, "the batch expired before this request's turn"),
    State.FAILED: (Code.INTERNAL, None, "the batch failed as a whole"),
}
_LOST: Final = (Code.DATA_LOSS, Reason.DATA_LOSS, "the stored request does not match its checksum")


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
    """Return the results of a final batch; files are read as `parts` is.

    Args:
        batch: the batch as it is shown.
        record: the same as it is stored.
        shards: all of them, by number.
        blobs: where their files are.
        native: dimensions to assume where no shard was finished.
    """
    size = record.native_dimensions or native
    return Results(batch, record.dimensions, size, _parts(record, shards, blobs, size))


def _parts(
    record: BatchRecord, shards: Sequence[ShardRecord], blobs: Blobs, native: int
) -> Iterator[pa.RecordBatch]:
    first = 0
    for shard in shards:
        count = shard.payload.request_count
        index = pa.array(range(first, first + count), pa.int64())
        first += count
        try:
            payload = blobs.read(shard.payload.path, shard.payload.digest)
            asked = [payload.column(name) for name in ("key", "metadata", "dimensions")]
        except DataLoss:
            if shard.result is None:
                asked = [pa.nulls(count, kind) for kind in (pa.string(), pa.string(), pa.int32())]
                yield _joined(index, asked, _failed(count, native, _LOST))
                continue
            # Vectors without their keys could be taken for others': all or nothing.
            raise
        if shard.result is None:
            yield _joined(index, asked, _failed(count, native, _UNSERVED[record.state]))
            continue
        result = blobs.read(shard.result.path, shard.result.digest)
        names = ("embedding", "tokens", "truncated", "error_code", "error_reason", "error_message")
        yield _joined(index, asked, [result.column(name) for name in names])


def _failed(count: int, native: int, why: tuple[Code, Reason | None, str]) -> list[pa.Array[Any]]:
    code, reason, message = why
    return [
        pa.nulls(count, pa.list_(pa.float32(), native)),
        pa.array([0] * count, pa.int32()),
        pa.array([False] * count, pa.bool_()),
        pa.array([code.number] * count, pa.int32()),
        pa.array([None if reason is None else reason.value] * count, pa.string()),
        pa.array([message] * count, pa.string()),
    ]


def _joined(index: pa.Array[Any], asked: list[Any], result: list[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [index, *asked, *result],
        names=[
            "index",
            "key",
            "metadata",
            "dimensions",
            "embedding",
            "tokens",
            "truncated",
            "error_code",
            "error_reason",
            "error_message",
        ],
    )
