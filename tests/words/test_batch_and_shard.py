"""Stats and the cut into shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.batch import BatchStats
from embatch.errors import Code, Reason, RequestError
from embatch.service.cutting import ShardCutter
from embatch.shard import REQUESTS, RequestRow

COUNTS = st.integers(0, 10**9)


def test_the_rate_over_what_is_finished_is_no_alarm_while_a_batch_runs() -> None:
    """It is there with the first embeddings, durable or not, and low only where requests fail."""
    assert BatchStats().finished_success_rate is None
    assert BatchStats(100, pending_request_count=100).finished_success_rate is None
    running = BatchStats(100, pending_request_count=100, uncommitted_request_count=30)
    assert (running.success_rate, running.finished_success_rate) == (0.0, 100.0)
    assert BatchStats(100, 10, 30, 60, 20).finished_success_rate == 50.0
    assert BatchStats(100, 90, 10).finished_success_rate == 90.0
    assert BatchStats(5, 0, 5).finished_success_rate == 0.0


@given(COUNTS, COUNTS, COUNTS)
def test_rates_divide_by_all_requests(successful: int, failed: int, pending: int) -> None:
    """Shares lie in 0 to 100, progress is what is finished, and an empty batch shows zeros."""
    total = successful + failed + pending
    stats = BatchStats(total, successful, failed, pending)
    for share in (stats.progress_percentage, stats.success_rate, stats.failure_rate):
        assert 0.0 <= share <= 100.0
    if total:
        assert stats.success_rate == pytest.approx(100 * successful / total)
        assert stats.failure_rate == pytest.approx(100 * failed / total)
        assert stats.progress_percentage == pytest.approx(100 * (successful + failed) / total)
    else:
        assert stats.progress_percentage == stats.success_rate == stats.failure_rate == 0.0


def test_uncommitted_requests_move_the_progress_only() -> None:
    """What is embedded but not durable shows as progress, not as success, and never passes 100 %."""
    stats = BatchStats(10, 4, 0, 6, uncommitted_request_count=3)
    assert stats.progress_percentage == 70.0
    assert stats.success_rate == 40.0
    assert BatchStats(10, 9, 0, 1, uncommitted_request_count=5).progress_percentage == 100.0


FAULT = RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "the text is empty")
ROWS = st.lists(
    st.one_of(
        st.builds(RequestRow, st.text(max_size=40), key=st.none() | st.text(max_size=5)),
        st.just(RequestRow(None, fault=FAULT)),
    ),
    max_size=60,
)


@given(ROWS, st.integers(100, 500), st.integers(1, 20))
def test_shards_hold_every_request_once_and_in_order(rows: list[RequestRow], limit: int, most: int) -> None:
    """However it is cut: consecutive indexes, nothing lost, no shard above its limits by more than a row."""
    cutter = ShardCutter(limit, most)
    shards = [shard for shard in (*map(cutter.add, rows), cutter.rest()) if shard is not None]
    assert all(shard.schema.equals(REQUESTS) and 0 < shard.num_rows <= most for shard in shards)
    found = [row for shard in shards for row in shard.to_pylist()]
    assert [row["index"] for row in found] == list(range(len(rows)))
    assert [row["text"] for row in found] == [row.text for row in rows]
    assert [row["key"] for row in found] == [row.key for row in rows]
    for row in found:
        assert (row["text"] is None) == (row["error_code"] is not None)
    for shard in shards:
        texts = [text for text in shard.column("text").to_pylist()[:-1] if text is not None]
        assert sum(len(text.encode()) for text in texts) < limit


@given(ROWS)
def test_the_cut_depends_on_the_rows_alone(rows: list[RequestRow]) -> None:
    """The same rows give the same shards, byte for byte."""

    def cut() -> list[object]:
        cutter = ShardCutter(200, 7)
        shards = [shard for shard in (*map(cutter.add, rows), cutter.rest()) if shard is not None]
        return [shard.serialize().to_pybytes() for shard in shards]

    assert cut() == cut()
