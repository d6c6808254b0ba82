"""The command line as people and scripts use it: real processes, a real local service, real exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_here

from embatch import Client, cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMAND = [sys.executable, "-m", "embatch"]


def _environment(data: Path) -> Mapping[str, str]:
    return {**os.environ, "EMBATCH_DATA": str(data), "COLUMNS": "200", "NO_COLOR": "1"}


def _run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=_environment(data),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )


def _here(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments, environ={"EMBATCH_DATA": str(data), "COLUMNS": "200"})


def _jsonl(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _passages(path: Path) -> Path:
    """Write texts whose work lasts longer than it takes to see that it was accepted: a model is loaded."""
    return _jsonl(
        path,
        [
            orjson.dumps({"text": f"Passage {n} speaks of the number {n * n}. " * (n % 8 + 1)})
            for n in range(100)
        ],
    )


def _accepted(data: Path) -> bool:
    """Return whether a batch is in the store: its texts are durable earlier, but nobody was told so yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{data / 'embatch.db'}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM batch").fetchall())
    except sqlite3.OperationalError:  # there is no database yet, or no table in it
        return False


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose service has a client all the while: commands that need one find it running."""
    data = tmp_path_factory.mktemp("attended") / "data"
    with Client(data=data) as client:
        assert list(client.list_batches()) == []
        yield data


def test_embed_keeps_order_ids_and_bad_rows(tmp_path: Path) -> None:
    """A bad line and an empty text fail alone with their reason; exit code 3 says that some failed."""
    source = _jsonl(
        tmp_path / "in.jsonl",
        [
            b'{"doc":"a","body":"The cat sat on the mat."}',
            b"{broken",
            b'{"doc":"c","body":""}',
            b'{"doc":"d","body":"The cat sat on the mat."}',
        ],
    )
    out = tmp_path / "out.parquet"
    done = _run(tmp_path / "data", "embed", str(source), "--text", "body", "--id", "doc", "-o", str(out))
    assert done.returncode == 3, done.stderr
    assert "4 rows, 2 failed, 384 dimensions" in done.stderr
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["a", None, "c", "d"]
    assert [row["error"] is None for row in rows] == [True, False, False, True]
    assert "line 2" in rows[1]["error"]
    assert rows[0]["embedding"] == rows[3]["embedding"]
    assert rows[1]["embedding"] is rows[2]["embedding"] is None
    assert list((tmp_path / "data" / "batches").iterdir()) == []


def test_embed_goes_on_after_kill_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """Killed while it works, the same command finds its batch and writes what an undisturbed run writes."""
    source = _passages(tmp_path / "in.jsonl")
    data = tmp_path / "data"
    first = subprocess.Popen(
        [*COMMAND, "embed", str(source), "-o", str(tmp_path / "out.parquet")],
        env=_environment(data),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with first:
        _until(lambda: _accepted(data))
        first.kill()
    assert not (tmp_path / "out.parquet").exists()
    again = _run(data, "embed", str(source), "-o", str(tmp_path / "out.parquet"))
    assert again.returncode == 0, again.stderr
    assert "100 rows had been done or handed over by an earlier call" in again.stderr
    fresh = _run(tmp_path / "other", "embed", str(source), "-o", str(tmp_path / "fresh.parquet"))
    assert fresh.returncode == 0, fresh.stderr
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "fresh.parquet"))


def test_interrupting_says_that_the_work_stays(tmp_path: Path) -> None:
    """Ctrl-C ends with 130, leaves no half output, and the batch waits in the data folder."""
    source = _passages(tmp_path / "in.jsonl")
    data = tmp_path / "data"
    with subprocess.Popen(
        [*COMMAND, "embed", str(source), "-o", str(tmp_path / "out.parquet")],
        env=_environment(data),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as running:
        _until(lambda: _accepted(data))
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in.jsonl", "out.parquet.embatch"]
    listed = _run(data, "list", "--json")
    (batch,) = [orjson.loads(line) for line in listed.stdout.splitlines()]
    assert batch["request_count"] == 100
    assert batch["state"] in ("PENDING", "PROCESSING", "COMPLETED")


def test_a_batch_by_hand(attended: Path, tmp_path: Path) -> None:
    """Submit prints the name, watch follows it, results writes it, delete drops it."""
    data = attended
    source = _jsonl(tmp_path / "in.jsonl", [b'{"id":"x","text":"one"}', b'{"id":"y","text":"two"}'])
    submitted = _here(data, "submit", str(source), "--id", "id", "--name", "By hand", "--priority", "7")
    assert submitted.returncode == 0, submitted.stderr
    name = submitted.stdout.strip()
    assert re.fullmatch(r"batches/[a-z0-9]+", name)
    out = tmp_path / "out.parquet"
    watched = _here(data, "watch", name, "--interval", "0.1")
    assert watched.returncode == 0, watched.stderr
    assert "COMPLETED" in watched.stdout
    assert "By hand" in watched.stdout
    fetched = _here(data, "results", name, "-o", str(out), "--dim", "64")
    assert fetched.returncode == 0, fetched.stderr
    table = pq.read_table(out)
    assert table.column("id").to_pylist() == ["x", "y"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert _here(data, "delete", name).returncode == 0
    assert _here(data, "list").stdout.count("batches/") == 0
    gone = _here(data, "watch", name)
    assert gone.returncode == 1
    assert "error:" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "IN", "--text", "nope", "-o", "OUT"], "no column 'nope'"),
        (["embed", "missing.jsonl", "-o", "OUT"], "is not a file"),
        (["embed", "IN", "-o", "out.csv"], "must end in .parquet"),
        (["embed", "IN", "-o", "OUT", "--dtype", "int4"], "--dtype is one of float32"),
        (["embed", "IN", "-o", "OUT", "--block-rows", "0"], "--block-rows is out of range"),
        (["embed", "IN", "-o", "/nowhere/at/all.parquet"], "there is no folder /nowhere/at"),
        (["embed", "IN", "-o", "OUT", "--to", "ftp://host"], "a target is"),
        (["embed", "IN", "-o", "OUT", "--task-type", "POETRY"], "task-type"),
        (["embed", "IN", "-o", "IN"], "is a file of the input, which would be lost"),
        (["embed", "IN", "-o", "FOLDER"], "is a folder"),
        (["embed", "IN", "-o", "out\udcff.parquet"], "is not UTF-8"),
        (["embed", "IN", "-o", "OUT", "--retry-failed", "--restart"], "give one of them"),
        (["embed", "IN", "-o", "OUT", "--dim", "385"], "--dim 385: the vectors have 384 dimensions"),
        (["serve", "--alias", "x"], "takes NAME=VALUE"),
        (["serve", "--host", "0.0.0.0"], "--insecure-no-auth"),  # noqa: S104  (refused is what is tested)
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(
    attended: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Each mistake has its message and writes nothing."""
    source = _jsonl(tmp_path / "in.jsonl", [b'{"text":"one"}'])
    before, folder = source.read_bytes(), tmp_path / "folder.parquet"
    folder.mkdir()
    places = {"IN": str(source), "OUT": str(tmp_path / "out.parquet"), "FOLDER": str(folder)}
    done = _here(attended, *[places.get(argument, argument) for argument in arguments])
    assert done.returncode == 2, done.stderr
    assert said in done.stderr + done.stdout
    assert not (tmp_path / "out.parquet").exists()
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "error", [OSError("no room in out.parquet"), pa.ArrowKeyError("no room in out.parquet")]
)
def test_trouble_with_a_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Whatever nobody else has caught: no traceback, and the code of a failure."""

    def full(*_: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as left:
        cli.main(["list"])
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: no room in out.parquet\n"


def test_help_says_where_the_data_folder_is(tmp_path: Path) -> None:
    """`--help` names the folder, how to change it, and the exit codes."""
    done = _run(tmp_path / "elsewhere", "--help")
    assert done.returncode == 0
    flat = re.sub(r"\s+", "", done.stdout)
    assert str(tmp_path / "elsewhere").replace(" ", "") in flat
    assert "EMBATCH_DATA" in done.stdout
    assert "finishedwithfailedrows" in flat


def _until(condition: object) -> None:
    """Wait for a file that another process writes: there is nothing to await but the file system."""
    import time

    deadline = time.monotonic() + 60
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        os.sched_yield()
