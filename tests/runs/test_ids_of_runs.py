"""Whole commands over ids of every kind: what is refused is refused before a batch is made."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from id_arrays import array
from serving import Served, serving

from embatch import Client
from embatch.runs import ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with the hashing engine."""
    with serving(tmp_path_factory.mktemp("ids") / "data") as served:
        yield served


def embatch(service: Served, *arguments: str) -> tuple[int, str]:
    """Run the command line, and return its exit code and standard error."""
    where = ("--to", service.url, "--data", str(service.data))
    command = [sys.executable, "-m", "embatch", *arguments, *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


def table(path: Path, values: Any) -> None:
    """Write a file of texts with these ids."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": [f"{path} {at}" for at in range(len(values))], "id": values}), path)


def test_ids_arrive_as_they_stood(tmp_path: Path, service: Served) -> None:
    """Of files whose ids are of other types, and of types that neither JSON nor Python can say."""
    table(tmp_path / "mixed" / "a.parquet", array([1, 2]))
    table(tmp_path / "mixed" / "b.parquet", array(["007", "010"]))
    moments = array([1_700_000_000_123_456_789, 1, None], pa.int64()).view(pa.timestamp("ns", "Mars/Olympus"))
    table(tmp_path / "moments" / "a.parquet", moments)
    for name, wanted in (("mixed", ["1", "2", "007", "010"]), ("moments", ids.as_json(moments))):
        out = tmp_path / f"{name}.jsonl"
        code, said = embatch(service, "embed", str(tmp_path / name), "--id", "id", "-o", str(out))
        assert code == 0, said
        assert [orjson.loads(line)["id"] for line in out.read_bytes().splitlines()] == wanted
    assert ids.as_json(moments)[0] == "2023-11-14T22:13:20.123456789Z"


@pytest.mark.parametrize("out", ["out.jsonl", "link.jsonl", "none/out.jsonl", "qdrant://127.0.0.1:1/x"])
def test_what_cannot_be_is_known_before_a_batch_is_made(tmp_path: Path, service: Served, out: str) -> None:
    """One line, exit code 2, nothing handed over and nothing left behind."""
    table(tmp_path / "in" / "a.parquet", array([b"\0"]))
    table(tmp_path / "in" / "b.parquet", array(["x"] if out == "out.jsonl" else [b"x"]))
    (tmp_path / "link.jsonl").symlink_to("target.jsonl")
    place = out if "://" in out else str(tmp_path / out)
    before = sorted(tmp_path.rglob("*"))
    with Client(service.url) as client:
        batches = len(list(client.list_batches()))
        code, said = embatch(service, "embed", str(tmp_path / "in"), "--id", "id", "-o", place)
        assert code == 2, said
        assert len(said.splitlines()) == 1
        assert "Traceback" not in said
        assert len(list(client.list_batches())) == batches
    assert sorted(tmp_path.rglob("*")) == before


def test_keys_of_a_batch_are_the_words_of_ids(tmp_path: Path, service: Served) -> None:
    """`submit` makes keys of them."""
    kinds = {"moments": pa.timestamp("ns"), "days": pa.date32()}
    for name, kind in kinds.items():
        values = array([1, 2], pa.int32() if name == "days" else pa.int64()).view(kind)
        table(tmp_path / name / "a.parquet", values)
        code, said = embatch(service, "submit", str(tmp_path / name), "--id", "id")
        assert code == 0, said
        with Client(service.url) as client:
            batch = client.await_batch_completion(next(iter(client.list_batches())).name, timeout=60)
            keys = client.get_batch_embeddings(batch).keys
        assert list(keys) == ids.as_json(values)
