"""Commands that name a model which nobody serves yet: a folder here, a name on the Hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from commands import run_here
from hub_stand_in import Hub, serving_hub
from tiny import Tiny

from embatch.client.ending import stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMAND = [sys.executable, "-m", "embatch"]


@pytest.fixture(autouse=True)
def lingering(tmp_path: Path) -> Iterator[None]:
    """Let one service do for all commands of a test."""
    yield
    stop(tmp_path / "data", lambda: None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Serve `org/tiny`."""
    with serving_hub(org__tiny=(COMMIT, Tiny().write(tmp_path / "tiny"))) as hub:
        yield hub


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A few texts."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "number {number}"}}\n' for number in range(20)))
    return path


def environment(data: Path, hub: Hub | None = None) -> dict[str, str | None]:
    """Return what a command finds around it that is not as ever."""
    found: dict[str, str | None] = {name: None for name in os.environ if name.startswith("HF_")}
    found |= {"EMBATCH_DATA": str(data), "EMBATCH_LINGER_SECONDS": "300", "COLUMNS": "200"}
    if hub is not None:
        found |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(data.with_name("cache"))}
    return found


def run(here: Path, data: Path, *arguments: str, hub: Hub | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    return run_here(*arguments, environ=environment(data, hub), folder=here)


def test_the_folder_that_stands_there_is_meant(tmp_path: Path, source: Path) -> None:
    """From two folders the same words name two models; a run that is repeated is the same run."""
    data = tmp_path / "data"
    for at, size in (("a", 64), ("b", 32)):
        Tiny(hidden=size).write(tmp_path / at / "models" / "final")
        arguments = ("embed", str(source), "-o", "out.parquet", "--model", "./models/final")
        done = run(tmp_path / at, data, *arguments)
        assert done.returncode == 0, done.stderr
        assert f"{size} dimensions, models/final-" in done.stderr
        assert run(tmp_path / at, data, *arguments).returncode == 0
        assert len(pq.read_table(tmp_path / at / "out.parquet").column("embedding")[0]) == size


def test_submit_and_cost_take_a_model_and_an_engine(tmp_path: Path, source: Path) -> None:
    """The name that is served is shown; what no engine can be is refused before anything is stored."""
    data = tmp_path / "data"
    Tiny().write(tmp_path / "final")
    named = ("--model", "./final", "--engine", "openvino", "--precision", "f32")
    cost = run(tmp_path, data, "cost", str(source), *named, "--measure", "0")
    assert cost.returncode == 0, cost.stderr
    assert "tokens of final-" in cost.stdout
    submitted = run(tmp_path, data, "submit", str(source), *named, "--engine-option", "max_tokens=8")
    assert submitted.returncode == 0, submitted.stderr
    watched = run(tmp_path, data, "watch", submitted.stdout.strip())
    assert watched.returncode == 0, watched.stderr
    listed = run(tmp_path, data, "models").stdout.splitlines()
    assert [line.split("-")[0] for line in listed[1:]] == ["models/final"] * (len(listed) - 1)
    for option, words in (("poling=cls", "no option 'poling'"), ("pooling=best", "pooling must be of")):
        refused = run(tmp_path, data, "submit", str(source), *named, "--engine-option", option)
        assert refused.returncode == 2, refused.stderr
        assert words in refused.stderr
    assert len(run(tmp_path, data, "list", "--json").stdout.splitlines()) == 1


def test_what_no_engine_can_run_is_said_before_anything_is_stored(tmp_path: Path, source: Path) -> None:
    """A batch would wait for it until it expires."""
    folder = Tiny().write(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "odd"}))
    data = tmp_path / "data"
    named = ("--model", "./odd", "--engine", "openvino")
    for command in (("submit", str(source)), ("embed", str(source), "-o", "out.parquet")):
        refused = run(tmp_path, data, *command, *named)
        assert refused.returncode == 1
        assert "odd" in refused.stderr.splitlines()[-1]
        assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert run(tmp_path, data, "list", "--json").stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"data", "in.jsonl", "odd"}


def test_a_name_that_is_a_folder_here_says_what_to_write(tmp_path: Path, source: Path, hub: Hub) -> None:
    """A name without ./ is the Hub's, whatever lies here."""
    Tiny().write(tmp_path / "out" / "final")
    done = run(tmp_path, tmp_path / "data", "submit", str(source), "--model", "out/final", hub=hub)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Hub gave no files of out/final")
    assert "write ./out/final" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_the_wait_for_a_fetch(tmp_path: Path, source: Path, hub: Hub) -> None:
    """At once, with a word of what stays; the fetch ends with it, and the same command goes on from there."""
    hub.stalling.add("model.safetensors")
    data = tmp_path / "data"
    command = [*COMMAND, "embed", str(source), "-o", "out.parquet", "--model", "org/tiny"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={
            name: value
            for name, value in {**os.environ, **environment(data, hub)}.items()
            if value is not None
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("fetching org/tiny: ")
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert "interrupted: " in said
    assert "stays in the Hub's cache, and the same command goes on" in said
    assert hub.left.wait(60), "nobody asks about the fetch any more, and it goes on"
    hub.stalling.clear()
    done = run(tmp_path, data, *command[3:], hub=hub)
    assert done.returncode == 0, done.stderr
    assert "64 dimensions, models/org/tiny" in done.stderr
