"""Blocks of a run: cut by rows and by bytes, the same from wherever reading begins, in bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.jsontext import split_lines
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = [".parquet", ".arrow", ".jsonl", ".csv", ".txt"]
MOST = 110 << 20
"""Bytes that reading may take at its peak, beyond its libraries."""
MEASURE = """
import resource, sys
from embatch.runs.sources import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = blocks = failed = 0
for one in open_source(sys.argv[1], None, None).blocks():
    rows, blocks, failed = rows + len(one.texts), blocks + 1, failed + len(one.faults)
    del one
print(rows, blocks, failed, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def write(path: Path, texts: list[str]) -> Path:
    """Write texts in the format of an ending."""
    table = pa.table({"text": pa.array(texts, pa.string())})
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path, row_group_size=3)
        case ".arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, 3)
        case ".jsonl":
            path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
        case _:
            head = "text\n" if path.suffix == ".csv" else ""
            path.write_text(head + "".join(f"{text}\n" for text in texts), "utf-8")
    return path


def measured(path: Path) -> tuple[int, int, int, int]:
    """Return the rows, blocks and faults of a file, and the bytes that reading it took at its peak."""
    said = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, check=True).stdout
    rows, blocks, failed, peak = map(int, said.split())
    return rows, blocks, failed, peak


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(1, 60),
    st.sampled_from(ENDINGS),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_a_block_ends_at_its_rows_or_its_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    rows: int,
    size: int,
    ending: str,
    data: st.DataObject,
) -> None:
    """No block is too large or could take the next row; from where one begins, the same follow."""
    texts = ["ü" * length for length in lengths]
    source = open_source(write(tmp_path_factory.mktemp("in") / f"in{ending}", texts), None, None)
    blocks = list(source.blocks(rows, size=size))
    assert [text for one in blocks for text in one.texts] == texts
    weights = [sum(len((text or "").encode()) for text in one.texts) for one in blocks]
    for at, (one, weight) in enumerate(zip(blocks, weights, strict=True)):
        assert len(one.texts) <= rows
        assert weight <= size or len(one.texts) == 1
        if at + 1 < len(blocks):
            following = len((blocks[at + 1].texts[0] or "").encode())
            assert len(one.texts) == rows or weight + following > size
    at = data.draw(st.integers(0, len(blocks) - 1))
    again = list(source.blocks(rows, blocks[at].first, size=size))
    assert [(one.first, one.texts) for one in again] == [(one.first, one.texts) for one in blocks[at:]]


def test_blocks_that_are_known_are_cut_as_they_were(tmp_path: Path) -> None:
    """What an earlier call made of the rows stands; those behind are cut as ever."""
    source = open_source(write(tmp_path / "in.jsonl", ["x" * 10] * 12), None, None)
    blocks = list(source.blocks(4, 1, [6, 1], 20))
    assert [(one.first, len(one.texts)) for one in blocks] == [(1, 6), (7, 1), (8, 2), (10, 2)]


@pytest.mark.parametrize("kind", ["dictionary", "plain", "two", "view"])
def test_a_text_that_stands_many_times_takes_no_more_memory_than_others(tmp_path: Path, kind: str) -> None:
    """A file of some hundred bytes that holds 600 MB, and its like: read in blocks of 64 MB at most."""
    path, text = tmp_path / "in.parquet", "x" * 400_000
    if kind == "plain":  # nothing but its compression makes it small
        with pq.ParquetWriter(
            path, pa.schema([("text", pa.string())]), compression="zstd", use_dictionary=False
        ) as writer:
            for _ in range(15):
                writer.write_table(pa.table({"text": [text] * 100}))
    elif kind == "view":
        buffers: list[Any] = pa.array([text], pa.string_view()).buffers()
        buffers[1] = pa.py_buffer(buffers[1].to_pybytes() * 1500)  # all of them look at one
        values = pa.Array.from_buffers(pa.string_view(), 1500, buffers)
        path = tmp_path / "in.arrow"
        table = pa.table({"text": values})
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table)
    else:
        words = [text, "short"][: 1 + (kind == "two")]
        indices = pa.array([at % len(words) for at in range(1500)], pa.int32())
        column = pa.DictionaryArray.from_arrays(indices, pa.array(words))
        # Without what Arrow adds to it: other writers say nothing of dictionaries.
        pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)
    if kind != "plain":
        assert path.stat().st_size < 1 << 20
    rows, blocks, failed, peak = measured(path)
    assert (rows, failed) == (1500, 0)
    assert blocks in ((9, 10) if kind != "two" else (5,))
    assert peak < 2 * MOST


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".parquet"])
def test_texts_of_megabytes_are_read_a_few_at_a_time(tmp_path: Path, ending: str) -> None:
    """Some hundred of them are more than is never there at once."""
    path, text = tmp_path / f"in{ending}", "x" * 1_000_000
    if ending == ".parquet":
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
            for _ in range(2):
                writer.write_table(pa.table({"text": [text] * 100}))
    else:
        with path.open("w") as out:
            out.write("text\n" if ending == ".csv" else "")
            out.writelines(
                f'{{"text":"{text}"}}\n' if ending == ".jsonl" else f"{text}\n" for _ in range(200)
            )
    rows, blocks, failed, peak = measured(path)
    assert (rows, blocks, failed) == (200, 3, 0)
    assert peak < 2 * MOST


def test_a_huge_text_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tables too a text over the limit is not made; its row says why."""
    monkeypatch.setattr("embatch.runs.sources.lines.LINE_BYTES", 1 << 20)
    texts = ["a", "x" * (2 << 20), None, "b"]
    kinds: list[Any] = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    for kind in kinds:
        table = pa.table({"text": pa.array(texts, kind)})
        with pa.ipc.new_file(str(tmp_path / "in.arrow"), table.schema) as writer:
            writer.write_table(table)
        (rows,) = open_source(tmp_path / "in.arrow", None, None).blocks()
        assert rows.texts == ["a", None, None, "b"]
        assert rows.faults == {1: "the text is over 1 MiB long", 2: "the text is null"}


@pytest.mark.parametrize(
    "sizes", [[0], [5, 0, 3], [1 << 20], [(3 << 20) - 1, 2], [3 << 20, 1], [5 << 20, 0, 7]]
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_are_what_they_are(sizes: list[int], end: bytes) -> None:
    """Over the borders of what is read at once: one for each, whole up to the limit."""
    lines = [bytes([97 + at]) * size for at, size in enumerate(sizes)]
    found = list(split_lines(io.BytesIO(b"\n".join(lines) + end), 3 << 20))
    expected = lines if end or lines[-1] else lines[:-1]
    assert [whole for _, whole in found] == [len(line) <= 3 << 20 for line in expected]
    assert [line for line, whole in found if whole] == [line for line in expected if len(line) <= 3 << 20]
    heads = zip(found, expected, strict=True)
    assert all(line.startswith(head) and bool(head) == bool(line) for (head, _), line in heads)
