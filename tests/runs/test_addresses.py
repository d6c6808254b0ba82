"""Addresses and paths as strangers spell them: what they name is read and written, no secret is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument
from embatch.runs.ledger import folder_of
from embatch.runs.locations import divided, resolve, shown
from embatch.runs.options import EmbedOptions
from embatch.runs.sinks import Layout, check_sink, open_sink
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["stores"]

KEYS = {
    "a#b.txt": "a#b.txt",
    "a b.txt": "a b.txt",
    "a%20b.txt": "a b.txt",
    "a%2520b.txt": "a%20b.txt",
    "100%.txt": "100%.txt",
    "is it?.txt": "is it?.txt",
    "[1]&x=2.txt": "[1]&x=2.txt",
    "\u00e9\U0001f600.txt": "\u00e9\U0001f600.txt",
}
"""What an address says behind its bucket, and the key that it names."""


def _written(place: str) -> None:
    """Write one row."""
    check_sink(place, (), Dtype.FLOAT32)
    sink = open_sink(place, Layout(pa.int64(), 2), {})
    sink.write(0, pa.array([7]), np.ones((1, 2), np.float32), [None])
    sink.finish()


def _keys_are_what_addresses_say(bucket: str) -> None:
    system, folder = resolve(bucket)
    for said, key in KEYS.items():
        with system.open_output_stream(f"{folder}/{key}") as stored:
            stored.write(f"text of {key}\n".encode())
        texts = [text for rows in open_source(f"{bucket}/{said}", None, None).blocks() for text in rows.texts]
        assert texts == [f"text of {key}"]
        _written(f"{bucket}/{said.replace('.txt', '.jsonl')}")
        with system.open_input_stream(f"{folder}/{key.replace('.txt', '.jsonl')}") as stored:
            assert orjson.loads(stored.read())["id"] == 7
    found = open_source(f"{bucket}/is it?.*xt", None, None)
    assert [file.name for file in found.files] == ["is it?.txt"]


def test_keys_in_s3_are_what_addresses_say(s3: str) -> None:
    """A `#`, a `?` and a `%` are parts of a key; no other object is read or replaced."""
    _keys_are_what_addresses_say(s3)


def test_keys_in_googles_store_are_what_addresses_say(gcs: str) -> None:
    """The same there."""
    _keys_are_what_addresses_say(gcs)


def test_options_of_an_output_stand_behind_its_name(s3: str) -> None:
    """Its ending stands before the options, and so does that of what is written beside it."""
    _written(f"{s3}/out.npy?region=us-east-1")
    system, folder = resolve(s3)
    with system.open_input_file(f"{folder}/out.ids.parquet") as stored:
        assert pq.read_table(stored)["id"].to_pylist() == [7]


@pytest.mark.parametrize(
    ("place", "address", "options"),
    [
        ("s3://b/a?region=x&scheme=http", "s3://b/a", "?region=x&scheme=http"),
        ("s3://b/a?.txt?region=x", "s3://b/a?.txt", "?region=x"),
        ("s3://b/a?.txt", "s3://b/a?.txt", ""),
        ("gs://b/*?/x", "gs://b/*?/x", ""),
        ("s3://b/a?secret_key=a/b", "s3://b/a", "?secret_key=a/b"),
        ("/here/a?b=c.txt", "/here/a?b=c.txt", ""),
        ("file:///here/a?b=c.txt", "file:///here/a?b=c.txt", ""),
    ],
)
def test_options_are_told_from_keys_and_globs(place: str, address: str, options: str) -> None:
    """Options have a name and `=`; any other question mark is a part of the key or glob."""
    assert divided(place) == (address, options)


@pytest.mark.parametrize(
    "place",
    [
        "s3://KEY:SEC/RET@bucket/x.jsonl",
        "s3://KEY:SEC RET@bucket/x.jsonl",
        "s3://KEY:SECRET@bucket/x.jsonl?secret_key=SEC RET",
        "s3://KEY:SECRET@bucket/x.jsonl?whatever=1",
        "s3://KEY:SECRET@[::1/x.jsonl",
        "gs://KEY:SEC/RET@bucket/x.jsonl",
    ],
)
def test_an_address_that_cannot_be_read_keeps_its_secrets(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither our words nor the library's hold them; with a slash in the secret too."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with pytest.raises(InvalidArgument) as error:
        open_source(place, None, None)
    assert "SEC" not in str(error.value)
    assert "RET" not in str(error.value)
    assert "SEC" not in shown(place)


def test_splits_of_an_address_are_named_without_its_secrets(s3: str) -> None:
    """A refusal says what to type, and not what nobody may read."""
    system, folder = resolve(s3)
    for name in ("train", "test"):
        with system.open_output_stream(f"{folder}/set/{name}.txt") as stored:
            stored.write(b"text\n")
    with pytest.raises(InvalidArgument, match="splits") as error:
        open_source(s3.replace("s3://", "s3://KEY:SECRET@") + "/set?region=us-east-1", None, None)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("name", [".parquet", ".pq", ".jsonl", ".ndjson", ".arrow"])
def test_a_name_that_is_nothing_but_an_ending_has_its_format(tmp_path: Path, name: str) -> None:
    """`.jsonl` is JSONL, though other tools take such a name for one without an ending."""
    _written(str(tmp_path / name))
    head = (tmp_path / name).read_bytes()[:4]
    assert head == {".parquet": b"PAR1", ".pq": b"PAR1", ".arrow": b"ARRO"}.get(name, b'{"id')


def test_one_output_has_one_ledger_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one file shut each other out, whether it is a path, an address or one's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = tmp_path / "a b.parquet.embatch"
    spelled = (
        tmp_path / "a b.parquet",
        f"file://{tmp_path}/a%20b.parquet",
        f"FILE://localhost{tmp_path}/a b.parquet",
        "~/a b.parquet",
    )
    for place in spelled:
        assert folder_of(str(place), tmp_path / "data") == wanted
        assert resolve(place)[1] == str(tmp_path / "a b.parquet")


@pytest.mark.parametrize("place", ["qdrant+file://relative/texts", "qdrant+file:///texts", "qdrant+file://"])
def test_a_folder_of_qdrant_is_named_from_the_root_on(place: str) -> None:
    """Half an address is refused: it would be a collection in the root of the disk."""
    with pytest.raises(InvalidArgument, match="from the root on") as error:
        check_sink(place, (), Dtype.FLOAT32)
    assert error.value.field == "--out"


def test_a_folder_of_qdrant_is_spelled_as_addresses_of_files_are(tmp_path: Path) -> None:
    """A `#` is part of a name, and %20 a space."""
    _written(f"qdrant+file://{tmp_path}/a%20b/te#xts")
    assert (tmp_path / "a b" / "collection" / "te#xts").is_dir()


def test_a_file_beside_a_lance_dataset_stays(tmp_path: Path) -> None:
    """What is spooled on the way to it takes the place of nobody's file."""
    mine = tmp_path / "out.lance.arrow"
    mine.write_bytes(b"mine")
    _written(str(tmp_path / "out.lance"))
    assert mine.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.lance", "out.lance.arrow"]


def test_a_bracket_that_is_not_closed_is_no_address() -> None:
    """Of a database too."""
    with pytest.raises(InvalidArgument, match="cannot be read"):
        check_sink("postgresql://[::1/db?table=t", (), Dtype.FLOAT32)


def test_a_name_that_is_empty_or_no_text_names_nothing() -> None:
    """A variable that is not set is not the working directory, and bytes that are no text no model."""
    with pytest.raises(InvalidArgument, match="input is empty"):
        open_source("", None, None)
    with pytest.raises(InvalidArgument, match="not UTF-8") as error:
        EmbedOptions(model="\udcff")
    assert error.value.field == "--model"
