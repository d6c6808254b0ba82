"""Where an output may be: never a file of the input, nor where the next call would read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.errors import InvalidArgument
from embatch.runs.locations import resolve
from embatch.runs.overlap import check_apart
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["stores"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of texts, and links to them."""
    monkeypatch.chdir(tmp_path)
    for name in ("s.jsonl", "in/a.jsonl", "in/deep/b.jsonl", "x.ids.parquet", "y.lance.partial.arrow"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"text":"one"}\n')
    table = pa.table({"text": ["one"]})
    pq.write_table(table, tmp_path / "x.ids.parquet")
    with pa.ipc.new_file(str(tmp_path / "y.lance.partial.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "soft.jsonl").symlink_to("s.jsonl")
    os.link(tmp_path / "s.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "same").symlink_to("in")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("s.jsonl", "s.jsonl"),
        ("s.jsonl", "./in/../s.jsonl"),
        ("s.jsonl", "HERE/s.jsonl"),
        ("HERE/s.jsonl", "file://HERE/s.jsonl"),
        ("s.jsonl", "soft.jsonl"),
        ("soft.jsonl", "s.jsonl"),
        ("s.jsonl", "hard.jsonl"),
        ("in", "in/a.jsonl"),
        ("in", "same/deep/b.jsonl"),
        ("in/*.jsonl", "in/a.jsonl"),
        ("x.ids.parquet", "x.npy"),
        ("y.lance.partial.arrow", "y.lance"),
    ],
)
def test_an_output_that_is_the_input_is_refused(folder: Path, source: str, out: str) -> None:
    """However it is spelled or linked, and also where it is written beside the output."""
    opened = open_source(source.replace("HERE", str(folder)), None, None)
    with pytest.raises(InvalidArgument, match="is a file of the input") as error:
        check_apart(opened, out.replace("HERE", str(folder)))
    assert error.value.field == "--out"


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("in", "in/out.jsonl"),
        ("in", "in/deep/out.parquet"),
        ("in", "same/out.arrow"),
        ("same", "in/out.jsonl"),
        ("in", "in/out.npy"),
        ("./in/", "in/deep/../out.jsonl"),
        ("in/*.jsonl", "in/out.jsonl"),
        ("in/**/*.jsonl", "same/deep/out.jsonl"),
        ("in/**", "in/out.parquet"),
    ],
)
def test_an_output_within_the_input_is_refused(folder: Path, source: str, out: str) -> None:
    """The next call would read it."""
    with pytest.raises(InvalidArgument, match="would be a part of the input") as error:
        check_apart(open_source(source, None, None), out)
    assert error.value.field == "--out"
    assert not (folder / out).exists()


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("s.jsonl", "out.jsonl"),
        ("in/a.jsonl", "in/out.jsonl"),
        ("in", "in.jsonl"),
        ("in", "in2.parquet"),
        ("in/*.jsonl", "in/out.parquet"),
        ("in/*.jsonl", "in/deep/out.jsonl"),
        ("in", "in/.hidden/out.jsonl"),
        ("in", "s3://in/out.jsonl"),
        ("in", "qdrant://in/a.jsonl"),
    ],
)
def test_an_output_beside_the_input_is_none_of_it(folder: Path, source: str, out: str) -> None:
    """Also in the same folder, where only some of its files are read."""
    assert folder.is_dir()
    check_apart(open_source(source, None, None), out)


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_in_a_store_as_well(store: str, request: pytest.FixtureRequest) -> None:
    """Objects are told apart by their keys."""
    address: str = request.getfixturevalue(store)
    for name in ("in/a.jsonl", "b.jsonl"):
        system, path = resolve(f"{address}/{name}")
        with system.open_output_stream(path) as file:
            file.write(b'{"text":"one"}\n')
    for source, out, match in (
        ("b.jsonl", "b.jsonl", "is a file of"),
        ("in", "in/a.jsonl", "is a file of"),
        ("in", "in/out.jsonl", "would be a part"),
        ("in/*.jsonl", "in/out.jsonl", "would be a part"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            check_apart(open_source(f"{address}/{source}", None, None), f"{address}/{out}")
    check_apart(open_source(f"{address}/in", None, None), f"{address}/out.jsonl")


def test_no_ledger_is_read_as_input(folder: Path) -> None:
    """Whatever run left it there, its parts are no data; a file of such a name may be."""
    ledger = folder / "in" / "old.parquet.embatch"
    ledger.mkdir()
    (ledger / "part-000000-0.arrow").write_bytes(b"nothing of the kind")
    (ledger / "ledger.jsonl").write_bytes(b"{}\n")
    for place in ("in", "in/**", "in/**/*.jsonl"):
        assert [file.name for file in open_source(place, None, None).files] == ["a.jsonl", "b.jsonl"]
