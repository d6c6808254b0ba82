"""Several input files take turns: no long one holds up the others, and a stopped one is let go at once."""

from __future__ import annotations

import functools
import io
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from service_rig import MODEL, OTHER, Rig, together

from embatch.engine.models import Catalog
from embatch.service.input_file import FileTurns
from embatch.service.intake import Draft
from embatch.service.planner import FILES
from embatch.settings import Settings
from embatch.states import State

if TYPE_CHECKING:
    from pathlib import Path

    from embatch.engine.models import ServedModel

pytest_plugins = ("rig_fixture",)

ARROW = "application/vnd.apache.arrow.stream"
LINE = b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n'
LONG = b'{"key":1}\n' * 400_000
"""Seconds of work and forty-nine shards, all of whose lines are faulty."""


def compressed(texts: list[str]) -> bytes:
    """Return an Arrow stream of texts, small however many they are."""
    buffer, batch = io.BytesIO(), pa.RecordBatch.from_pydict({"text": texts})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(buffer, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


def left(name: str) -> bool:
    """Return whether nobody reads a batch's file any more."""
    return not any(thread.name == name.replace("batches/", "planner ") for thread in threading.enumerate())


@pytest.mark.parametrize("kind", ["application/jsonl", ARROW])
def test_a_long_file_holds_up_no_short_one_and_hears_its_cancel(rig: Rig, kind: str) -> None:
    """The short ones are done while it is read; cancelled, it writes no further shard but the one begun."""
    written: list[str] = []
    rig.blobs.before_write = written.append
    content = LONG if kind != ARROW else compressed([""] * 400_000)
    long = rig.service.submit_file(Draft(), rig.upload(content, kind)).name
    short = [rig.service.submit_file(Draft(), rig.upload(LINE)).name for _ in range(2 * FILES)]
    for name in short:
        assert rig.done(name).state is State.COMPLETED
    assert not left(long)
    rig.service.cancel(long)
    before = sum(long in path for path in written)
    rig.until(functools.partial(left, long))
    assert sum(long in path for path in written) <= before + 1
    assert before < 40
    assert rig.service.get(long).state is State.CANCELLED


def test_a_batch_that_was_cancelled_before_its_turn_is_never_read(rig: Rig) -> None:
    """It leaves neither a folder nor a claim."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        reached.set()
        assert go_on.wait(30)

    rig.blobs.before_write = hold
    names = [rig.service.submit_file(Draft(), rig.upload(LINE)).name for _ in range(FILES + 2)]
    assert reached.wait(30)
    for name in names:
        rig.service.cancel(name)
    go_on.set()
    rig.until(lambda: all(left(name) for name in names))
    rig.until(lambda: not any(path.startswith("batches") for path in rig.files()))
    following = rig.service.submit_file(Draft(), rig.upload(LINE)).name
    assert rig.done(following).state is State.COMPLETED


def test_a_model_that_loads_for_minutes_holds_up_files_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files of it there are; and once it is loaded they are all planned."""
    unknown = replace(OTHER, dimensions=None)
    rig = Rig(tmp_path / "data", catalog=Catalog([MODEL, unknown]))
    try:
        loading, loaded = threading.Event(), threading.Event()
        describe = rig.pool.describe

        def slow(model: ServedModel) -> Any:
            if model.name == OTHER.name:
                loading.set()
                assert loaded.wait(30)
            return describe(model)

        monkeypatch.setattr(rig.pool, "describe", slow)
        file = rig.upload(LINE)
        waiting = [rig.service.submit_file(Draft(model="other"), file).name for _ in range(2 * FILES)]
        assert loading.wait(30)
        for _ in range(2 * FILES):
            assert rig.done(rig.service.submit_file(Draft(), file).name).state is State.COMPLETED
        assert not any(rig.service.get(name).done for name in waiting)
        loaded.set()
        assert {rig.done(name).state for name in waiting} == {State.COMPLETED}
    finally:
        rig.stop()


@pytest.mark.parametrize(
    ("content", "kind", "word"),
    [
        (b"\n" * 41 + LINE, "application/jsonl", "at most 40 lines"),
        (b" \r\n" * 41 + LINE, "application/jsonl", "at most 40 lines"),
        (compressed(["a" * 1000] * 9), ARROW, "more than 5000 bytes once it is decompressed"),
        (compressed(["a" * 999] + ["b"] * 9), ARROW, None),
        (b"\n" * 39 + LINE, "application/jsonl", None),
    ],
)
def test_what_a_small_file_may_become_is_bounded(
    tmp_path: Path, content: bytes, kind: str, word: str | None
) -> None:
    """Lines that say nothing, and texts that were compressed."""
    assert len(content) < 5000
    rig = Rig(tmp_path / "data", settings=Settings(file_requests=10, file_bytes=5000))
    try:
        batch = rig.done(rig.service.submit_file(Draft(), rig.upload(content, kind)).name)
        assert batch.state is (State.COMPLETED if word is None else State.FAILED)
        assert (word or "") in (batch.error or "")
    finally:
        rig.stop()


def test_turns_go_round() -> None:
    """Each goes on for its time while others wait, and as long as it likes while none does."""
    now = [0.0]
    turns = FileTurns(1.0, lambda: now[0])
    order: list[int] = []

    def work(number: int) -> None:
        turns.begin()
        for _ in range(5):
            order.append(number)
            now[0] += 0.5
            turns.look()
        turns.end()

    work(0)
    order.clear()
    turns.begin()
    threads = threading.Thread(target=together, args=(3, work))
    threads.start()
    while turns.waiting < 3:
        pass
    turns.end()
    threads.join(30)
    first = order[:2], order[2:4], order[4:6]
    assert sorted(first) == [[0, 0], [1, 1], [2, 2]]
    assert sorted(order) == [number for number in range(3) for _ in range(5)]
    assert [order[6:8], order[8:10], order[10:12]] == list(first)
