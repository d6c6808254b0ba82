"""Runs whose blocks end by their bytes: stopped, damaged, with texts that are too large; what is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pyarrow.parquet as pq
import pytest
from serving import Served, serving

from embatch import Client
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embatch.runs.progress import RunProgress, Summary

TEXT = 900_000
"""Bytes of a text: 74 of them are a block."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that embeds at once."""
    with serving(tmp_path_factory.mktemp("blocks") / "data", "--engine-option", "dimensions=8") as served:
        yield served


@pytest.fixture
def client(service: Served) -> Iterator[Client]:
    """A client of it."""
    with Client(service.url) as client:
        yield client


def _write(path: Path, texts: list[str]) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return path


def _run(client: Client, source: Path, out: Path, poll: Callable[[], object] = lambda: None) -> Summary:
    def polled(standing: RunProgress) -> None:
        del standing
        poll()

    options = RunOptions(out.parent / "data", cache=False)
    return embed_dataset(client, open_source(source, None, None), str(out), EmbedOptions(), options, polled)


def _committed(out: Path) -> list[tuple[int, int]]:
    lines = (out.parent / f"{out.name}.embatch" / "ledger.jsonl").read_bytes().splitlines()
    blocks = [said["block"] for said in map(orjson.loads, lines[1:]) if "block" in said]
    return [(block["first"], block["rows"]) for block in blocks]


def test_blocks_cut_by_bytes_are_the_same_after_a_stop_and_a_loss(client: Client, tmp_path: Path) -> None:
    """Batches that were handed over are found again, and a lost block is worked again alone."""
    texts = [f"{at:06} " + "x" * (TEXT - 7) for at in range(100)]
    source, out = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet"

    def stop_after_a_block() -> None:
        if (tmp_path / "out.parquet.embatch").is_dir() and _committed(out):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(client, source, out, stop_after_a_block)
    assert _committed(out)[0] == (0, 74)
    waiting = {batch.name for batch in client.list_batches()}
    (tmp_path / "out.parquet.embatch" / "part-000000-0.arrow").unlink()
    summary = _run(client, source, out)
    assert list(client.list_batches()) == []
    assert waiting
    assert (summary.rows, summary.failed) == (100, 0)
    assert summary.notes[-1].startswith("74 rows were done before and worked again")
    fresh = tmp_path / "fresh.parquet"
    _run(client, source, fresh)
    assert fresh.read_bytes() == out.read_bytes()


def test_a_huge_text_fails_as_its_row_alone(client: Client, tmp_path: Path) -> None:
    """Over what the service takes, over what is read at all, and beside others."""
    texts = ["a", "x" * (5 << 20), "y" * (65 << 20), "b", "ü" * (33 << 20)]
    out = tmp_path / "out.parquet"
    summary = _run(client, _write(tmp_path / "in.jsonl", texts), out)
    rows = pq.read_table(out).to_pylist()
    assert [row["embedding"] is None for row in rows] == [False, True, True, False, True]
    assert "bytes of UTF-8" in rows[1]["error"]
    assert rows[2]["error"] == "line 3: it is over 64 MiB long"
    assert (summary.failed, summary.retryable) == (3, 0)
    assert not (tmp_path / "out.parquet.embatch").exists()


def test_commands_say_what_they_leave_out(service: Served, tmp_path: Path) -> None:
    """`embed` in its summary, and `cost` and `submit` too; the rows of others are named by their file."""
    folder = tmp_path / "in"
    folder.mkdir()
    _write(folder / "1.jsonl", ["a"])
    (folder / "2.jsonl").write_bytes(b'{"text":"b"}\n{broken\n')
    (folder / "3.json").write_bytes(b"{}\n")
    to = ("--to", service.url, "--data", str(tmp_path / "data"))
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}

    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "embatch", *arguments, *to]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stderr

    note = "note: left out 1, for their endings tell no format that embatch reads: 3.json"
    out = tmp_path / "out.jsonl"
    assert note in said("embed", str(folder), "-o", str(out))
    errors = [orjson.loads(line)["error"] for line in out.read_bytes().splitlines()]
    assert errors[:2] == [None, None]
    assert errors[2].startswith("2.jsonl, line 2: not JSON")
    assert note in said("cost", str(folder), "--measure", "0")
    assert "row 2: 2.jsonl, line 2: not JSON" in said("submit", str(folder))
    (folder / "2.jsonl").unlink()
    assert note in said("submit", str(folder))
    with Client(service.url) as client:  # what stays in the service, other tests of it would find
        for batch in list(client.list_batches()):
            client.delete_batch(client.await_batch_completion(batch))
