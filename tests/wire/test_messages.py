"""Arrow streams that would take more memory than they should: refused before they are decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.batch import Request
from embatch.errors import InvalidArgument
from embatch.shard import rows_of
from embatch.wire.arrow import ipc
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.arrow.write_requests import StreamWriter

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
TEXT_BYTES = MIB
WORDS = pa.table(
    {"text": ["one", "two", None], "key": ["a", None, "c"], "dimensions": pa.array([3, 4, 5], "int32")}
)


def stream(table: pa.Table, **options: Any) -> bytes:
    """Return a table as an Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read(content: bytes) -> list[pa.RecordBatch]:
    """Return the pieces of a stream."""
    return list(read_batches(io.BytesIO(content), TEXT_BYTES))


def growth(file: Path) -> tuple[float, str]:
    """Return by how many MiB reading a file makes a process grow, and what it prints of it."""
    script = (
        "import resource, sys\n"
        "from embatch.errors import InvalidArgument\n"
        "from embatch.shard import rows_of\n"
        "from embatch.wire.arrow.read_requests import read_batches\n"
        "import pyarrow.compute\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    with open(sys.argv[1], 'rb') as file:\n"
        f"        for piece in read_batches(file, {TEXT_BYTES}):\n"
        "            for row in rows_of(piece): print(len(row.text))\n"
        "except InvalidArgument as refused: print(refused)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    return int(grown) / (MIB if sys.platform == "darwin" else 1024), "\n".join(said)


def test_a_compressed_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """Some ten kilobytes that would decode to hundreds of megabytes: the buffers' own sizes say so."""
    large = pa.array(["a" * MIB] * 96)
    bomb = stream(
        pa.table({"text": ["x"] * 96, "title": large, "key": large, "metadata": large}), compression="zstd"
    )
    assert len(bomb) < MIB
    (tmp_path / "bomb").write_bytes(bomb)
    grown, said = growth(tmp_path / "bomb")
    assert "write smaller ones" in said
    assert grown < 32


def test_one_huge_request_is_not_made_a_value_of_python(tmp_path: Path) -> None:
    """A wide letter would make four bytes of each of its letters; cut, it still fails for its length."""
    (tmp_path / "huge").write_bytes(
        stream(pa.table({"text": ["a" * (100 * MIB) + "😀"]}), compression="zstd")
    )
    grown, said = growth(tmp_path / "huge")
    assert said == str(ipc.PIECE_BYTES + 1)
    assert grown < 200


def test_a_body_that_is_announced_too_large_is_not_waited_for(tmp_path: Path) -> None:
    """Its length alone is enough, whatever follows."""
    content = stream(WORDS)
    for size in (ipc.BATCH_BYTES + 8, 1 << 40, 1 << 62):
        (tmp_path / "lie").write_bytes(announcing(content, size))
        grown, said = growth(tmp_path / "lie")
        assert "write smaller ones" in said
        assert grown < 32
    with pytest.raises(InvalidArgument, match="damaged"):
        read(announcing(content, -8))
    with pytest.raises(InvalidArgument, match="torn"):
        read(announcing(content, 1 << 20))


def announcing(content: bytes, size: int) -> bytes:
    """Return a stream whose record batch announces a body of another size."""
    reader = pa.ipc.MessageReader.open_stream(content)
    reader.read_next_message()
    batch = reader.read_next_message()
    metadata, body = batch.metadata.to_pybytes(), batch.body
    assert body is not None
    at = metadata.index(struct.pack("<q", body.size))
    return content.replace(metadata, metadata[:at] + struct.pack("<q", size) + metadata[at + 8 :])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"compression": "lz4"},
        {"metadata_version": pa.ipc.MetadataVersion.V4},
        {"use_legacy_format": True},
    ],
)
def test_what_other_writers_write_is_read(options: dict[str, Any]) -> None:
    """Compressed, by an older Arrow, with notes beside the schema, without an end."""
    table = WORDS.replace_schema_metadata({"pandas": "x" * 100_000})
    whole = stream(table, **options)
    for content in (whole, whole[: whole.rindex(b"\0\0\0\0") - 4 * ("use_legacy_format" not in options)]):
        (piece,) = read(content)
        assert [(row.text, row.key, row.dimensions) for row in rows_of(piece)] == [
            ("one", "a", 3),
            ("two", None, 4),
            (None, "c", 5),
        ]


def test_a_compression_that_only_a_note_tells_of_is_refused() -> None:
    """As Arrow before 1.0 told of it: what its buffers say of their size is not looked at otherwise."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    (batch,) = WORDS.to_batches()
    with pa.ipc.new_stream(sink, WORDS.schema, options=options) as writer:
        writer.write_batch(batch, custom_metadata={b"ARROW:experimental_compression": b"zstd"})
    with pytest.raises(InvalidArgument, match="another version"):
        read(sink.getvalue())


def test_schemas_that_could_grow_are_refused() -> None:
    """Too many columns, or notes of megabytes."""
    with pytest.raises(InvalidArgument, match="100 columns"):
        read(stream(pa.table([["a"]] * 100, ["text"] * 100)))
    with pytest.raises(InvalidArgument, match="no message"):
        read(stream(WORDS.replace_schema_metadata({"notes": "x" * 2 * MIB})))


def test_a_large_record_batch_comes_in_pieces() -> None:
    """By requests and by bytes, in order; a request larger than that is a piece of its own."""
    texts = [f"text {at}" for at in range(20_000)] + ["x" * (3 * MIB)] * 7 + ["y" * (9 * MIB), "z"]
    found = read(stream(pa.table({"text": texts})))
    assert [text for piece in found for text in piece.column("text").to_pylist()] == [
        text if len(text) <= ipc.PIECE_BYTES else "x" * (ipc.PIECE_BYTES + 1) for text in texts
    ]
    assert all(piece.num_rows == 1 or piece.nbytes <= ipc.PIECE_BYTES + MIB for piece in found)
    assert max(piece.num_rows for piece in found) <= 8192


def test_the_client_writes_small_record_batches() -> None:
    """Long texts in one block make several; short ones make one."""
    sink = io.BytesIO()
    writer = StreamWriter(sink)
    writer.write([Request("x" * MIB, key=str(at)) for at in range(20)])
    writer.write([Request(str(at)) for at in range(4096)])
    writer.finish()
    sizes = [batch.nbytes for batch in pa.ipc.open_stream(sink.getvalue())]
    assert len(sizes) == 5
    assert max(sizes) <= ipc.PIECE_BYTES
    assert sum(batch.num_rows for batch in read(sink.getvalue())) == 20 + 4096


SOUND = [stream(WORDS), stream(WORDS, compression="zstd"), stream(WORDS, compression="lz4")]


@settings(max_examples=500)
@given(st.sampled_from(SOUND), st.data())
def test_a_damaged_stream_is_refused_or_read(content: bytes, data: st.DataObject) -> None:
    """Whatever bytes are changed or missing, nothing but InvalidArgument comes of it."""
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 8))
        damaged[at : at + 4] = struct.pack("<i", data.draw(st.integers(-(1 << 31), (1 << 31) - 1)))
    with contextlib.suppress(InvalidArgument):
        read(bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))]))
