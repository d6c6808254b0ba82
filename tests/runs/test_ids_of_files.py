"""Ids of several files stand as they stood, in a type that loses nothing, or are refused at the start."""

from __future__ import annotations

import random
from datetime import date
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from id_arrays import EVERY, PRIMITIVE, array

from embatch.errors import InvalidArgument
from embatch.runs import ids
from embatch.runs.ledger import Ledger
from embatch.runs.ledger_lines import Block
from embatch.runs.output import Output
from embatch.runs.part import Part
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = [".parquet", ".arrow", ".feather", ".arrows"]


def write(path: Path, values: Any) -> None:
    """Write a file of texts with these ids."""
    table = pa.table({"text": [f"text {at}" for at in range(len(values))], "id": values})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, compression="lz4")
    else:
        make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table)


def ids_of(folder: Path, rows: int = 20_000) -> tuple[Any, list[Any]]:
    """Return the type of the ids of a folder, and the ids."""
    source = open_source(folder, None, "id")
    found = [id_ for block in source.blocks(rows) for id_ in ids.as_json(block.ids)]
    assert {block.ids.type for block in source.blocks(rows)} == {source.ids}
    return source.ids, found


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("first", "second", "kind", "found"),
    [
        (array([1, 2]), array(["007", "010"]), pa.string(), ["1", "2", "007", "010"]),
        (array(["007", None]), array([7]), pa.string(), ["007", None, "7"]),
        (array([1], pa.int32()), array([3_000_000_000]), pa.int64(), [1, 3_000_000_000]),
        (
            array([date(2026, 1, 2)]),
            array([1_767_322_800_000, 1_767_312_000_000]).cast(pa.timestamp("ms")),
            pa.string(),
            ["2026-01-02", "2026-01-02T03:00:00", "2026-01-02T00:00:00"],
        ),
        (
            array([2**63 - 1]),
            array([2**64 - 1], pa.uint64()),
            pa.decimal128(20, 0),
            ["9223372036854775807", "18446744073709551615"],
        ),
        (array([2**53 + 1]), array([0.5]), pa.string(), ["9007199254740993", "0.5"]),
        (array(["a"]).dictionary_encode(), array([1, 1]).dictionary_encode(), pa.string(), ["a", "1", "1"]),
        (
            array([bytes(16)], pa.binary(16)),
            pa.ExtensionArray.from_storage(pa.uuid(), array([bytes(16)], pa.binary(16))),
            pa.uuid(),
            [str(UUID(int=0))] * 2,
        ),
        (pa.nulls(2), array([5]), pa.int64(), [None, None, 5]),
        (pa.nulls(1), pa.nulls(1), pa.string(), [None, None]),
    ],
)
def test_ids_stand_as_they_stood(
    tmp_path: Path, ending: str, first: Any, second: Any, kind: Any, found: list[Any]
) -> None:
    """Whatever comes first, and however the rows are cut into blocks."""
    write(tmp_path / f"a{ending}", first)
    write(tmp_path / f"b{ending}", second)
    assert ids_of(tmp_path) == (kind, found)
    assert ids_of(tmp_path, 1) == (kind, found)
    (tmp_path / f"a{ending}").rename(tmp_path / f"c{ending}")
    assert ids_of(tmp_path) == (kind, found[len(first) :] + found[: len(first)])


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ((pa.string(), pa.int64(), pa.binary()), "string in 0.E and binary in 2.E"),
        ((pa.int8(), pa.binary(4)), "int8 in 0.E and fixed_size_binary[4] in 1.E"),
        ((pa.binary(16), pa.uuid(), pa.string()), "fixed_size_binary[16] in 0.E and string in 2.E"),
    ],
)
def test_no_common_type_is_an_error_at_the_start(
    tmp_path: Path, ending: str, kinds: tuple[Any, ...], words: str
) -> None:
    """It names the column, both files and both types."""
    for at, kind in enumerate(kinds):
        write(tmp_path / f"{at}{ending}", pa.nulls(1, kind))
    with pytest.raises(InvalidArgument) as caught:
        open_source(tmp_path, None, "id")
    assert caught.value.field == "--id"
    assert "column 'id'" in str(caught.value)
    assert words.replace(".E", ending) in str(caught.value)
    open_source(tmp_path, None, None)


def test_every_type_is_read_as_an_id(tmp_path: Path) -> None:
    """From Arrow, beside texts and alone; what comes back has the same words."""
    shuffled = list(EVERY)
    random.Random(3).shuffle(shuffled)
    for at, name in enumerate(shuffled):
        folder = tmp_path / str(at)
        folder.mkdir()
        write(folder / "a.arrow", EVERY[name])
        kind, found = ids_of(folder)
        assert kind == (ids.kept(EVERY[name].type) if name != "null" else pa.string())
        words = ids.as_json(EVERY[name])
        assert found == (ids.as_text(EVERY[name]).to_pylist() if kind == pa.string() else words), name
        if not pa.types.is_binary(kind) and name in PRIMITIVE and ids.joined(kind, pa.string()) is not None:
            write(folder / "b.arrow", array(["text"]))
            assert ids_of(folder)[1] == [*ids.as_text(EVERY[name]).to_pylist(), "text"]


def test_a_file_without_rows_decides_nothing(tmp_path: Path) -> None:
    """An empty data frame's column is of whatever type, wherever it stands."""
    for name, values in (("a", array([], pa.float64())), ("b", array([1, 2])), ("c", array([], pa.binary()))):
        write(tmp_path / f"{name}.parquet", values)
    assert ids_of(tmp_path) == (pa.int64(), [1, 2])


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_what_is_missing_from_a_later_file_is_known_at_the_start(tmp_path: Path, ending: str) -> None:
    """Not when it comes to that file."""
    write(tmp_path / f"a{ending}", array([1]))
    write(tmp_path / f"b{ending}", array([1]))
    table = pa.table({"text": ["x"], "other": [1]})
    if ending == ".parquet":
        pq.write_table(table, tmp_path / "b.parquet")
    else:
        with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InvalidArgument, match=f"b{ending} has no column 'id'"):
        open_source(tmp_path, None, "id")


def test_a_union_is_refused_at_the_start(tmp_path: Path) -> None:
    """It names the column and the type."""
    union = pa.UnionArray.from_sparse(array([0], pa.int8()), [array([1])])
    write(tmp_path / "a.arrow", union)
    with pytest.raises(InvalidArgument, match=r"column 'id' of a\.arrow holds sparse_union"):
        open_source(tmp_path, None, "id")


def test_a_file_that_changes_meanwhile_is_not_cast(tmp_path: Path) -> None:
    """Its ids are of another type than those that were looked at."""
    write(tmp_path / "a.parquet", array([1]))
    source = open_source(tmp_path, None, "id")
    write(tmp_path / "a.parquet", array(["007"]))
    with pytest.raises(InvalidArgument, match="was changed while it was read"):
        list(source.blocks())


@pytest.mark.parametrize(
    ("ending", "within"),
    [
        *(
            (ending, within)
            for ending in (".parquet", ".arrow")
            for within in ("text", "list", "struct", "map")
        ),
        (".arrow", "dictionary"),  # pyarrow takes no such Parquet
    ],
)
def test_an_id_that_is_not_utf8_fails_its_row(tmp_path: Path, ending: str, within: str) -> None:
    """Alone, at whatever depth: no output could say it, and no other row is to blame."""
    bad: Any = pa.Array.from_buffers(pa.string(), 3, array([b"a", b"\xff", b"c"]).buffers())
    ends = array([0, 1, 2, 3], pa.int32())
    kinds: dict[str, Any] = {
        "text": (bad, ["a", "c"]),
        "list": (pa.ListArray.from_arrays(ends, bad), [["a"], ["c"]]),
        "struct": (pa.StructArray.from_arrays([bad], ["k"]), [{"k": "a"}, {"k": "c"}]),
        "map": (pa.MapArray.from_arrays(ends, array(["k"] * 3), bad), [[["k", "a"]], [["k", "c"]]]),
        "dictionary": (pa.DictionaryArray.from_arrays(array([0, 1, 2]), bad), ["a", "c"]),
    }
    values, good = kinds[within]
    write(tmp_path / f"in{ending}", values)
    (rows,) = open_source(tmp_path / f"in{ending}", None, "id").blocks()
    assert ids.as_json(rows.ids) == [good[0], None, good[1]]
    assert rows.texts == ["text 0", None, "text 2"]
    assert rows.faults == {1: "the id is not UTF-8"}


def test_an_id_of_csv_that_is_not_utf8_fails_its_row(tmp_path: Path) -> None:
    """It is not left out in silence."""
    (tmp_path / "in.csv").write_bytes(b"id,text\na,one\n\xff,two\nc,three\n")
    (rows,) = open_source(tmp_path / "in.csv", None, "id").blocks()
    assert rows.ids.to_pylist() == ["a", None, "c"]
    assert rows.texts == ["one", None, "three"]
    assert rows.faults == {1: "line 3: the id is not UTF-8"}


def test_ids_of_lines_are_text(tmp_path: Path) -> None:
    """As they are written: a number of JSON is its digits, and equal to the text of them."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text":"x","id":1}\n{"text":"x","id":1.0}\n{"text":"x","id":1e0}\n')
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text":"x","id":"1"}\n{"text":"x","id":123456789012345678901234567890}\n{"text":"x","id":true}\n'
        b'{"text":"x","id":null}\n{"text":"x","id":{"a":[1.10]}}\n'
    )
    found = ["1", "1.0", "1e0", "1", "123456789012345678901234567890", "true", None, '{"a":[1.10]}']
    assert ids_of(tmp_path) == (pa.string(), found)


def test_a_ledger_with_ids_of_another_type_is_refused(tmp_path: Path) -> None:
    """An earlier version made integers of what is text now: its run is not gone on with, nor changed."""
    part = Part(
        array([1, 7]),
        np.zeros((2, 4), np.float32),
        [None, None],
        np.ones(2, np.int32),
        np.zeros(2, np.bool_),
        np.ones(2, np.bool_),
    )
    about = {"version": 1}
    ledger = Ledger.open(tmp_path / "out.embatch", about)
    block = Block(0, 0, 2, 0, 0, 0, 0, 2, 0, 0.0, 4, "models/x")
    ledger.commit(block, part.record())
    Output(str(tmp_path / "out.jsonl"), (), None, pa.int64()).check_ids(ledger)
    before = (tmp_path / "out.embatch" / "ledger.jsonl").read_bytes()
    with pytest.raises(InvalidArgument, match="ids as int64, and now they are string: --restart begins anew"):
        Output(str(tmp_path / "out.jsonl"), (), None, pa.string()).check_ids(ledger)
    assert (tmp_path / "out.embatch" / "ledger.jsonl").read_bytes() == before
    ledger.close()
