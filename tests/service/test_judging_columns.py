"""Requests judged and cut by columns fare exactly as they do one by one."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_rig import DIMENSIONS, MODEL, Rig

from embatch.batch import TaskType
from embatch.service.cutting import ShardCutter
from embatch.service.intake import Draft, RequestValidator, ShardWriter
from embatch.settings import Settings
from embatch.shard import GIVEN, RequestRow
from embatch.states import State
from embatch.store.blobs import FolderBlobs
from embatch.wire.arrow import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch.store.records import PayloadShard

SETTINGS = Settings(text_bytes=40)
SOUND = st.builds(
    RequestRow,
    text=st.sampled_from(["a", "héllo wörld", "日本語", "x" * 19, "0"]),
    task_type=st.just(TaskType.RETRIEVAL_DOCUMENT),
    title=st.none() | st.sampled_from(["t", "ä title"]),
    dimensions=st.none() | st.integers(1, DIMENSIONS),
)
ANY = st.builds(
    RequestRow,
    text=st.none()
    | st.sampled_from(["", " \u2003", "\x1c\x1f", "。", "-", "a", "x" * 40, "ä" * 21, "x" * 41]),
    key=st.none() | st.sampled_from(["one", "two", "a\0b", "k" * 513]),
    metadata=st.none() | st.sampled_from(['{"a":1}', "[1]", "", '{"a":"\\ud800"}', "{" * 2000]),
    task_type=st.none() | st.sampled_from([*TaskType, "DANCE"]),
    title=st.none() | st.sampled_from(["", "t" * 39]),
    dimensions=st.none() | st.integers(-1, DIMENSIONS + 1),
)
LOTS = st.lists(st.one_of(st.lists(SOUND, max_size=9), st.lists(SOUND | ANY, max_size=5)), max_size=5)


def columns(rows: list[RequestRow]) -> pa.RecordBatch:
    """Return rows as a client sends them."""
    said = {name: [getattr(row, name) for row in rows] for name in GIVEN.names}
    return pa.RecordBatch.from_pydict(said, schema=GIVEN)


def writer(folder: Path) -> ShardWriter:
    """Return a writer of small shards."""
    cutter = ShardCutter(limit_bytes=400, limit_requests=5)
    return ShardWriter(FolderBlobs(folder), "b", RequestValidator(MODEL, SETTINGS), cutter=cutter)


def stored(
    folder: Path, shards: Iterator[PayloadShard]
) -> list[tuple[PayloadShard, list[dict[str, object]]]]:
    """Return shards with what their files say, without what names the bytes of a file."""
    found = []
    for shard in shards:
        rows = FolderBlobs(folder).read(shard.path, shard.digest).to_pylist()
        found.append((replace(shard, digest="", byte_count=0), rows))
    return found


@settings(max_examples=150)
@given(lots=LOTS)
def test_columns_and_rows_make_the_same_shards(
    tmp_path_factory: pytest.TempPathFactory, lots: list[list[RequestRow]]
) -> None:
    """Whatever stands in which record batch: the same cuts, requests, faults, wishes and notes."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    by_rows, by_columns = writer(one), writer(two)
    rows = stored(one, by_rows.shards(row for lot in lots for row in lot))
    assert stored(two, by_columns.shards_of(columns(lot) for lot in lots)) == rows
    assert by_columns.notes() == by_rows.notes()


def test_metadata_that_is_no_object_fails_its_request_alone(tmp_path: Path) -> None:
    """One of many, whether it is a list, no JSON at all or holds a lone surrogate; it is not echoed."""
    faulty = {3: "[1]", 5: '{"a":"\\ud800"}', 8: "no JSON"}
    given = [RequestRow(f"text {at}", key=str(at), metadata=faulty.get(at, '{"a":1}')) for at in range(10)]
    rig = Rig(tmp_path)
    try:
        batch = rig.service.submit_file(Draft(), rig.upload(arrow(columns(given)), MEDIA_TYPE))
        batch = rig.done(batch.name)
        found = rig.read(batch.name)
    finally:
        rig.stop()
    assert batch.state is State.COMPLETED
    assert {at for at, row in enumerate(found) if row["error_code"] is not None} == set(faulty)
    assert [row["key"] for row in found] == [str(at) for at in range(10)]
    assert {row["metadata"] for at, row in enumerate(found) if at not in faulty} == {'{"a":1}'}
    assert {found[at]["metadata"] for at in faulty} == {None}
    assert "metadata is no JSON object" in found[3]["error_message"]


def test_a_record_batch_too_large_to_decode_fails_its_batch(tmp_path: Path) -> None:
    """The batch says why and what to do; it is final, so that no restart meets the file again."""
    large = pa.array(["a" * (1 << 20)] * 70)
    bomb = pa.RecordBatch.from_pydict({"text": large, "title": large})
    rig = Rig(tmp_path)
    try:
        batch = rig.service.submit_file(Draft(), rig.upload(arrow(bomb, compression="zstd"), MEDIA_TYPE))
        batch = rig.done(batch.name)
        assert batch.state is State.FAILED
        assert "write smaller ones" in str(batch.error)
        rig.restart()
        assert rig.service.get(batch.name).state is State.FAILED
    finally:
        rig.stop()


def arrow(batch: pa.RecordBatch, **options: Any) -> bytes:
    """Return an input file of one record batch."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        (RequestRow("a"), True),
        (RequestRow("。"), True),
        (RequestRow("x" * 40, dimensions=DIMENSIONS), True),
        (RequestRow("a", title="b", task_type=TaskType.RETRIEVAL_DOCUMENT), True),
        (RequestRow("a", title="b"), False),
        (RequestRow("a", title="b", task_type=TaskType.CLUSTERING), False),
        (RequestRow("a", task_type="DANCE"), False),
        (RequestRow("a", dimensions=0), False),
        (RequestRow("a", dimensions=DIMENSIONS + 1), False),
        (RequestRow("x" * 41), False),
        (RequestRow("x" * 20, title="y" * 21, task_type=TaskType.RETRIEVAL_DOCUMENT), False),
        (RequestRow(" \u2003"), False),
        (RequestRow(None), False),
        (RequestRow("a", key="k"), False),
        (RequestRow("a", metadata="{}"), False),
    ],
)
def test_a_batch_passes_only_if_each_request_does(row: RequestRow, *, passes: bool) -> None:
    """One odd request among sound ones, and nothing is taken by columns."""
    sound = RequestRow("b", task_type=TaskType.RETRIEVAL_DOCUMENT)
    assert RequestValidator(MODEL, SETTINGS).passes(columns([sound, row, sound])) is passes
    assert not RequestValidator(MODEL, SETTINGS).passes(columns([]))
