"""Results of an embatch service: the Arrow stream it writes is the result the client returns."""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
import pytest
from client_scripts import play, session

from embatch import Batch, BatchStats, Code, ConnectionFailed, DataLoss, Reason, State
from embatch.client import flows
from embatch.client.calls import Call, Reply
from embatch.client.readers import from_arrow
from embatch.wire.arrow import write_results

NATIVE = 4


def batch(count: int) -> Batch:
    """Return a completed batch of so many requests."""
    stats = BatchStats(count, count, 0, 0)
    return Batch("batches/b", "models/m", State.COMPLETED, "b", 0, None, None, None, stats)


def part(first: int, rows: int, failed: set[int]) -> pa.RecordBatch:
    """Return consecutive results as the service reads them from its shards; vector i begins with i."""
    index = range(first, first + rows)
    vectors = [None if at in failed else [float(at + d) for d in range(NATIVE)] for at in index]
    return pa.RecordBatch.from_pydict(
        {
            "index": pa.array(index, pa.int64()),
            "key": pa.array([f"k{at}" if at % 2 else None for at in index], pa.string()),
            "metadata": pa.array([orjson.dumps({"n": at}).decode() if at % 3 == 0 else None for at in index]),
            "embedding": pa.array(vectors, pa.list_(pa.float32(), NATIVE)),
            "tokens": pa.array([0 if at in failed else 7 for at in index], pa.int32()),
            "truncated": pa.array([at % 4 == 0 for at in index]),
            "error_code": pa.array([3 if at in failed else None for at in index], pa.int32()),
            "error_reason": pa.array(["EMPTY_TEXT" if at in failed else None for at in index], pa.string()),
            "error_message": pa.array(["empty" if at in failed else None for at in index], pa.string()),
        }
    )


def stream(*parts: pa.RecordBatch, dimensions: int | None = None) -> bytearray:
    """Return the stream that the service sends."""
    return bytearray(b"".join(write_results.results_stream(iter(parts), NATIVE, dimensions, "float32")))


def test_what_the_service_writes_is_what_the_client_reads() -> None:
    """Several shards, failed rows at the edges, keys, metadata, tokens and flags: all at their places."""
    failed = {0, 4, 5, 9}
    result = from_arrow(batch(10), stream(part(0, 5, failed), part(5, 5, failed)))
    good = [at for at in range(10) if at not in failed]
    assert result.to_numpy(failed="nan")[good].tolist() == [[at, at + 1, at + 2, at + 3] for at in good]
    assert np.isnan(result.to_numpy(failed="nan")[sorted(failed)]).all()
    assert [index for index, _ in result.failed_responses] == sorted(failed)
    error = result.failed_responses[0][1]
    assert (error.code, error.reason, error.message) == (Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "empty")
    assert result.keys == [f"k{at}" if at % 2 else None for at in range(10)]
    assert result.metadata == [{"n": at} if at % 3 == 0 else None for at in range(10)]
    assert result.tokens.tolist() == [0 if at in failed else 7 for at in range(10)]
    assert result.truncated.tolist() == [at % 4 == 0 for at in range(10)]


def test_all_failed_and_fewer_dimensions() -> None:
    """A batch without a single embedding keeps its errors; smaller vectors come as they were asked for."""
    result = from_arrow(batch(3), stream(part(0, 3, {0, 1, 2})))
    assert result.embeddings == [None] * 3
    smaller = from_arrow(batch(3), stream(part(0, 3, set()), dimensions=2)).to_numpy()
    assert smaller.shape == (3, 2)
    np.testing.assert_allclose(np.linalg.norm(smaller, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ([part(0, 3, set()), part(3, 2, set())], 6),
        ([part(0, 3, set()), part(4, 2, set())], 5),
        ([part(0, 3, set()), part(2, 2, set())], 5),
        ([part(1, 3, set())], 3),
    ],
    ids=["short", "gap", "twice", "late"],
)
def test_a_stream_that_does_not_fit_the_batch_is_data_loss(parts: list[pa.RecordBatch], count: int) -> None:
    """Every request exactly once and in order, or nothing."""
    with pytest.raises(DataLoss):
        from_arrow(batch(count), stream(*parts))


def test_a_damaged_or_cut_stream_is_data_loss() -> None:
    """Wherever the stream ends early, fewer rows than the batch has are never returned."""
    whole = stream(part(0, 3, set()), part(3, 3, set()))
    assert len(from_arrow(batch(6), whole)) == 6
    for end in range(0, len(whole) - 8, 97):  # the last eight bytes only say that the stream ends
        with pytest.raises(DataLoss):
            from_arrow(batch(6), whole[:end])


def test_a_read_that_breaks_off_begins_again() -> None:
    """Nothing of the broken answer stays in the result."""
    content = bytes(stream(part(0, 3, set())))
    flow = flows.results(session(), batch(3), 2, partial=False)
    call = next(flow)
    assert isinstance(call, Call)
    assert (call.path, call.query) == ("/v1/batches/b/embeddings", {"dimensions": "2"})
    assert call.sink is not None
    call.sink.begin()
    call.sink.feed(content[:100])
    again = flow.throw(ConnectionFailed("broke"))
    assert isinstance(again, Call)
    assert again.sink is call.sink
    played = play(
        flows.results(session(), batch(3), None, partial=False),
        [ConnectionFailed("x"), Reply(200, {}, content)],
    )
    assert len(played.value) == 3
