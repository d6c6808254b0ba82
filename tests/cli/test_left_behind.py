"""What a command leaves behind, and the next one tells of: batches in work, and the service itself."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest
from serving import eventually, serving

from embatch import Batch, BatchStats, Client, State, cli
from embatch.cli.others import lines
from embatch.client.ending import Ended, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Served

COMMAND = [sys.executable, "-m", "embatch"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it said, to be read and to be shown."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    """A private service that lingers for longer than a test takes, and that takes its time over texts."""
    environ = {"EMBATCH_LINGER_SECONDS": "300"}
    with serving(tmp_path / "data", "--private", "--engine-option", "delay=0.2", environ=environ) as served:
        yield served


def texts(path: Path) -> Path:
    """Write texts whose work takes some seconds."""
    path.write_bytes(
        b"".join(
            orjson.dumps({"text": f"Passage {n} speaks of the number {n * n}. " * 20}) + b"\n"
            for n in range(6_000)
        )
    )
    return path


def pid(data: Path) -> int:
    """Return the process id of the service of a folder."""
    found: int = orjson.loads((data / "service.json").read_bytes())["pid"]
    return found


def interrupted(data: Path, *arguments: object) -> str:
    """Interrupt a command once it has shown how far it is; return what it said."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--data", str(data)], stderr=subprocess.PIPE, encoding="utf-8"
    ) as running:
        assert running.stderr is not None
        said = ""
        while not said.startswith("PROCESSING"):
            said = running.stderr.readline()
            assert said
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    return said


def test_the_next_command_tells_what_an_interrupted_one_left(
    service: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its batches by name, how much is left and how to be rid of them; with the flag there are none."""
    data, source, out = service.data, texts(tmp_path / "in.jsonl"), tmp_path / "out.parquet"
    small = tmp_path / "small.jsonl"
    small.write_text('{"text": "one"}\n')
    said = interrupted(data, "embed", source, "-o", out, "--block-rows", 2_000)
    assert "the same command goes on" in said
    beside = ("embed", small, "-o", tmp_path / "small.parquet", "--data", data, "--priority", 1)
    code, _, said = run(capsys, *beside)
    assert code == 0, said
    told = re.findall(r"waiting behind it: (batches/\w+) \(in\.jsonl.*\), [\d,]+ left; (.*)", said)
    assert told
    assert all(hint == f"embatch cancel {name} --data {data}" for name, hint in told)
    said = interrupted(data, "embed", source, "-o", out, "--block-rows", 2_000, "--cancel-on-interrupt")
    assert re.search(r"interrupted: \d batch(es)? in work cancelled; finished blocks stay in ", said)
    with Client(data=data) as client:
        assert all(batch.done for batch in client.list_batches())
        name = client.async_batch_embed_contents(
            [f"text {n} " * 50 for n in range(4_000)], display_name="x"
        ).name
    assert "the batch is cancelled" in interrupted(data, "watch", name, "--cancel-on-interrupt")
    with Client(data=data) as client:
        assert client.get_batch_status(name).state is State.CANCELLED
    code, _, said = run(capsys, "stop", "--data", data)
    assert (code, "has ended" in said) == (0, True)
    code, _, said = run(capsys, "stop", "--data", data)
    assert (code, "no service works in" in said) == (0, True)
    assert service.process is not None
    assert service.process.wait(60) == 0


def test_stop_in_the_midst_of_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch waits; a client that is attached hears of nothing, for it goes on with the next service."""
    monkeypatch.setenv("EMBATCH_LINGER_SECONDS", "300")
    source, data = texts(tmp_path / "in.jsonl"), tmp_path / "data"
    with Client(data=data) as client:  # whose service stays while the command comes and goes
        # An engine so slow that the batch would take minutes.
        slow = ("--engine", "hashing", "--engine-option", "delay=0.2", "--data", data)
        code, name, said = run(capsys, "submit", source, *slow)
        assert code == 0, said
        name = name.strip()

        def worked() -> int:
            stats = client.get_batch_status(name).batch_stats
            return stats.successful_request_count + stats.uncommitted_request_count

        eventually(worked)
        first = pid(data)
        waited: list[bool] = []
        assert stop(data, lambda: waited.append(True)) == Ended(first, 1)
        assert len(waited) <= 1
        assert not client.get_batch_status(name).done
        assert pid(data) != first
        before = worked()
        eventually(lambda: worked() > before)
        assert client.cancel_batch(name).state is State.CANCELLED
    stop(data, lambda: None)


def test_a_service_that_somebody_runs_is_not_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says whose it is and how to end it."""
    with serving(tmp_path / "data") as service:
        code, _, said = run(capsys, "stop", "--data", service.data)
        assert code == 1
        assert service.process is not None
        assert f"`embatch serve` holds the data folder {service.data}" in said
        assert f"kill {service.process.pid}" in said
        assert service.process.poll() is None


def batch(name: str, priority: int = 0, *, left: int = 5, state: State = State.PENDING) -> Batch:
    """Return a batch of ten requests, of which so many are left."""
    stats = BatchStats(10, 10 - left - 1, 0, left + 1, 1)
    return Batch(f"batches/{name}", "models/m", state, name, priority, None, None, None, stats)


def test_which_others_are_told_of() -> None:
    """Those that come first or are worked in turn before those that wait; three, and how many more."""
    own = batch("own", 2)
    ended = batch("ended", state=State.COMPLETED)
    said = lines(
        [own, ended, batch("low"), batch("same", 2, left=1_234), batch("high", 9)], {"batches/own"}, 2, ""
    )
    assert said == [
        "worked before it: batches/high (high), 5 left; embatch cancel batches/high",
        "also working: batches/same (same), 1,234 left; embatch cancel batches/same",
        "waiting behind it: batches/low (low), 5 left; embatch cancel batches/low",
    ]
    assert lines([own, ended], {"batches/own"}, 2, "") == []
    many = lines([batch(f"b{at}") for at in range(1_003)], (), 0, " --data 'a b'")
    assert many[3:] == ["and 1,000 batches more: embatch list --data 'a b'"]


def test_a_batch_whose_file_is_read_and_one_without_a_name() -> None:
    """Nobody knows yet how much it is; a name that is not there is left out."""
    unread = replace(batch("new"), batch_stats=BatchStats(), display_name=None)
    assert lines([unread], (), 0, "") == [
        "also working: batches/new, its file is being read; embatch cancel batches/new"
    ]
