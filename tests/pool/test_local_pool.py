"""The pool with real processes: who is blamed, who keeps their bytes, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from embatch.engine.models import serve_model
from embatch.errors import Code, EngineTrouble, Reason, RequestError
from embatch.pool import LocalPool
from embatch.settings import Settings
from embatch.shard import RequestRow, ShardCutter

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from embatch.engine.models import ServedModel

SETTINGS = Settings(micro_batch_seconds=1.0, heartbeat_seconds=2.0, bulk_nice=0, micro_batch_tokens=1024)


@pytest.fixture
def pool() -> Iterator[LocalPool]:
    """A pool whose processes are gone at the end."""
    made = LocalPool(SETTINGS)
    yield made
    pids = [status.pid for status in made.status() if status.pid is not None]
    made.close(0.0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _model(**options: str) -> ServedModel:
    return serve_model("test-model", engine="hashing", options=options)


def _shard(*rows: str | RequestRow) -> pa.RecordBatch:
    cutter = ShardCutter(1 << 40, 1 << 30)
    for row in rows:
        assert cutter.add(RequestRow(row) if isinstance(row, str) else row) is None
    shard = cutter.rest()
    assert shard is not None
    return shard


def _embed(pool: LocalPool, model: ServedModel, shard: pa.RecordBatch, **more: Any) -> pa.RecordBatch:
    result = pool.embed(model, shard, on_progress=lambda _: None, stop=threading.Event(), **more)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("segv", Reason.ENGINE_CRASH),
        ("abort", Reason.ENGINE_CRASH),
        ("exit", Reason.ENGINE_CRASH),
        ("hang", Reason.ENGINE_HANG),
        ("nan", Reason.ENGINE_BAD_OUTPUT),
        ("shape", Reason.ENGINE_BAD_OUTPUT),
        ("panic-encode", Reason.ENGINE_CRASH),
        ("hang-encode", Reason.ENGINE_HANG),
    ],
)
def test_exactly_the_poison_request_fails(pool: LocalPool, word: str, reason: Reason) -> None:
    """Among 200 texts one kills, hangs or answers nonsense: it alone fails, all others keep their bytes."""
    texts = [f"text number {at} " + "word " * (at % 17) for at in range(200)]
    clean = _embed(pool, _model(), _shard(*texts))
    model = serve_model("test-model", engine="hashing", options={"poison": "1"})
    dirty = list(texts)
    dirty[123] = f"embatch-poison:{word} here"
    found = _poisoned(model, dirty)
    assert [at for at, code in enumerate(found.column("error_code").to_pylist()) if code is not None] == [123]
    assert found.column("error_reason")[123].as_py() == reason.value
    assert found.column("error_code")[123].as_py() == Code.INTERNAL.number
    for at in set(range(200)) - {123}:
        assert found.column("embedding")[at].equals(clean.column("embedding")[at])


def _poisoned(model: ServedModel, texts: list[str]) -> pa.RecordBatch:
    own = LocalPool(SETTINGS)
    try:
        found = _embed(own, model, _shard(*texts))
        (status,) = own.status()
        # One poison costs at most two starts a halving, and two.
        assert status.restarts <= 2 * 8 + 2
    finally:
        own.close(0.0)
    return found


def test_faulty_rows_keep_their_fault_and_equal_texts_agree(pool: LocalPool) -> None:
    """Progress counts every request once; order, tokens and faults stand where they belong."""
    fault = RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "empty")
    counted: list[int] = []
    shard = _shard("a", RequestRow(None, fault=fault), "b", "a", "word " * 5000)
    found = pool.embed(_model(), shard, on_progress=counted.append, stop=threading.Event())
    assert found is not None
    assert sum(counted) == 5
    assert found.column("error_reason").to_pylist() == [None, "EMPTY_TEXT", None, None, None]
    embedding = found.column("embedding")
    assert embedding[0].equals(embedding[3])
    assert not embedding[0].equals(embedding[2])
    assert embedding[1].as_py() is None
    assert found.column("truncated").to_pylist() == [False, False, False, False, True]
    assert found.column("tokens").to_pylist()[4] == 512


def test_the_same_shard_gives_the_same_bytes(pool: LocalPool) -> None:
    """Twice in one process, in the query lane, and as a suspect in a process of its own."""
    shard = _shard(*[f"text {at}" for at in range(50)])
    first = _embed(pool, _model(), shard)
    assert _embed(pool, _model(), shard).equals(first)
    assert pool.query(_model(), shard).equals(first)
    assert _embed(pool, _model(), shard, suspect=True).equals(first)


def test_stop_is_heard_between_micro_batches(pool: LocalPool) -> None:
    """After the signal no further micro-batch is begun, and nothing comes back."""
    stop = threading.Event()
    counted: list[int] = []

    def progress(count: int) -> None:
        counted.append(count)
        if count:
            stop.set()

    shard = _shard(*[f"text {at} " + "word " * 300 for at in range(400)])
    assert pool.embed(_model(delay="0.05"), shard, on_progress=progress, stop=stop) is None
    assert 0 < sum(counted) < 400


def test_a_killed_process_is_replaced_and_nobody_is_blamed(pool: LocalPool) -> None:
    """Kill -9 from outside in the middle of the work: every text still gets its vector."""
    texts = [f"text {at} " + "word " * 100 for at in range(200)]
    clean = _embed(pool, _model(), _shard(*texts))
    model = _model(delay="0.02")
    shard = _shard(*texts)
    killed = threading.Event()
    own = LocalPool(SETTINGS)

    def progress(count: int) -> None:
        if count and not killed.is_set():
            killed.set()
            (status,) = own.status()
            assert status.pid is not None
            os.kill(status.pid, signal.SIGKILL)

    try:
        found = own.embed(model, shard, on_progress=progress, stop=threading.Event())
    finally:
        own.close(0.0)
    assert killed.is_set()
    assert found is not None
    assert found.column("error_code").null_count == 200
    assert found.column("embedding").equals(clean.column("embedding"))


def test_a_stopped_process_is_replaced(pool: LocalPool) -> None:
    """SIGSTOP silences the heartbeat; the process is killed and the work done again."""
    model = _model(delay="0.05")
    stopped = threading.Event()

    def progress(count: int) -> None:
        if count and not stopped.is_set():
            stopped.set()
            (status,) = pool.status()
            assert status.pid is not None
            os.kill(status.pid, signal.SIGSTOP)

    shard = _shard(*[f"text {at} " + "word " * 200 for at in range(60)])
    found = pool.embed(model, shard, on_progress=progress, stop=threading.Event())
    assert stopped.is_set()
    assert found is not None
    assert found.column("error_code").null_count == 60


def test_a_hung_bulk_engine_does_not_hold_up_a_query(pool: LocalPool) -> None:
    """The query lane has a process of its own."""
    model = _model(poison="1")
    pool.query(model, _shard("warm"))
    bulk = threading.Thread(target=lambda: _embed(pool, model, _shard("embatch-poison:hang now", "other")))
    bulk.start()
    begun = time.monotonic()
    found = pool.query(model, _shard("quick"))
    assert bulk.is_alive()
    assert time.monotonic() - begun < SETTINGS.micro_batch_seconds
    assert found.column("error_code").null_count == 1
    bulk.join(timeout=60)
    assert not bulk.is_alive()


def test_an_engine_that_does_not_load_is_trouble_with_its_own_words() -> None:
    """No request is blamed; the status says broken and why; the next try waits."""
    model = serve_model("test-model", engine="hashing")
    broken = type(model)(model.name, type(model.spec)("hashing", "test-model", options={"colour": "red"}))
    pool = LocalPool(SETTINGS)
    try:
        for _ in range(2):
            with pytest.raises(EngineTrouble, match="no option colour") as caught:
                _embed(pool, broken, _shard("text"))
        assert caught.value.retry_after is not None
        (status,) = pool.status()
        assert status.state == "broken"
        assert "colour" in (status.message or "")
    finally:
        pool.close(0.0)
