"""What a run writes: every row in order in every form, whole or not at all, here, in stores and databases."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from embatch.dtypes import Dtype, dequantize
from embatch.errors import InvalidArgument
from embatch.runs.locations import resolve
from embatch.runs.sinks import DatabaseSink, Layout, check_sink, open_sink, qdrant, writes_through
from embatch.runs.sources import open_source
from embatch.vectors import normalize, truncate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

pytest_plugins = ["stores"]

NATIVE = 24
FILES = [".parquet", ".arrow", ".feather", ".jsonl", ".npy", ".lance"]


def rows(count: int, failed: Sequence[int] = ()) -> tuple[list[int], NDArray[np.float32], list[str | None]]:
    """Return ids, unit vectors and errors."""
    vectors = normalize(np.random.default_rng(5).normal(size=(count, NATIVE)))
    return (
        [100 + at for at in range(count)],
        vectors,
        ["bad" if at in failed else None for at in range(count)],
    )


def write(
    place: str,
    layout: Layout,
    data: tuple[list[Any], NDArray[np.float32], list[str | None]],
    cuts: Sequence[int] = (),
) -> None:
    """Write rows in blocks that end at the cuts."""
    ids, vectors, errors = data
    sink = open_sink(place, layout, {"embatch.model": "models/x"})
    begin = 0
    for end in [*cuts, len(ids)]:
        sink.write(begin, pa.array(ids[begin:end], layout.ids), vectors[begin:end], errors[begin:end])
        begin = end
    sink.finish()


def read(place: str, layout: Layout) -> list[dict[str, Any]]:
    """Return the rows of a file as its readers see them, embeddings widened to float32."""
    system, path = resolve(place)
    if place.endswith(".jsonl"):
        with system.open_input_stream(path) as stream:
            found = [orjson.loads(line) for line in stream.read().splitlines()]
    elif place.endswith(".npy"):
        found = _npy(place, layout)
    elif place.endswith(".lance"):
        import lance

        found = lance.dataset(path).to_table().to_pylist()
    else:
        with system.open_input_file(path) as file:
            table = pq.read_table(file) if place.endswith(".parquet") else pa.ipc.open_file(file).read_all()
        assert table.schema.metadata[b"embatch.model"] == b"models/x"
        found = table.to_pylist()
    for row in found:
        for suffix, size in layout.sizes.items():
            value = row[f"embedding{suffix}"]
            if isinstance(value, str):
                value = np.frombuffer(base64.b64decode(value), np.uint8)
            if value is not None:
                scale = row.get(f"scale{suffix}")
                scales = None if scale is None else np.array([scale], np.float32)
                values = np.array([value], layout.dtype.numpy)
                row[f"embedding{suffix}"] = dequantize(values, scales, layout.dtype, size)[0]
    return found


def _npy(place: str, layout: Layout) -> list[dict[str, Any]]:
    values = np.load(place, mmap_mode="r")
    found = pq.read_table(place.replace(".npy", ".ids.parquet")).to_pylist()
    assert len(values) == len(found)
    for row, value in zip(found, values, strict=True):
        blank = np.isnan(value).all() if value.dtype.kind == "f" else not value.any()
        assert blank == (row["error"] is not None)
        row["embedding"] = None if row["error"] is not None else value
    return found


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dimensions", [(), (8,), (8, 24)])
def test_rows_come_back(tmp_path: Path, ending: str, dtype: Dtype, dimensions: tuple[int, ...]) -> None:
    """Ids, vectors in their form and sizes, errors; a failed row has no embedding."""
    place, layout = str(tmp_path / f"out{ending}"), Layout(pa.int64(), NATIVE, dimensions, dtype)
    if ending == ".npy" and len(dimensions) > 1:
        with pytest.raises(InvalidArgument, match="one --dim"):
            check_sink(place, dimensions, dtype)
        return
    check_sink(place, dimensions, dtype)
    data = rows(50, failed=[0, 17, 49])
    write(place, layout, data, cuts=[20])
    found = read(place, layout)
    assert [row["id"] for row in found] == data[0]
    assert [row["error"] for row in found] == data[2]
    least = {Dtype.FLOAT32: 1.0, Dtype.FLOAT16: 0.9999, Dtype.INT8: 0.999, Dtype.BITS: 0.6}[dtype]
    for suffix, size in layout.sizes.items():
        for row, vector, error in zip(found, truncate(data[1], size), data[2], strict=True):
            value = row[f"embedding{suffix}"]
            assert (value is None) == (error is not None)
            if value is not None:
                assert normalize(value) @ vector >= least - 1e-6
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl", ".npy"])
@given(st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=15, deadline=None)
def test_the_cut_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory, ending: str, cuts: list[int]
) -> None:
    """However the blocks came, the file is the same."""
    folder, layout, data = tmp_path_factory.mktemp("cut"), Layout(pa.int64(), NATIVE), rows(60, failed=[3])
    write(str(folder / f"one{ending}"), layout, data)
    write(str(folder / f"two{ending}"), layout, data, sorted(cuts))
    for name in ("", ".ids") if ending == ".npy" else ("",):
        last = ".parquet" if name else ending
        assert (folder / f"one{name}{last}").read_bytes() == (folder / f"two{name}{last}").read_bytes()


@pytest.mark.parametrize("ending", FILES)
def test_no_rows_and_only_failed_rows(tmp_path: Path, ending: str) -> None:
    """Both are outputs."""
    layout = Layout(pa.string(), NATIVE)
    for name, count in (("none", 0), ("failed", 2)):
        place = str(tmp_path / f"{name}{ending}")
        _, vectors, _ = rows(count)
        write(place, layout, ([str(at) for at in range(count)], vectors, ["bad"] * count))
        assert [row["error"] for row in read(place, layout)] == ["bad"] * count


@pytest.mark.parametrize("ending", FILES)
def test_nothing_appears_before_the_end(tmp_path: Path, ending: str) -> None:
    """Abandoned, nothing stays; rejected, it has another name; an older output stays until it is replaced."""
    place, layout, data = str(tmp_path / f"out{ending}"), Layout(pa.int64(), NATIVE), rows(5)
    sink = open_sink(place, layout, {})
    sink.write(0, pa.array(data[0]), data[1], data[2])
    assert not (tmp_path / f"out{ending}").exists()
    sink.abandon()
    sink.abandon()
    assert list(tmp_path.iterdir()) == []
    sink = open_sink(place, layout, {})
    sink.write(0, pa.array(data[0]), data[1], data[2])
    written = sink.finish(rejected=True)
    assert written.place == str(tmp_path / f"out.rejected{ending}")
    assert written.bytes
    assert not (tmp_path / f"out{ending}").exists()
    write(place, layout, rows(3))
    write(place, layout, rows(4))
    assert len(read(place, layout)) == 4


# Google's emulator does not know how to read a part of an object, which Parquet and Arrow need.
@pytest.mark.parametrize(
    ("store", "ending"), [("s3", ".parquet"), ("s3", ".arrow"), ("s3", ".jsonl"), ("gcs", ".jsonl")]
)
def test_object_stores_hold_sources_and_outputs(
    request: pytest.FixtureRequest, store: str, ending: str
) -> None:
    """Written at once when finished, read back as a file, a folder and a glob."""
    bucket = request.getfixturevalue(store)
    layout, data = Layout(pa.int64(), NATIVE), rows(30, failed=[2])
    place = f"{bucket}/deep/er/out{ending}"
    check_sink(place, (), Dtype.FLOAT32)
    system, path = resolve(place)
    sink = open_sink(place, layout, {"embatch.model": "models/x"})
    sink.write(0, pa.array(data[0]), data[1], data[2])
    assert system.get_file_info(path).type is fs.FileType.NotFound
    written = sink.finish()
    assert (written.place, written.bytes) == (place, system.get_file_info(path).size)
    assert [row["id"] for row in read(place, layout)] == data[0]
    for number in range(2):
        with system.open_output_stream(f"{path.rpartition('/')[0]}/in/{number} part.jsonl") as out:
            out.write(orjson.dumps({"text": f"text {number}"}) + b"\n")
    for address in (f"{bucket}/deep/er/in", f"{bucket}/deep/er/in/*part.jsonl"):
        found = [text for block in open_source(address, None, None).blocks() for text in block.texts]
        assert found == ["text 0", "text 1"]
    one = open_source(f"{bucket}/deep/er/in/1 part.jsonl", None, None)
    assert [block.texts for block in one.blocks()] == [["text 1"]]
    assert one.fingerprint() == open_source(f"{bucket}/deep/er/in/1 part.jsonl", None, None).fingerprint()


def _asked(address: str, query: LiteralString, table: str) -> list[tuple[Any, ...]]:
    import psycopg
    from psycopg import sql

    with psycopg.connect(address) as connection:
        return connection.execute(sql.SQL(query).format(table=sql.Identifier(table))).fetchall()


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BITS])
def test_pgvector_holds_blocks(postgres: str, dtype: Dtype) -> None:
    """A block again changes nothing; rows of a longer earlier run go; neighbours are found."""
    table = f"texts_{dtype.value}"
    address = f"{postgres}{'&' if '?' in postgres else '?'}table={table}"
    assert writes_through(address)
    check_sink(address, (8,), dtype)
    layout, data = Layout(pa.string(), NATIVE, (8, 16), dtype), rows(40, failed=[3])
    ids: list[Any] = [None if at == 3 else f"k'{at}" for at in range(40)]
    for count in (40, 30):
        for _ in range(2):
            sink = open_sink(address, layout, {})
            for begin in range(0, count, 10):
                part = slice(begin, begin + 10)
                sink.write(begin, pa.array(ids[part], pa.string()), data[1][part], data[2][part])
            assert sink.finish(rows=count).bytes is None
    sink = open_sink(address, layout, {})  # one block in the middle, as a retry writes it
    sink.write(10, pa.array(ids[10:20], pa.string()), data[1][10:20], data[2][10:20])
    sink.finish(rows=30)
    held = open_sink(address, layout, {})
    assert isinstance(held, DatabaseSink)
    assert [held.holds(first, 10, 1) for first in (0, 20, 25, 30)] == [True, True, False, False]
    held.abandon()
    found = _asked(postgres, "SELECT * FROM {table} ORDER BY row", table)
    assert [row[:2] for row in found] == list(enumerate(ids[:30]))
    assert [row[-1] for row in found] == data[2][:30]
    assert found[3][2] is found[3][3] is None
    assert all(row[2] is not None and row[3] is not None for at, row in enumerate(found) if at != 3)
    if dtype is Dtype.FLOAT32:
        values = np.array(orjson.loads(found[5][2]), np.float32)
        assert np.array_equal(values, truncate(data[1], 8)[5])
    if dtype is not Dtype.BITS:
        nearest = _asked(
            postgres,
            "SELECT row FROM {table} WHERE embedding_16 IS NOT NULL"
            " ORDER BY embedding_16 <=> (SELECT embedding_16 FROM {table} WHERE row = 7) LIMIT 1",
            table,
        )
        assert nearest == [(7,)]


def test_pgvector_holds_bits_of_any_dimensions(postgres: str) -> None:
    """Also two numbers of them that take as many bytes, and one that fills no byte."""
    address = f"{postgres}{'&' if '?' in postgres else '?'}table=odd"
    layout, data = Layout(pa.int64(), NATIVE, (17, 24), Dtype.BITS), rows(5)
    check_sink(address, layout.dimensions, layout.dtype)
    write(address, layout, data)
    found = _asked(postgres, "SELECT embedding_17::text, embedding_24::text FROM {table} ORDER BY row", "odd")
    bits = ["".join("1" if value > 0 else "0" for value in vector) for vector in data[1]]
    assert found == [(word[:17], word) for word in bits]


def test_pgvector_refuses_what_it_cannot_hold(postgres: str) -> None:
    """Before anything is spent, and no password ever stands in an error."""
    with pytest.raises(InvalidArgument, match="int8"):
        check_sink(f"{postgres}&table=t", (), Dtype.INT8)
    with pytest.raises(InvalidArgument, match="name the table"):
        check_sink(postgres, (), Dtype.FLOAT32)
    with pytest.raises(InvalidArgument) as error:
        check_sink("postgresql://user:secret@127.0.0.1:1/db?table=t", (), Dtype.FLOAT32)
    assert "secret" not in str(error.value)


def test_qdrant_holds_points(tmp_path: Path) -> None:
    """In its local mode: upserts, several sizes, failed rows are no points, and neighbours are found."""
    from qdrant_client import QdrantClient

    address = f"qdrant+file://{tmp_path}/store/texts"
    check_sink(address, (), Dtype.FLOAT32)
    layout, data = Layout(pa.int64(), NATIVE, (8, 16)), rows(20, failed=[3])
    for _ in range(2):
        write(address, layout, data, cuts=[10])
    client = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
    try:
        assert client.count("texts").count == 19
        (hit,) = client.query_points("texts", data[1][7][:16].tolist(), using="embedding_16", limit=1).points
        assert (hit.id, hit.payload) == (7, {"id": 107})
    finally:
        client.close()
    with pytest.raises(InvalidArgument, match="float16"):
        check_sink(address, (), Dtype.BITS)
    with pytest.raises(InvalidArgument, match="name the collection"):
        check_sink("qdrant://localhost", (), Dtype.FLOAT32)
    with pytest.raises(InvalidArgument, match="cannot be reached"):
        check_sink("qdrant://127.0.0.1:1/texts", (), Dtype.FLOAT32)


def test_qdrant_keeps_nothing_of_a_longer_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much more it had; points that are named by no row are somebody else's."""
    from qdrant_client import QdrantClient, models

    monkeypatch.setattr(qdrant, "POINTS_AT_ONCE", 4)
    address, name = f"qdrant+file://{tmp_path}/store/texts", "12345678-1234-5678-1234-567812345678"
    layout, data = Layout(pa.int64(), NATIVE), rows(20)

    def run(count: int) -> set[int | str]:
        sink = open_sink(address, layout, {})
        sink.write(0, pa.array(data[0][:count]), data[1][:count], data[2][:count])
        sink.finish(rows=count)
        client = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
        try:
            found, _ = client.scroll("texts", limit=100)
            if count == 20:
                point = models.PointStruct(id=name, vector={"embedding": data[1][0].tolist()})
                client.upsert("texts", [point])
            return {point.id for point in found if not isinstance(point.id, UUID)}
        finally:
            client.close()

    assert run(20) == set(range(20))
    assert run(3) == {0, 1, 2, name}
    assert run(3) == {0, 1, 2, name}


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("out.csv", "must end in .parquet"),
        ("/nowhere/at/all.parquet", "there is no folder /nowhere/at"),
        ("ftp://host/out.parquet", "ftp:// is not known"),
        ("s3:///out.parquet", "s3:"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place: str, match: str) -> None:
    """The flag is named."""
    with pytest.raises(InvalidArgument, match=match) as error:
        check_sink(place, (), Dtype.FLOAT32)
    assert error.value.field == "--out"
