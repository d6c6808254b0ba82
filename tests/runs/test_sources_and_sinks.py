"""What a run reads and writes: every row in its place, bad rows with their reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.errors import InvalidArgument
from embatch.runs.sinks import ParquetSink
from embatch.runs.sources import Rows, open_source

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["plain", "", 'with, comma and "quotes"', "two\nlines", "Ünïcödé 🧪", "last"]


def _write(path: Path, texts: list[str]) -> None:
    table = pa.table({"key": [f"k{at}" for at in range(len(texts))], "body": texts})
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".csv":
            import pyarrow.csv as pacsv

            pacsv.write_csv(table, path)
        case _:
            import orjson

            path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in table.to_pylist()))


def _all(blocks: list[Rows]) -> tuple[list[object], list[str | None]]:
    ids = [one for rows in blocks for one in rows.ids.to_pylist()]
    return ids, [text for rows in blocks for text in rows.texts]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_each_format_gives_the_same_rows(tmp_path: Path, suffix: str, rows: int) -> None:
    """Texts with commas, quotes, line breaks and emoji come through in order, whatever the block size."""
    path = tmp_path / f"in{suffix}"
    _write(path, TEXTS)
    blocks = list(open_source(path, "body", "key").blocks(rows))
    ids, texts = _all(blocks)
    assert texts == TEXTS
    assert ids == [f"k{at}" for at in range(len(TEXTS))]
    assert [block.first for block in blocks] == list(range(0, len(TEXTS), rows))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_rows_are_numbered_without_an_id_column(tmp_path: Path, suffix: str) -> None:
    """Row numbers are int64 and go on across blocks."""
    path = tmp_path / f"in{suffix}"
    _write(path, TEXTS)
    ids, _ = _all(list(open_source(path, "body", None).blocks(4)))
    assert ids == list(range(len(TEXTS)))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("text", "id_", "field"), [("no", "key", "--text"), ("body", "no", "--id")])
def test_a_missing_column_names_what_there_is(
    tmp_path: Path, suffix: str, text: str, id_: str, field: str
) -> None:
    """The error says which flag is wrong and lists the columns."""
    path = tmp_path / f"in{suffix}"
    _write(path, TEXTS)
    with pytest.raises(InvalidArgument, match=r"'no'; it has (key, body|body, key)") as caught:
        list(open_source(path, text, id_).blocks())
    assert caught.value.field == field


def test_bad_lines_fail_alone_with_their_number(tmp_path: Path) -> None:
    """A broken line, a non-object and a text that is a number keep their place; blank lines are skipped."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text":"a"}\n{broken\n\n[1]\n{"text":5}\r\n{"text":"z"}')
    (rows,) = open_source(path, None, None).blocks()
    assert rows.texts == ["a", None, None, None, "z"]
    assert sorted(rows.faults) == [1, 2, 3]
    assert "line 2: not JSON" in rows.faults[1]
    assert rows.faults[2] == "line 4: not a JSON object"
    assert rows.faults[3] == "line 5: no text in 'text'"


def test_a_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Numbers in the text column of Parquet are a usage error, not embedded as digits."""
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(InvalidArgument, match="'text' holds int64, not text"):
        list(open_source(tmp_path / "in.parquet", None, None).blocks())


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("in.txt", b"x", "embatch reads .csv"),
        ("gone.jsonl", None, "is not a file"),
        ("in.parquet", b"not parquet", "not a readable Parquet file"),
    ],
)
def test_unreadable_files_say_why(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    """An unknown ending, a missing file and a broken one each have their own message."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=match):
        list(open_source(tmp_path / name, None, None).blocks())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_sink_writes_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[bool]]
) -> None:
    """Ids, vectors and errors come back in order; a failed row has a null embedding."""
    path = tmp_path_factory.mktemp("sink") / "out.parquet"
    sink = ParquetSink(path, pa.int64(), 3, {"embatch.model": "models/x"})
    chance, expected, at = np.random.default_rng(1), [], 0
    for block in blocks:
        vectors = chance.standard_normal((len(block), 3)).astype(np.float32)
        errors = ["bad" if failed else None for failed in block]
        sink.write(pa.array(range(at, at + len(block)), pa.int64()), vectors, errors)
        expected += [
            (at + row, None if failed else vectors[row].tolist(), "bad" if failed else None)
            for row, failed in enumerate(block)
        ]
        at += len(block)
    assert not path.exists()
    size = sink.finish()
    assert size == path.stat().st_size
    table = pq.read_table(path)
    assert [(row["id"], row["embedding"], row["error"]) for row in table.to_pylist()] == expected
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert table.schema.metadata[b"embatch.model"] == b"models/x"


def test_an_abandoned_output_leaves_nothing(tmp_path: Path) -> None:
    """Neither the output nor its partial file stays."""
    sink = ParquetSink(tmp_path / "out.parquet", pa.int64(), 2, {})
    sink.write(pa.array([0], pa.int64()), np.zeros((1, 2), np.float32), [None])
    sink.abandon()
    assert list(tmp_path.iterdir()) == []
