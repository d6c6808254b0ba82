"""The pool with real processes: what it hears, what it replaces, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pools
import pytest

from embatch.engine.models import DEFAULT_MODEL, serve_model
from embatch.errors import EngineTrouble
from embatch.pool.protocol import Origin
from embatch.shard import Done, RequestRow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.engine.models import ServedModel
    from embatch.pool.local import LocalPool
    from embatch.pool.protocol import EngineStatus

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own facilities: /proc, pidfd")


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    """A pool that many tests share, each with a model of its own where it harms processes."""
    with pools.opened() as made:
        yield made


def _status(pool: LocalPool, model: ServedModel, lane: str = "bulk") -> EngineStatus:
    (found,) = [one for one in pool.status() if (one.model, one.lane) == (model.name, lane)]
    return found


def _pid(pool: LocalPool, model: ServedModel, lane: str = "bulk") -> int:
    pid = _status(pool, model, lane).pid
    assert pid is not None
    return pid


def test_task_types_and_titles_go_by_the_models_prompts(tmp_path: Path) -> None:
    """What the engine sees is prompt, title and text; texts that differ in them are different texts."""
    code = (
        "from dataclasses import replace\n"
        "describe = HashingEngine.describe\n"
        "prompts = {'RETRIEVAL_DOCUMENT': 'passage: '}\n"
        "HashingEngine.describe = lambda self: replace(describe(self), prompts=prompts)\n"
    )
    rows = [
        RequestRow("cells", task_type="RETRIEVAL_DOCUMENT", title="Life"),
        RequestRow("passage: Life cells"),
        RequestRow("cells"),
    ]
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        found = pools.bytes_of(pools.embed(pool, pools.hashing(), pools.shard(*rows)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_what_is_loaded_is_told_from_the_lane_that_is_up(pool: LocalPool) -> None:
    """A query engine serves for a description; without any the bulk engine is loaded."""
    queried, new = pools.hashing("queried", dimensions="8"), pools.hashing("new", dimensions="9")
    pool.query(queried, pools.shard("a"))
    before = pool.starts
    assert pool.describe(queried).dimensions == 8
    assert pool.starts == before
    assert pool.describe(new).dimensions == 9
    assert _status(pool, new).state == "ready"


def test_stop_is_heard_between_micro_batches(pool: LocalPool) -> None:
    """After the signal the running micro-batch ends, none is begun, and the process goes on living."""
    model = pools.hashing("slow", delay="0.05")
    stop, counted = threading.Event(), list[Done]()

    def progress(done: Done) -> None:
        counted.append(done)
        if done.rows:
            stop.set()

    assert pool.embed(model, pools.shard(*pools.texts(800)), on_progress=progress, stop=stop) is None
    assert 8 <= sum(counted, Done(0)).rows <= 4 * 8
    pid = _pid(pool, model)
    assert pools.blamed(pools.embed(pool, model, pools.shard("next"))) == {}
    assert _pid(pool, model) == pid


def test_stop_is_heard_while_an_engine_loads(tmp_path: Path) -> None:
    """A cancelled batch does not wait for an engine that takes minutes."""
    code = "import threading\nHashingEngine.__init__ = lambda *_: threading.Event().wait()\n"
    stop = threading.Event()
    stop.set()
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        model = pools.hashing()
        assert pool.embed(model, pools.shard("a"), on_progress=lambda _: None, stop=stop) is None
        assert _status(pool, model).state == "starting"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_is_replaced(pool: LocalPool, number: signal.Signals) -> None:
    """From outside, in the middle of the work: every text gets its vector, and nobody is blamed."""
    model = pools.hashing(f"harmed-{number.name}", delay="0.01")
    texts = pools.texts(160)
    harmed, counted = threading.Event(), list[Done]()

    def progress(done: Done) -> None:
        counted.append(done)
        if done.rows and not harmed.is_set():
            harmed.set()
            os.kill(_pid(pool, model), number)

    found = pools.embed(pool, model, pools.shard(*texts), progress)
    assert harmed.is_set()
    assert pools.blamed(found) == {}
    assert sum(counted, Done(0)).rows == 160
    clean = pools.embed(pool, model, pools.shard(*texts))
    assert pools.bytes_of(found) == pools.bytes_of(clean)
    assert _status(pool, model).restarts == 1


def test_a_process_that_no_longer_reads_is_replaced(pool: LocalPool) -> None:
    """It was stopped while idle, and the texts are more than its pipe holds."""
    model = pools.hashing("stopped-idle")
    pools.embed(pool, model, pools.shard("a"))
    os.kill(_pid(pool, model), signal.SIGSTOP)
    found = pools.embed(pool, model, pools.shard(*[f"{at} " + "word " * 10_000 for at in range(8)]))
    assert pools.blamed(found) == {}
    assert _status(pool, model).restarts == 1


def test_a_hung_bulk_engine_does_not_hold_up_a_query(pool: LocalPool) -> None:
    """The query lane has a process of its own, which nothing of this touches."""
    model = pools.hashing("hung", poison="1")
    pool.query(model, pools.shard("warm"))
    pid = _pid(pool, model, "query")
    begun, stop = threading.Event(), threading.Event()

    def hang() -> None:
        rows = pools.shard("first", "embatch-poison:hang")
        pool.embed(model, rows, on_progress=lambda done: begun.set() if done.rows else None, stop=stop)

    bulk = threading.Thread(target=hang)
    pools.embed(pool, model, pools.shard("warm"))
    bulk.start()
    # The poison is part of the only micro-batch: there is no progress before the inquiry.
    assert pools.blamed(pool.query(model, pools.shard("quick"))) == {}
    assert not begun.is_set()
    assert bulk.is_alive()
    stop.set()
    bulk.join()
    assert _pid(pool, model, "query") == pid
    assert _status(pool, model, "query").restarts == 0


def test_an_engine_that_does_not_load_is_trouble_in_its_own_words(pool: LocalPool) -> None:
    """No request is blamed; the status says broken and why; the next try waits."""
    good = pools.hashing("broken")
    model = replace(good, spec=replace(good.spec, options={"colour": "red"}))
    for _ in range(2):
        with pytest.raises(EngineTrouble, match="no option colour") as caught:
            pools.embed(pool, model, pools.shard("text"))
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 0.5
    status = _status(pool, model)
    assert (status.state, status.pid, status.restarts) == ("broken", None, 0)
    assert status.message is not None
    assert "colour" in status.message


def test_an_engine_that_dies_while_loading_leaves_its_last_words(tmp_path: Path) -> None:
    """They are what an operator needs, and no text was there yet."""
    code = "def dying(self, spec):\n    os.write(2, b'no such library\\n')\n    os._exit(3)\n"
    environment = pools.sabotaged(tmp_path, code + "HashingEngine.__init__ = dying\n")
    with (
        pools.opened(environment=environment) as pool,
        pytest.raises(EngineTrouble, match=r"ended while loading \(exit code 3\): no such library"),
    ):
        pool.query(pools.hashing(), pools.shard("text"))


def test_an_engine_that_loads_for_too_long_is_given_up(tmp_path: Path) -> None:
    """The limit is the setting's."""
    code = "import threading\nHashingEngine.__init__ = lambda *_: threading.Event().wait()\n"
    settings = replace(pools.QUICK, engine_start_seconds=1.0)
    with (
        pools.opened(settings, pools.sabotaged(tmp_path, code)) as pool,
        pytest.raises(EngineTrouble, match="did not load within 1 s"),
    ):
        pool.describe(pools.hashing())


@pytest.mark.parametrize(
    "rows",
    [
        # The lane's process hangs after its first micro-batch.
        pytest.param([*pools.texts(8), "embatch-poison:hang"], id="at work"),
        # The process for suspects hangs once the first of them is found guilty.
        pytest.param(["embatch-poison:exit", "embatch-poison:hang"], id="amid an inquiry"),
    ],
)
def test_closing_blames_nobody_and_leaves_no_process(rows: list[str]) -> None:
    """Work that does not end within the grace is the service's trouble."""
    caught: list[EngineTrouble] = []
    begun = threading.Event()
    with pools.opened(replace(pools.QUICK, micro_batch_seconds=60.0)) as pool:

        def work() -> None:
            with pytest.raises(EngineTrouble) as error:
                pools.embed(
                    pool,
                    pools.hashing(poison="1"),
                    pools.shard(*rows),
                    lambda done: begun.set() if done.rows else None,
                )
            caught.append(error.value)

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(60)
        pool.close(0.1)
        pool.close(0.1)
        thread.join()
        assert [error.message for error in caught] == ["the service is closing"]
        with pytest.raises(EngineTrouble, match="closing"):
            pools.embed(pool, pools.hashing(), pools.shard("late"))
        assert {status.pid for status in pool.status()} == {None}


@linux
def test_lanes_differ_in_priority_and_threads(pool: LocalPool) -> None:
    """Bulk is as nice as the setting says; neither leaves core dumps, and both go first without memory."""
    model = pools.hashing("nice", threads=3)
    with pools.opened(replace(pools.QUICK, bulk_nice=7)) as own:
        pools.embed(own, model, pools.shard("a"))
        own.query(model, pools.shard("a"))
        for lane, niceness, threads in (("bulk", 7, "3"), ("query", 0, "1")):
            pid = _pid(own, model, lane)
            assert os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0) == niceness
            process = Path(f"/proc/{pid}")
            assert f"OMP_NUM_THREADS={threads}".encode() in (process / "environ").read_bytes().split(b"\0")
            assert int((process / "oom_score_adj").read_text()) >= 500
            (cores,) = [line for line in (process / "limits").read_text().splitlines() if "core file" in line]
            assert cores.split()[4:6] == ["0", "0"]


@linux
def test_engines_die_with_the_service() -> None:
    """Kill -9 of the process that has the pool: engines that hang or are stopped end as well."""
    script = (
        "import os, signal, sys, threading\n"
        "import pools\n"
        "pool = pools.LocalPool(pools.QUICK.__class__())\n"
        "model = pools.hashing(poison='1')\n"
        "pools.embed(pool, model, pools.shard('a'))\n"
        "pool.query(model, pools.shard('a'))\n"
        "bulk, query = (status.pid for status in pool.status())\n"
        "os.kill(query, signal.SIGSTOP)\n"
        "hang = lambda: pools.embed(pool, model, pools.shard('embatch-poison:hang-encode'))\n"
        "threading.Thread(target=hang).start()\n"
        "print(bulk, query, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        try:
            pids = [int(word) for word in service.stdout.readline().split()]
        finally:
            service.kill()
    assert len(pids) == 2
    for pid in pids:
        pools.await_end(pid)


def test_an_engine_that_fails_before_anybody_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Its lane is broken at once, and says why; so does the log."""
    model = serve_model(DEFAULT_MODEL, engine="openvino", options={"bogus": "1"})
    with pools.opened() as pool, caplog.at_level("WARNING", "embatch.pool"):
        pool.begin(model)
        (starting,) = pool.status()
        assert starting.pid is not None
        pools.await_end(starting.pid)
        while (lane := pool.status()[0]).state == "starting":  # it is being buried
            pass
        assert (lane.state, lane.message) == ("broken", "the openvino engine has no option bogus")
    assert [vars(record)["event"].why for record in caplog.records] == [lane.message]


def test_a_real_model_gives_the_same_bytes_in_halves() -> None:
    """The process is killed in the middle: what is done again, padded to its plan, is not a bit different."""
    lines = (Path(__file__).parents[1] / "engine" / "references" / "texts.jsonl").read_text().splitlines()
    model = serve_model(DEFAULT_MODEL, engine="openvino")
    requests = pools.shard(*[line[:200] for line in lines[:60]])
    settings = replace(pools.QUICK, micro_batch_tokens=512, micro_batch_seconds=60.0, heartbeat_seconds=30.0)
    with pools.opened(settings) as pool:
        clean = pools.embed(pool, model, requests)
        killed = threading.Event()

        def progress(done: Done) -> None:
            if done.rows and not killed.is_set():
                killed.set()
                os.kill(_pid(pool, model), signal.SIGKILL)

        found = pools.embed(pool, model, requests, progress)
        assert killed.is_set()
        assert pool.starts >= 3
    assert found.equals(clean)


def test_a_real_model_that_was_stopped_gives_the_same_bytes() -> None:
    """Whole micro-batches are taken up again, in the plan of all the texts: not a bit is different."""
    lines = (Path(__file__).parents[1] / "engine" / "references" / "texts.jsonl").read_text().splitlines()
    model = serve_model(DEFAULT_MODEL, engine="openvino")
    requests = pools.shard(*[line[: 20 + 7 * at % 200] for at, line in enumerate(lines[:60])])
    settings = replace(pools.QUICK, micro_batch_tokens=512, micro_batch_seconds=60.0, heartbeat_seconds=30.0)
    with pools.opened(settings) as pool:
        clean = pools.embed(pool, model, requests)
        origin, stop, told = Origin("a batch"), threading.Event(), list[Done]()

        def progress(done: Done) -> None:
            if done.rows:
                stop.set()

        assert pool.embed(model, requests, on_progress=progress, stop=stop, origin=origin) is None
        assert origin.kept is not None
        assert 0 < origin.kept.num_rows < 60
        found = pools.embed(pool, model, requests, told.append, origin=origin)
    assert found.equals(clean)
    assert sum(told, Done(0)).rows == 60
