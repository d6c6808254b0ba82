"""Model folders behind a pool: texts of no tokens, and a folder that is replaced while it serves."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tiny import Tiny, write

from embatch.engine.models import serve_model
from embatch.pool.local import LocalPool
from embatch.service.cutting import ShardCutter
from embatch.settings import Settings
from embatch.shard import RequestRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from embatch.engine.models import ServedModel


@pytest.fixture
def pool() -> Iterator[LocalPool]:
    """A pool of this test's own."""
    made = LocalPool(Settings(bulk_nice=0, threads=1))
    yield made
    made.close(0.0)


def _shard(*texts: str) -> pa.RecordBatch:
    cutter = ShardCutter(1 << 40, 1 << 30)
    for text in texts:
        cutter.add(RequestRow(text))
    made = cutter.rest()
    assert made is not None
    return made


def _run(pool: LocalPool, lane: str, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
    if lane == "query":
        return pool.query(model, requests)
    found = pool.embed(model, requests, on_progress=lambda _: None, stop=threading.Event())
    assert found is not None
    return found


@pytest.mark.parametrize("lane", ["bulk", "query"])
def test_a_text_without_a_token_fails_alone(tmp_path: Path, pool: LocalPool, lane: str) -> None:
    """What an engine makes of no token is no vector of the text; the others keep theirs."""
    path = Tiny().write(tmp_path / "bare")
    said = json.loads((path / "tokenizer.json").read_text())
    write(path, "tokenizer.json", {**said, "post_processor": None})
    model = serve_model(str(path), engine="openvino")
    requests = _shard("a quick fox", "\u200b", "b", "\u200b", "\u200d\ufeff")
    found = _run(pool, lane, model, requests)
    assert found.column("error_reason").to_pylist() == [
        None,
        *["EMPTY_TEXT", None, "EMPTY_TEXT"],
        "EMPTY_TEXT",
    ]
    assert "leaves nothing" in found.column("error_message")[1].as_py()
    alone = _run(pool, lane, model, _shard("a quick fox", "b"))
    vectors = found.column("embedding").to_pylist()
    assert [vectors[0], vectors[2]] == alone.column("embedding").to_pylist()
    assert pool.count(model, requests).tolist() == [9, 0, 1, 0, 0]


def _end(pool: LocalPool, lane: str) -> None:
    """Kill the process of a lane, as want of memory would; the next one who asks gets another."""
    (pid,) = [one.pid for one in pool.status() if one.lane == lane]
    assert pid is not None
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([handle], [], [], 30)[0]
    os.close(handle)
    deadline, looked = time.monotonic() + 30, threading.Event()
    while any(one.pid == pid for one in pool.status()):  # the pool has nothing else to wait for
        assert time.monotonic() < deadline
        looked.wait(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own facilities: pidfd")
@pytest.mark.parametrize("ended", ["bulk", "query"])
def test_both_lanes_go_over_to_a_replaced_model(tmp_path: Path, pool: LocalPool, ended: str) -> None:
    """Whichever process is started anew: what is asked and what is embedded then have the new weights."""
    path = Tiny().write(tmp_path / "model")
    model, requests = serve_model(str(path), engine="openvino"), _shard("a quick brown fox", "b")
    other = "query" if ended == "bulk" else "bulk"

    def vectors(lane: str) -> object:
        return _run(pool, lane, model, requests).column("embedding").to_pylist()

    before = vectors("query")
    assert vectors("bulk") == before
    Tiny(seed=8).write(path)
    assert vectors("query") == before  # nobody looks until a process is started
    _end(pool, ended)
    after = vectors(ended)
    assert after != before
    assert vectors(other) == after
    assert vectors(ended) == after
    assert pool.starts == 4
