"""The engine process by itself, over its pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import pools
import pytest

from embatch.engine import frames
from embatch.engine.hashing import HashingEngine
from embatch.engine.host import wrong
from embatch.engine.packing import pack_padded
from embatch.engine.protocol import EngineSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BUDGET = 64


class Host:
    """An engine process that the test talks to."""

    def __init__(self, environment: Mapping[str, str], threads: int = 0, **options: str) -> None:
        self.spec = EngineSpec("hashing", "test-model", threads=threads, options=options)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "embatch.engine.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self.to, self.out = cast("BinaryIO", self.child.stdin), cast("BinaryIO", self.child.stdout)

    def start(self, **changed: Any) -> None:
        """Send the first frame."""
        frames.write(
            self.to,
            {
                "type": "start",
                "spec": asdict(self.spec),
                "budget": BUDGET,
                "heartbeat": 0.05,
                "nice": 0,
                "parent": os.getpid(),
                **changed,
            },
        )

    def send(self, job: int, texts: Sequence[str], groups: list[Any] | None = None, **more: object) -> None:
        """Send a job."""
        content = [text.encode() for text in texts]
        lengths = [len(text) for text in content]
        header = {"type": "job", "job": job, "lengths": lengths, "groups": groups, **more}
        frames.write(self.to, header, b"".join(content))

    def ran(self, last: int) -> list[int]:
        """Return the jobs of the micro-batches that are begun from now on, until one of them is done."""
        jobs = []
        while (frame := self.next()).header["type"] != "done" or frame.header["job"] != last:
            if frame.header["type"] == "started":
                jobs.append(frame.header["job"])
        return jobs

    def until(self, kind: str, job: int) -> None:
        """Read up to the first frame of a kind of a job."""
        while (frame := self.next()).header["type"] != kind or frame.header["job"] != job:
            pass

    def next(self) -> frames.Frame:
        """Return the next frame that is no heartbeat."""
        while True:
            frame = frames.read(self.out)
            assert frame is not None, self.child.stderr and self.child.stderr.read().decode()
            if frame.header["type"] != "alive":
                return frame

    def until_done(self, job: int) -> list[frames.Frame]:
        """Return the frames of a job, the last one excluded."""
        found: list[frames.Frame] = []
        while (frame := self.next()).header["type"] != "done" or frame.header["job"] != job:
            found.append(frame)
        return [frame for frame in found if frame.header["job"] == job]


@contextmanager
def hosting(environment: Mapping[str, str] | None = None, threads: int = 0, **options: str) -> Iterator[Host]:
    """Run an engine process that has not been told anything yet."""
    host = Host(environment or {}, threads, **options)
    with host.child:
        try:
            yield host
        finally:
            host.child.kill()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A loaded process with a poisonable engine."""
    with hosting(poison="1") as made:
        made.start()
        assert made.next().header["type"] == "ready"
        yield made


def _types(found: Sequence[frames.Frame]) -> list[str]:
    return [frame.header["type"] for frame in found]


def test_a_job_is_encoded_planned_and_run(host: Host) -> None:
    """The plan is that of `pack_padded`, the vectors are the engine's, and every step is told beforehand."""
    engine = HashingEngine(host.spec)
    texts = [text[: 3 * at] for at, text in enumerate(pools.texts(30), start=1)]
    host.send(1, texts)
    found = host.until_done(1)
    encoded = engine.encode(texts)
    plan = pack_padded(encoded.lengths.tolist(), BUDGET, 1, 512)
    assert _types(found) == ["encoding", "encoded", *["started", "finished"] * len(plan)]
    assert found[1].header["tokens"] == encoded.lengths.tolist()
    assert found[1].header["truncated"] == [False] * 30
    assert found[1].header["groups"] == [
        [list(part.rows), [part.shape.rows, part.shape.tokens]] for part in plan
    ]
    for part, frame in zip(plan, found[3::2], strict=True):
        expected = engine.forward([encoded.rows[row] for row in part.rows], part.shape)
        assert frame.body == expected.astype("<f4").tobytes()


def test_given_groups_run_as_they_are(host: Host) -> None:
    """Rows are taken in order, in the shapes that are said, also where another plan would be better."""
    host.send(2, ["a", "b", "c"], [[1, [8, 16]], [2, [8, 16]]])
    found = host.until_done(2)
    assert found[1].header["groups"] == [[[0], [8, 16]], [[1, 2], [8, 16]]]
    assert [len(frame.body) for frame in found if frame.header["type"] == "finished"] == [256, 512]


def test_no_groups_ask_for_encoding_alone(host: Host) -> None:
    """Nothing runs."""
    host.send(3, ["a", "b"], [])
    assert _types(host.until_done(3)) == ["encoding", "encoded"]


def test_one_text_at_a_time() -> None:
    """However many streams there are: else it would not tell what one text costs."""
    with hosting(threads=2, delay="0.05") as made:
        made.start()
        assert made.next().header["type"] == "ready"
        made.send(1, pools.texts(4), alone=True)
        found = made.until_done(1)
    assert _types(found) == ["encoding", "encoded", *["started", "finished"] * 4]


def test_no_texts_are_done_at_once(host: Host) -> None:
    """An empty job has an empty plan."""
    host.send(4, [])
    assert _types(host.until_done(4)) == ["encoding", "encoded"]


def test_a_panic_spares_the_process(host: Host) -> None:
    """What is no `Exception` ends the job, and the next one is encoded."""
    host.send(5, ["embatch-poison:panic-encode"])
    host.send(6, ["fine"])
    assert _types(host.until_done(5)) == ["encoding", "unreadable"]
    assert _types(host.until_done(6)) == ["encoding", "encoded", "started", "finished"]


def test_wrong_numbers_are_not_passed_on(host: Host) -> None:
    """Each micro-batch is judged by itself."""
    host.send(7, ["embatch-poison:nan", "embatch-poison:shape", "fine"], [[1, [1, 8]]] * 3)
    found = host.until_done(7)
    assert [frame.header.get("reason") for frame in found if frame.header["type"] != "started"][2:] == [
        "NUMBER",
        "SHAPE",
        None,
    ]
    assert found[-1].header["type"] == "finished"


def test_signals_to_the_group_are_left_to_the_service(host: Host) -> None:
    """Ctrl-C, TERM and a closed terminal end the service, which lets running micro-batches finish."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        host.child.send_signal(number)
    host.send(8, ["fine"])
    assert host.until_done(8)[-1].header["type"] == "finished"


def test_the_next_job_is_encoded_while_one_runs() -> None:
    """And a cancelled job begins no further micro-batch."""
    with hosting(delay="0.05") as host:
        host.start()
        host.next()
        host.send(1, pools.texts(400))
        while host.next().header["type"] != "started":
            pass
        host.send(2, ["later"])
        while (frame := host.next()).header["job"] != 2 or frame.header["type"] != "encoded":
            assert frame.header["type"] != "done"
        frames.write(host.to, {"type": "cancel", "job": 1})
        assert len(host.until_done(1)) <= 4
        assert host.until_done(2)[-1].header["type"] == "finished"


def _busy(host: Host, texts: Sequence[str], batch: str, priority: int = 0) -> None:
    """Have job 1 run, one micro-batch of its many."""
    host.start()
    host.next()
    host.send(1, texts, batch=batch, priority=priority)
    host.until("started", 1)


def test_batches_take_turns_by_the_micro_batch() -> None:
    """A small one beside a large one waits for what runs; jobs of one batch follow one another."""
    with hosting(delay="0.02") as host:
        _busy(host, pools.texts(400), batch="large")
        host.send(2, pools.texts(16), batch="small")
        host.send(3, pools.texts(8), batch="small")
        host.until("encoded", 2)
        before = host.ran(2)
        assert before.count(2) == 2
        assert before.count(1) <= 3  # one may begin just before it can
        assert 3 not in before
        assert host.ran(3).count(1) <= 2
        assert set(host.ran(1)) == {1}


def test_a_higher_priority_comes_first_and_may_come_later() -> None:
    """By the header of a job, and by a frame for the jobs that are open."""
    with hosting(delay="0.02") as host:
        _busy(host, pools.texts(400), batch="first", priority=1)
        host.send(2, pools.texts(80), batch="second")
        host.until("encoded", 2)
        frames.write(host.to, {"type": "priority", "job": 2, "priority": 2})
        host.send(3, pools.texts(80), batch="third", priority=3)
        host.until("started", 3)
        order = host.ran(2)
        assert order == sorted(order, reverse=True)
        assert set(order) == {3, 2}
        frames.write(host.to, {"type": "priority", "job": 99, "priority": 2})
        assert set(host.ran(1)) == {1}


def test_what_runs_alone_waits_for_what_runs_only_and_holds_no_encoding() -> None:
    """It comes before all that is queued, whatever the priority; others are encoded beside it."""
    with hosting(threads=2, delay="0.1") as host:
        _busy(host, pools.texts(400), batch="first", priority=9)
        host.send(2, pools.texts(6), alone=True)
        host.send(3, pools.texts(8), batch="third", priority=9)
        host.until("encoded", 2)
        kinds: list[tuple[str, int]] = []
        while (frame := host.next()).header["type"] != "done" or frame.header["job"] != 2:
            kinds.append((frame.header["type"], frame.header["job"]))
        begun = [job for kind, job in kinds if kind == "started"]
        assert begun.count(1) <= 2  # one on each stream may begin just before it can
        assert begun[-6:] == [2] * 6
        assert ("encoded", 3) in kinds
        assert ("started", 3) not in kinds


def test_groups_that_were_kept_are_left_out_of_the_same_plan_alone(host: Host) -> None:
    """The plan has its digest; of another one nothing is left out."""
    host.send(40, pools.texts(24))
    first = host.until_done(40)
    plan = first[1].header["plan"]
    assert first[1].header["kept"] == []
    host.send(41, pools.texts(24), kept={"plan": plan, "groups": [0, 2]})
    again = host.until_done(41)
    assert again[1].header["kept"] == [0, 2]
    assert again[1].header["groups"] == first[1].header["groups"]
    (only,) = [frame for frame in again if frame.header["type"] == "finished"]
    same = [frame for frame in first if frame.header["type"] == "finished"][1]
    assert (only.header["group"], only.body) == (1, same.body)
    host.send(42, pools.texts(25), kept={"plan": plan, "groups": [0, 2]})
    assert _types(host.until_done(42)).count("finished") == 4
    host.send(43, pools.texts(24), kept={"plan": plan, "groups": [0, 1, 2]})
    assert _types(host.until_done(43)) == ["encoding", "encoded"]


def test_a_job_that_is_cancelled_before_its_turn_ends_at_once() -> None:
    """Whether it waits to run or to be encoded; nothing of it is begun, and the others go on."""
    with hosting(delay="0.05") as host:
        _busy(host, pools.texts(80), batch="first", priority=1)
        host.send(2, pools.texts(80))
        host.until("encoded", 2)
        frames.write(host.to, {"type": "cancel", "job": 2})
        assert 2 not in host.ran(2)
        assert set(host.ran(1)) == {1}


def test_what_libraries_print_does_not_reach_the_pipe(tmp_path: Path) -> None:
    """Neither Python's standard output nor the file descriptor itself is the pipe."""
    code = (
        "def loud(self, rows, shape):\n"
        "    print('printed', flush=True)\n"
        "    os.write(1, b'written')\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = loud\n"
    )
    with hosting(pools.sabotaged(tmp_path, code)) as host:
        host.start()
        host.next()
        host.send(1, ["fine"])
        assert _types(host.until_done(1))[-1] == "finished"
        host.to.close()
        assert host.child.wait(120) == 0
        assert host.child.stderr is not None
        assert host.child.stderr.read() == b"printed\nwritten"


def test_the_end_of_the_pipe_ends_the_process_even_while_it_hangs() -> None:
    """Also where the kernel does not tell of a parent's death."""
    with hosting(poison="1") as host:
        host.start()
        host.next()
        host.send(1, ["embatch-poison:hang"])
        while host.next().header["type"] != "started":
            pass
        host.to.close()
        assert host.child.wait(120) == 0


def test_a_process_whose_parent_is_another_ends_at_once() -> None:
    """The service died while this process was starting, and somebody adopted it."""
    with hosting() as host:
        host.start(parent=os.getpid() + 1)
        assert frames.read(host.out) is None
        assert host.child.wait(120) == 0


def test_an_engine_that_does_not_load_says_why() -> None:
    """In the engine's own words, as the only frame."""
    with hosting(colour="red") as host:
        host.start()
        frame = host.next()
        assert (frame.header["type"], "no option colour" in frame.header["message"]) == ("failed", True)
        assert frames.read(host.out) is None
        assert host.child.wait(120) == 0


def test_vectors_are_judged() -> None:
    """Shape, numbers, and one vector for texts that differ in more than the order of their tokens."""
    ids = [np.array(row, np.int32) for row in ([1, 2], [2, 1], [3, 4])]
    good = np.eye(3, 4, dtype=np.float32)
    same = np.ones((3, 4), np.float32)
    assert wrong(good, ids, 4) is None
    assert wrong(good, ids, 5) == "SHAPE"
    assert wrong(good[:2], ids, 4) == "SHAPE"
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[2, 1] = value
        assert wrong(bad, ids, 4) == "NUMBER"
    assert wrong(same, ids, 4) == "SAME"
    assert wrong(same[:2], ids[:2], 4) is None
    assert wrong(same[:1], ids[:1], 4) is None
    assert wrong(same, ["Same", "same", "SAME"], 4) is None
