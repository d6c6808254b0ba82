"""The commands, at Vertex: where batches run and the bucket that they go through are flags or variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pyarrow.parquet as pq
import pytest
from at_vertex import vertex
from commands import run_here
from hosted.behaviour import Behaviour

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


pytestmark = pytest.mark.hosted


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in this process."""
    done = run_here(*arguments)
    assert done.returncode == code, done.stderr
    return done


def source(folder: Path) -> Path:
    """Return a file of five texts with ids."""
    file = folder / "in.jsonl"
    file.write_text("".join(f'{{"id": "row-{at}", "text": "text {at}"}}\n' for at in range(5)))
    return file


def test_a_batch_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitted, followed, read, listed and deleted, with what was staged for it."""
    at, out = ("--to", "vertex"), tmp_path / "out.jsonl"
    with vertex(monkeypatch, Behaviour(reorder=True)) as google:
        name = run("submit", source(tmp_path), "--id", "id", *at).stdout.strip()
        run("watch", name, *at, "--interval", "0")
        run("results", name, *at, "-o", out, "--dim", "8")
        (listed,) = run("list", *at, "--json").stdout.splitlines()
        run("delete", name, *at)
        assert google.storage.names() == []
        assert run("models", *at).stdout.startswith("models/gemini-embedding-001")
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [row["id"] for row in rows] == [f"row-{at}" for at in range(5)]
    assert orjson.loads(listed)["name"] == name


def test_what_a_state_cannot_say_is_shown_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the list, while a batch is followed, and at its end."""
    behaviour = Behaviour(stays="QUEUED", staying_batches=(1,), ends=("SUCCEEDED", "PARTIALLY_SUCCEEDED"))
    with vertex(monkeypatch, behaviour):
        first = run("submit", source(tmp_path), "--to", "vertex").stdout.strip()
        waited = run("watch", first, "--to", "vertex", "--interval", "0.01", "--timeout", "0.1", code=6)
        assert "PENDING (queued)" in run("list", "--to", "vertex").stdout
        (shown,) = run("list", "--to", "vertex", "--json").stdout.splitlines()
        second = run("submit", source(tmp_path), "--to", "vertex").stdout.strip()
        partly = run("watch", second, "--to", "vertex", "--interval", "0", code=3)
    assert "goes on" in waited.stderr
    assert orjson.loads(shown)["note"].startswith("queued: ")
    assert "COMPLETED (partially succeeded)" in partly.stdout
    assert "note: partially succeeded" in partly.stderr


def test_a_dataset_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one command; flags come before the variables."""
    out = tmp_path / "out.parquet"
    with vertex(monkeypatch) as google:
        for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "EMBATCH_STAGING"):
            monkeypatch.setenv(name, "../nowhere")
        where = ["--project", google.project, "--location", "europe-west4"]
        where += ["--staging", f"{google.bucket}/here", "--data", str(tmp_path / "data")]
        run("embed", source(tmp_path), "--to", "vertex", *where, "--dim", "8", "-o", out)
        assert google.creates == 1
        assert "/europe-west4/" in google.jobs[0].name
        assert google.bucket + "/here/" in str(google.jobs[0].details["inputConfig"])
    assert pq.read_table(out).num_rows == 5


def test_what_is_missing_is_named_by_its_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usage error, before anything is sent."""
    with vertex(monkeypatch) as google:
        monkeypatch.delenv("EMBATCH_STAGING")
        said = run("submit", source(tmp_path), "--to", "vertex", code=2)
        assert "--staging" in said.stderr
        monkeypatch.delenv("GOOGLE_CLOUD_LOCATION")
        said = run("list", "--to", "vertex", code=2)
        assert "--location" in said.stderr
        said = run("list", "--to", google.url, "--project", "my-project", code=2)
        assert "project goes with `vertex`" in said.stderr
        assert google.calls == {}
