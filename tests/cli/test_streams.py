"""Commands without a display: standard streams that are closed, full or gone, a terminal that goes away."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving import Served

COMMAND = shlex.join([sys.executable, "-m", "embatch"])
ROWS = 60
GONE = "> >(exec <&-) 2> >(exec <&-)"
"""Both streams are pipes that nobody reads."""
needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="a disk that is always full is Linux's"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that takes its time, so that there is something to show."""
    data = tmp_path_factory.mktemp("streams") / "data"
    with serving(data, "--engine-option", "delay=0.02") as served:
        yield served


@pytest.fixture(autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a folder for the index of runs, beside nothing else."""
    monkeypatch.setenv("EMBATCH_DATA", str(tmp_path_factory.mktemp("index") / "data"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Some texts, the last of them empty."""
    path = tmp_path / "in.jsonl"
    lines = [f'{{"text":"{tmp_path.name} with the number {number}"}}\n' for number in range(ROWS - 1)]
    path.write_text("".join(lines) + '{"text":""}\n', "utf-8")
    return path


def shell(line: str, code: int) -> subprocess.CompletedProcess[str]:
    """Run a line of shell whose last command has this exit code."""
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, (line, done.stdout, done.stderr)
    return done


@pytest.mark.parametrize(
    "streams",
    [
        "2>&-",
        ">&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "2> >(exec <&-)",
        "> >(exec <&-) 2>&1",
        pytest.param("2>/dev/full", marks=needs_full),
        pytest.param(">/dev/full 2>&1", marks=needs_full),
    ],
)
def test_a_run_goes_on_without_a_display(service: Served, source: Path, streams: str) -> None:
    """It writes what it always writes, and its exit code says how the work went: one row failed."""
    out = source.with_name("out.parquet")
    arguments = f"embed {source} -o {out} --to {service.url} --block-rows 20"
    shell(f"{COMMAND} {arguments} {streams}", 3)
    table = pq.read_table(out)
    assert table.num_rows == ROWS
    assert table.column("embedding").null_count == 1
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.jsonl", "out.parquet"]


def test_each_command_goes_on_without_a_display(service: Served, source: Path, tmp_path: Path) -> None:
    """What it does is done, and what is wrong has its exit code, whoever listens."""
    to = f"--to {service.url}"
    name = shell(f"{COMMAND} submit {source} {to}", 0).stdout.strip()
    commands = [
        (f"submit {source} {to}", 0),
        (f"watch {name} {to} --interval 0.05", 3),
        (f"results {name} {to} -o {tmp_path}/out.jsonl", 3),
        (f"list {to}", 0),
        (f"list --json {to}", 0),
        (f"models {to}", 0),
        (f"cost {source} {to} --measure 0", 0),
        ("--help", 0),
        (f"delete {name} {to}", 0),
        (f"watch {name} {to}", 1),
        (f"embed {source} {to} -o out.nothing", 2),
        ("frobnicate", 2),
    ]
    for (command, code), closed in zip(commands, cycle([">&- 2>&-", GONE, GONE]), strict=False):
        shell(f"{COMMAND} {command} {closed}", code)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == ROWS


def test_the_first_lines_are_enough(service: Served, source: Path) -> None:
    """A reader that has seen enough is no failure, and nothing is said of it."""
    for _ in range(3):
        shell(f"{COMMAND} submit {source} --to {service.url}", 0)
    for command in (f"list --json --to {service.url}", "--help"):
        said = shell(f"set -o pipefail; {COMMAND} {command} | head -1", 0)
        assert (len(said.stdout.splitlines()), said.stderr) == (1, "")


@needs_full
def test_what_a_full_disk_does_not_take_is_an_error(service: Served, source: Path) -> None:
    """Where standard output is what was asked for; a batch that was accepted is named all the same."""
    said = shell(f"{COMMAND} submit {source} --to {service.url} >/dev/full", 1).stderr
    for command in ("list", "list --json", "models"):
        full = shell(f"{COMMAND} {command} --to {service.url} >/dev/full", 1).stderr
        assert full == "error: standard output cannot be written: No space left on device\n"
    name = said.splitlines()[0].removeprefix("submitted as ")
    shell(f"{COMMAND} watch {name} --to {service.url} --interval 0.05 >/dev/full", 3)


def test_a_closed_stream_is_nobody_elses_file(service: Served, source: Path) -> None:
    """Without the three numbers of the streams, no file that is opened is written by what else is said."""
    out = source.with_name("out.jsonl")
    shell(f"{COMMAND} embed {source} -o {out} --to {service.url} <&- >&- 2>&-", 3)
    lines = out.read_bytes().splitlines()
    assert len(lines) == ROWS
    assert all(line.startswith(b"{") and line.endswith(b"}") for line in lines)


TERMINAL = """
import os, sys
os.setsid()
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "embatch", *sys.argv[2:]])
"""


def test_a_terminal_that_goes_away_takes_nothing_with_it(service: Served, source: Path) -> None:
    """The window is closed in the midst of the work: hung up, with nowhere to write, the run ends as ever."""
    ours, theirs = os.openpty()
    out = source.with_name("out.parquet")
    arguments = ["embed", str(source), "-o", str(out), "--to", service.url, "--block-rows", "5"]
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(theirs), *arguments],
        pass_fds=[theirs],
        env={**os.environ, "TERM": "xterm"},
    ) as running:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # it ended before: the assertion says so
            while b"/60" not in shown:
                shown += os.read(ours, 4096)
        assert running.poll() is None, shown
        os.close(ours)
        assert running.wait(timeout=120) == 3
    assert pq.read_table(out).num_rows == ROWS
