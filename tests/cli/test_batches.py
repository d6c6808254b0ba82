"""The commands about batches, at a service that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2
import orjson
import pytest
from commands import run_here
from serving import serving

from embatch import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Served


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that computes nothing."""
    with serving(tmp_path_factory.mktemp("data")) as served:
        yield served


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to another program, from a terminal of 80 columns."""
    done = run_here(*arguments, environ={"COLUMNS": "80"})
    assert done.returncode == code, done.stderr
    return done


def test_a_batch_of_which_nothing_succeeded(service: Served, tmp_path: Path) -> None:
    """Its errors can be read; its vectors are null, however wide they would have been."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"text":""}\n{"text":" "}\n')
    name = run("submit", source, "--to", service.url).stdout.strip()
    run("watch", name, "--to", service.url, code=3)
    said = run("results", name, "--to", service.url, "-o", out, code=3)
    assert "2 embeddings, 2 failed" in said.stderr
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [row["embedding"] for row in rows] == [None, None]
    assert all("empty" in row["error"] for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_row_without_an_id_has_none_in_its_results(service: Served, tmp_path: Path) -> None:
    """Its number is no id where other rows have one: it could be that of another row."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"text":"one","id":"a"}\n{"text":"two","id":null}\n{"text":"three","id":"1"}\n')
    for arguments, ids in ((("--id", "id"), ["a", None, "1"]), ((), ["0", "1", "2"])):
        name = run("submit", source, *arguments, "--to", service.url).stdout.strip()
        run("watch", name, "--to", service.url)
        run("results", name, "--to", service.url, "-o", out)
        assert [orjson.loads(line)["id"] for line in out.read_bytes().splitlines()] == ids


def test_results_leave_nothing_of_a_longer_batch_in_a_database(service: Served, tmp_path: Path) -> None:
    """A collection holds the batch that was written last, and no row of another one."""
    from qdrant_client import QdrantClient

    for count in (3, 2):
        source = tmp_path / f"{count}.txt"
        source.write_text("".join(f"{count} texts, number {at}\n" for at in range(count)))
        name = run("submit", source, "--to", service.url).stdout.strip()
        run("watch", name, "--to", service.url)
        run("results", name, "--to", service.url, "-o", f"qdrant+file://{tmp_path}/store/texts")
    store = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
    try:
        assert store.count("texts").count == 2
    finally:
        store.close()


def test_names_can_be_copied(service: Served, tmp_path: Path) -> None:
    """A batch is one line, however narrow the terminal is."""
    source = tmp_path / "a rather long name of a file, as they often are.jsonl"
    source.write_bytes(b'{"text":"one"}\n')
    name = run("submit", source, "--to", service.url).stdout.strip()
    lines = run("list", "--to", service.url).stdout.splitlines()
    (line,) = [line for line in lines if name in line]
    assert source.name in line


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_that_the_locale_cannot_write(service: Served, locale: dict[str, str]) -> None:
    """They are shown with escapes, in tables and in JSON lines as they are: no command fails over a name."""
    with Client(service.url) as client:
        name = client.async_batch_embed_contents(["one"], display_name="Größe 東 …").name

    def listed(*flags: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "embatch", "list", "--to", service.url, *flags],
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **locale},
            capture_output=True,
            encoding="utf-8",
            check=True,
            timeout=120,
        ).stdout

    (line,) = [line for line in listed().splitlines() if name in line]
    assert line.rstrip().endswith("Größe 東 …" if not locale else r"Gr\xf6\xdfe \u6771 \u2026")
    rows = [orjson.loads(row) for row in listed("--json").splitlines()]
    assert "Größe 東 …" in [row["display_name"] for row in rows]


def test_an_engine_that_does_not_come_up(tmp_path: Path) -> None:
    """The service says so before anybody waits, and to whoever waits for a batch."""
    why, source = "the openvino engine has no option bogus", tmp_path / "in.jsonl"
    source.write_bytes(b'{"text":"one"}\n')
    with serving(tmp_path / "data", "--engine", "openvino", "--engine-option", "bogus=1") as served:
        deadline = time.monotonic() + 60
        while (reply := httpx2.get(f"{served.url}/readyz", timeout=60)).status_code == 200:
            assert time.monotonic() < deadline, "it seems ready"
        assert reply.json() == {"status": "unready", "reasons": [why]}
        name = run("submit", source, "--to", served.url).stdout.strip()
        said = run("watch", name, "--to", served.url, "--timeout", "1", "--interval", "0.1", code=6).stderr
    assert said.splitlines()[0] == f"it waits: {why}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--port", "99999"), "--port"),
        (("--port", "-5"), "--port"),
        (("--threads", "-2"), "threads"),
        (("--precision", "f16"), "precision"),
    ],
)
def test_a_service_that_cannot_be(tmp_path: Path, flags: tuple[str, str], said: str) -> None:
    """What makes no sense is refused before anything is started, by its name."""
    assert said in run("serve", "--data", tmp_path, *flags, code=2).stderr
