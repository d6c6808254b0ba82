"""Every output holds ids of every Arrow type: none is lost, none altered, and no two become one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from id_arrays import EVERY, NESTED, PRIMITIVE, array

from embatch.dtypes import Dtype
from embatch.runs import ids
from embatch.runs.ids import Holder
from embatch.runs.sinks import Layout, check_sink, open_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["postgres_server"]

SIZE = 2
SOME_NESTED = {
    name: NESTED[name] for name in ("list(int64)", "struct(uuid)", "map(half)", "list(string)", "struct()")
}
SOME = {
    name: PRIMITIVE[name]
    for name in (
        "uint64",
        "half",
        "string",
        "binary",
        "uuid",
        "decimal256(76,2)",
        "timestamp(ns,UTC)",
        "bool",
    )
} | SOME_NESTED
"""Of every way to say one in JSON at least one."""


def write(place: str, values: Any) -> None:
    """Write ids, each with the same vector, in two blocks."""
    check_sink(place, (), Dtype.FLOAT32, values.type)
    sink = open_sink(place, Layout(values.type, SIZE), {})
    try:
        for first, block in ((0, values.slice(0, 2)), (2, values.slice(2))):
            vectors = np.ones((len(block), SIZE), np.float32)
            sink.write(first, block, vectors, [None] * len(block))
        sink.finish(rows=len(values))
    finally:
        sink.abandon()


def held(column: Any, values: Any, holder: Holder) -> None:
    """Check that a column is of the type that was promised, and has the same ids."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    assert column.type == ids.written(values.type, holder)
    wanted = ids.as_text(values).to_pylist() if ids.is_text(column.type) else ids.as_json(values)
    assert ids.as_json(column) == wanted


@pytest.mark.parametrize("ending", [".parquet", ".npy", ".arrow", ".lance"])
def test_files_with_types_of_their_own(tmp_path: Path, ending: str) -> None:
    """As the type they are of, or as text where the format has none for all of them."""
    for at, values in enumerate(EVERY.values()):
        place = tmp_path / f"{at}{ending}"
        write(str(place), values)
        if ending == ".lance":
            import lance

            held(lance.dataset(str(place)).to_table()["id"], values, Holder.LANCE)
        elif ending == ".arrow":
            with pa.ipc.open_file(str(place)) as file:
                held(file.read_all()["id"], values, Holder.ARROW)
        else:
            table = pq.read_table(place if ending == ".parquet" else place.with_suffix(".ids.parquet"))
            held(table["id"], values, Holder.PARQUET)


def test_jsonl_holds_every_id(tmp_path: Path) -> None:
    """As JSON: whole numbers with all digits, what is no number in words."""
    for at, (name, values) in enumerate(EVERY.items()):
        place = tmp_path / f"{at}.jsonl"
        write(str(place), values)
        found = [orjson.loads(line)["id"] for line in place.read_bytes().splitlines()]
        assert found == ids.as_json(values), name


def test_lance_holds_decimals_however_many(tmp_path: Path) -> None:
    """Its library takes them at certain addresses alone, and those depend on the rows before."""
    for count in range(1, 20):
        for digits, make in ((38, pa.decimal128), (76, pa.decimal256)):
            values = array([None, *range(count)], pa.int64()).cast(make(digits, 0))
            place = str(tmp_path / f"{count}-{digits}.lance")
            write(place, values)
            import lance

            held(lance.dataset(place).to_table()["id"], values, Holder.LANCE)


@pytest.fixture(scope="module")
def database(postgres: str) -> Iterator[Any]:
    """A connection to it."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


def test_postgres_holds_every_id(postgres: str, database: Any) -> None:
    """As numbers, UUIDs and booleans, all else as text, with each NUL written out."""
    for name, values in {**PRIMITIVE, **SOME_NESTED}.items():
        table = f"ids {name}"
        write(f"{postgres}&table={quote(table)}", values)
        query = f'SELECT id::text, pg_typeof(id)::text FROM "{table}" ORDER BY row'  # noqa: S608
        rows = database.execute(query).fetchall()
        words = ids.as_text(values).to_pylist()
        assert [row[0] for row in rows] == [word and ids.without_nul(word) for word in words], name
        assert {row[1] for row in rows} == {ids.written(values.type, Holder.POSTGRES)}, name


def test_qdrant_holds_every_id(tmp_path: Path) -> None:
    """In the payload, as JSON has it."""
    from qdrant_client import QdrantClient

    for at, values in enumerate(SOME.values()):
        write(f"qdrant+file://{tmp_path}/store/ids{at}", values)
    client = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
    try:
        for at, (name, values) in enumerate(SOME.items()):
            points, _ = client.scroll(f"ids{at}", limit=100)
            found = [
                (point.payload or {}).get("id") for point in sorted(points, key=lambda point: int(point.id))
            ]
            assert found == ids.as_json(values), name
            assert orjson.dumps(found)
    finally:
        client.close()


def test_no_two_ids_become_one_in_postgres(postgres: str, database: Any) -> None:
    """It knows no NUL: what would be the same without is told apart."""
    values = array(["a\0b", "ab", r"a\u0000b", r"a\\u0000b", "a\\\0b", "\0", "", None])
    write(f"{postgres}&table=nul", values)
    rows = database.execute("SELECT id FROM nul ORDER BY row").fetchall()
    found = [row[0] for row in rows]
    assert len(set(found)) == len(values)
    assert [found[at] for at in (0, 1, 6, 7)] == [r"a\u0000b", "ab", "", None]


def test_whole_numbers_keep_their_digits_in_json(tmp_path: Path) -> None:
    """Beyond what a float can hold as well."""
    place = tmp_path / "out.jsonl"
    write(str(place), array([2**53 + 1, 2**64 - 1], pa.uint64()))
    assert b'"id":9007199254740993,' in place.read_bytes()
    assert b'"id":18446744073709551615,' in place.read_bytes()


ROWS = {
    "int8 to int64, uint8 to uint32": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    "uint64": ("uint64",),
    "bool": ("bool",),
    "half, float, double": ("half", "float", "double"),
    "decimal32 to decimal256": tuple(
        f"decimal{kind}" for kind in ("32(9,2)", "64(18,2)", "128(38,2)", "256(76,2)")
    ),
    "decimal with a negative scale": ("decimal128(5,-2)",),
    "string, large_string": ("string", "large_string", "string_view"),
    "binary, large_binary, fixed_size_binary": (
        "binary",
        "large_binary",
        "fixed_size_binary(16)",
        "binary_view",
    ),
    "UUID (`arrow.uuid`)": ("uuid",),
    "date32": ("date32",),
    "date64": ("date64",),
    "timestamp in seconds": ("timestamp(s,None)", "timestamp(s,UTC)"),
    "timestamp in ms, us, ns": ("timestamp(ms,None)", "timestamp(us,UTC)", "timestamp(ns,Mars/Olympus)"),
    "time in seconds": ("time32(s)",),
    "time in ms, us, ns": ("time32(ms)", "time64(us)", "time64(ns)"),
    "duration": ("duration(s)", "duration(ms)", "duration(us)", "duration(ns)"),
    "month_day_nano_interval": ("interval",),
    "list, large_list, fixed_size_list": ("list(int64)", "large_list", "fixed_size_list"),
    "struct": ("struct(int64)",),
    "map": ("map(int64)",),
}
"""The table of the documentation: which types each of its rows is about."""


def test_the_documentation_says_what_is_written() -> None:
    """Its table has a row for every type, and each cell is true."""
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text("utf-8")
    lines = page.partition("| type of the id |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = {
        line.split(" | ")[0].strip("| "): [cell.strip("| ") for cell in line.split(" | ")[1:]]
        for line in lines
    }
    assert cells.keys() == ROWS.keys()
    said: dict[str, Any] = {
        "number": (int, float, str),
        "true, false": bool,
        "list": list,
        "object": dict,
        "list of pairs": list,
    }
    for row, names in ROWS.items():
        *typed, json, postgres = cells[row]
        for name in names:
            kind = EVERY[name].type
            for cell, holder in zip(typed, (Holder.PARQUET, Holder.ARROW, Holder.LANCE), strict=True):
                kept = ids.kept(kind) if cell == "as it is" else pa.string()
                assert ids.written(kind, holder) == kept, (row, name, holder)
            assert ids.written(kind, Holder.POSTGRES) == postgres, (row, name)
            word = json.partition(",")[0] if json.startswith("number") else json.partition(":")[0]
            values = [value for value in ids.as_json(EVERY[name]) if value is not None]
            assert all(isinstance(value, said.get(word, str)) for value in values), (row, name)
