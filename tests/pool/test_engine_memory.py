"""Loaded engines are bounded by memory: who goes, who stays, and what there is to share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pools
import pytest

from embatch.pool.local import memory
from embatch.pool.local.memory import LoadedEngine, Unloading, unloading

if TYPE_CHECKING:
    from pathlib import Path

    from embatch.pool.local import LocalPool

A, B, C = (LoadedEngine(name, "bulk", 10, used) for used, name in enumerate("abc"))


@pytest.mark.parametrize(
    ("limit", "needed", "busy", "goes"),
    [
        (30, 0, "", Unloading()),
        (29, 0, "", Unloading((A,))),
        (30, 1, "", Unloading((A,))),
        (19, 0, "", Unloading((A, B))),
        (30, 11, "", Unloading((A, B))),
        (0, 0, "", Unloading((A, B))),
        (29, 0, "a", Unloading((B,))),
        (19, 0, "a", Unloading((B,), frozenset("a"))),
        (29, 0, "ab", Unloading((), frozenset("a"))),
        (0, 0, "ab", Unloading((), frozenset("ab"))),
    ],
)
def test_the_least_recently_used_idle_one_goes(limit: int, needed: int, busy: str, goes: Unloading) -> None:
    """As few as make room; one in use only once it is idle; what room is made for stays however large."""
    assert unloading([C, A, B], limit, needed=needed, keep="c", busy=busy) == goes


def test_the_memory_there_is_is_the_least_of_all_limits(tmp_path: Path) -> None:
    """Of the machine, and of each control group from this process's up, in both forms that Linux has."""
    machine = memory.available(tmp_path / "none")
    assert machine > 1 << 28
    cgroup, mount = tmp_path / "cgroup", tmp_path / "fs"
    inner = mount / "outer" / "inner"
    inner.mkdir(parents=True)
    cgroup.write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    assert memory.available(cgroup, mount) == machine
    (mount / "outer" / "memory.max").write_text("1000000\n")
    assert memory.available(cgroup, mount) == 1_000_000
    (inner / "memory.max").write_text("900000\n")
    assert memory.available(cgroup, mount) == 900_000
    cgroup.write_text("5:cpu:/\n4:memory:/job\n0::/\n")
    (mount / "memory" / "job").mkdir(parents=True)
    (mount / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.available(cgroup, mount) == machine
    (mount / "memory" / "job" / "memory.limit_in_bytes").write_text("800000\n")
    assert memory.available(cgroup, mount) == 800_000
    assert memory.allowed(5) == 5
    assert memory.allowed(0) == memory.available() // 2


def test_what_a_process_takes_and_what_a_model_will() -> None:
    """A process that is gone takes nothing; a name that is no folder is not guessed at."""
    assert memory.taken(os.getpid()) > 1 << 20
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert memory.taken(child.pid) == 0
    assert memory.expected("org/name") == 0


def test_the_weights_of_a_folder_are_expected_in_one_form(tmp_path: Path) -> None:
    """Parts are added up; an export beside them is not loaded too."""
    for name, size in (("model-1.safetensors", 5), ("model-2.safetensors", 6), ("onnx/model.onnx", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert memory.expected(str(tmp_path)) == 11


def _pids(pool: LocalPool) -> dict[str, int]:
    return {one.model: one.pid for one in pool.status() if one.pid is not None}


def test_engines_that_do_not_fit_together_go_in_the_order_of_their_use() -> None:
    """Room for two of three: the one that was not used for longest goes, and comes back with its vectors."""
    a, b, c = (pools.hashing(name) for name in "abc")
    texts = pools.shard("one", "two")
    with pools.opened() as pool:
        expected = pools.bytes_of(pools.embed(pool, a, texts))
        size = memory.taken(_pids(pool)["a"])
    with pools.opened(replace(pools.QUICK, engine_bytes=int(2.5 * size))) as pool:
        pools.embed(pool, a, texts)
        pools.embed(pool, b, texts)
        first = _pids(pool)
        assert pool.loaded() == first.keys() == {"a", "b"}
        pools.embed(pool, a, texts)
        pools.embed(pool, c, texts)
        pools.await_end(first["b"])
        assert pool.loaded() == {"a", "c"}
        assert _pids(pool)["a"] == first["a"], "it was used since"
        assert pools.bytes_of(pools.embed(pool, b, texts)) != expected
        pools.await_end(first["a"])
        assert pools.bytes_of(pools.embed(pool, a, texts)) == expected


def test_no_work_is_ended_for_another(tmp_path: Path) -> None:
    """An engine in use goes when it is idle; until then nothing more is to be begun with it first."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    os.mkfifo(gate)
    code = (
        "def wait(self, rows, shape):\n"
        f"    open({str(begun)!r}, 'w').close()\n"
        f"    if 'slow' in str(rows): open({str(gate)!r}).read()\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = wait\n"
    )
    settings = replace(pools.QUICK, engine_bytes=1, micro_batch_seconds=60.0)
    environment = pools.sabotaged(tmp_path, code)
    slow, other = pools.hashing("slow"), pools.hashing("other")
    found: list[int] = []
    with pools.opened(settings, environment) as pool:
        work = threading.Thread(
            target=lambda: found.append(pools.embed(pool, slow, pools.shard("slow")).num_rows)
        )
        work.start()
        with gate.open("w"):  # returns once the engine reads
            pid = _pids(pool)["slow"]
            pools.embed(pool, other, pools.shard("quick"))
            assert pool.loaded() == {"other"}
            assert _pids(pool)["slow"] == pid
        work.join(60)
        assert found == [1]
        pools.await_end(pid)
        assert pool.loaded() == {"other"}


def test_one_that_loads_is_not_idle(tmp_path: Path) -> None:
    """Whoever waits to hear what a model is hears it, however large another one is."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = (
        "begin = HashingEngine.__init__\n"
        "def wait(self, spec):\n"
        f"    if 'slow' in str(spec): open({str(gate)!r}).read()\n"
        "    begin(self, spec)\n"
        "HashingEngine.__init__ = wait\n"
    )
    slow, other = pools.hashing("slow"), pools.hashing("other")
    found: list[int] = []
    with pools.opened(replace(pools.QUICK, engine_bytes=1), pools.sabotaged(tmp_path, code)) as pool:
        asking = threading.Thread(target=lambda: found.append(pool.describe(slow).dimensions))
        asking.start()
        with gate.open("w"):  # returns once the engine loads
            pid = _pids(pool)["slow"]
            pools.embed(pool, other, pools.shard("quick"))
            assert _pids(pool)["slow"] == pid
        asking.join(60)
    assert len(found) == 1
