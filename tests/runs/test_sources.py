"""What a run reads: every row in its place in every format, bad rows with their reason, from wherever."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import os
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from embatch.errors import InvalidArgument
from embatch.runs.sources import Rows, Source, open_source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXTS = ["plain", "", 'with, comma and "quotes"', "two\nlines", "Ünïcödé 🧪", " last "]
ENDINGS = [".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".arrow", ".arrows", ".feather"]
COMPRESSED = [f"{ending}{by}" for ending in (".csv", ".jsonl", ".txt") for by in (".gz", ".zst", ".bz2")]


def content_of(ending: str, texts: Sequence[str], first: int = 0) -> bytes:
    """Return a file of this format, with the columns key and body."""
    keys = pa.array([f"k{first + at}" for at in range(len(texts))], pa.string())
    table = pa.table({"key": keys, "body": pa.array(texts, pa.string())})
    out = io.BytesIO()
    match ending:
        case ".parquet" | ".pq":
            pq.write_table(table, out, row_group_size=4)
        case ".arrow":
            with pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table, 3)
        case ".arrows":
            with pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table, 3)
        case ".feather":
            feather.write_feather(table, out)
        case ".csv" | ".tsv":
            text = io.StringIO(newline="")
            writer_ = csv.writer(text, delimiter="\t" if ending == ".tsv" else ",")
            writer_.writerow(["key", "body"])
            writer_.writerows([row["key"], row["body"]] for row in table.to_pylist())
            out.write(text.getvalue().encode())
        case ".txt":
            out.write("".join(f"{text}\n" for text in texts).encode())
        case _:
            out.writelines(orjson.dumps(row) + b"\n" for row in table.to_pylist())
    return out.getvalue()


def write(path: Path, texts: Sequence[str], first: int = 0) -> Path:
    """Write a file of the format that its endings say."""
    ending = "".join(path.suffixes[-2:]) if path.suffix in (".gz", ".zst", ".bz2") else path.suffix
    plain, _, compression = ending.lstrip(".").partition(".")
    content = content_of(f".{plain}", texts, first)
    match compression:
        case "gz":
            content = gzip.compress(content)
        case "bz2":
            content = bz2.compress(content)
        case "zst":
            with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
                stream.write(content)
            return path
    path.write_bytes(content)
    return path


def all_of(source: Source, rows: int = 4, skip: int = 0) -> tuple[list[object], list[str | None], list[Rows]]:
    """Return ids, texts and blocks."""
    blocks = list(source.blocks(rows, skip))
    return (
        [id_ for one in blocks for id_ in one.ids.to_pylist()],
        [text for one in blocks for text in one.texts],
        blocks,
    )


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_each_format_gives_the_same_rows(tmp_path: Path, ending: str, rows: int) -> None:
    """Texts with commas, quotes, line breaks and emoji come through in order, whatever the block size."""
    source = open_source(write(tmp_path / f"in{ending}", TEXTS), "body", "key")
    ids, texts, blocks = all_of(source, rows)
    assert texts == TEXTS
    assert ids == [f"k{at}" for at in range(len(TEXTS))]
    assert [block.first for block in blocks] == list(range(0, len(TEXTS), rows))
    assert {block.ids.type for block in blocks} == {source.ids} == {pa.string()}
    assert source.rows in (len(TEXTS), None)
    assert source.size == (tmp_path / f"in{ending}").stat().st_size
    numbered, _, _ = all_of(open_source(tmp_path / f"in{ending}", "body", None), rows)
    assert numbered == list(range(len(TEXTS)))


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_lines_are_read(tmp_path: Path, ending: str) -> None:
    """By the ending behind the ending."""
    texts = [text for text in TEXTS if "\n" not in text and text.strip()]
    path = write(tmp_path / f"in{ending}", texts)
    plain = ".txt" in ending
    ids, found, _ = all_of(open_source(path, None if plain else "body", None if plain else "key"))
    assert found == texts
    assert ids == (list(range(len(texts))) if plain else [f"k{at}" for at in range(len(texts))])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(0, 40),
    st.sampled_from(ENDINGS),
)
@settings(max_examples=60, deadline=None)
def test_skipping_is_slicing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int, skip: int, ending: str
) -> None:
    """Over file borders: what follows a skip is what follows in the whole; blocks but the last are full."""
    folder = tmp_path_factory.mktemp("files")
    texts = [f"text {at}" for at in range(sum(sizes))]
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        write(folder / f"part-{number}{ending}", texts[first : first + size], first)
    source = open_source(folder, "body", "key")
    ids, found, blocks = all_of(source, rows, skip)
    assert found == texts[skip:]
    assert ids == [f"k{at}" for at in range(skip, len(texts))]
    assert [block.first for block in blocks] == list(range(skip, len(texts), rows))
    assert all(len(block.texts) == rows for block in blocks[:-1])


def test_folders_and_globs_name_files_in_order(tmp_path: Path) -> None:
    """Recursively, without hidden files and what tools leave beside data."""
    for name in (
        "b/2.jsonl",
        "a/1.jsonl",
        "a/.hidden.jsonl",
        "_temporary/3.jsonl",
        "a/_SUCCESS.jsonl",
        "notes.md",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(orjson.dumps({"text": name}) + b"\n")
    assert all_of(open_source(tmp_path, None, None))[1] == ["a/1.jsonl", "b/2.jsonl"]
    assert open_source(tmp_path, None, None).name == f"2 files of {tmp_path}"
    assert all_of(open_source(f"{tmp_path}/*/2.jsonl", None, None))[1] == ["b/2.jsonl"]
    assert all_of(open_source(f"{tmp_path}/**/[12].jsonl", None, None))[1] == ["a/1.jsonl", "b/2.jsonl"]
    assert all_of(open_source(f"file://{tmp_path}/a/1.jsonl", None, None))[1] == ["a/1.jsonl"]
    for place in (f"{tmp_path}/*/9.jsonl", f"{tmp_path}/none/*.jsonl", tmp_path / "a" / ".." / "nothing"):
        with pytest.raises(InvalidArgument, match="is not a file") as error:
            open_source(place, None, None)
        assert error.value.field == "IN"


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    """A data set in Parquet form: its splits were made on purpose, so one has to be named."""
    (tmp_path / "data").mkdir()
    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            name = f"{split}-{number:05}-of-{count:05}.parquet"
            pq.write_table(pa.table({"text": [name]}), tmp_path / "data" / name)
    with pytest.raises(InvalidArgument, match="splits test, train"):
        open_source(tmp_path, None, None)
    _, texts, _ = all_of(open_source(f"{tmp_path}/**/train*", None, None))
    assert texts == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    """Nor does an unknown ending pass."""
    write(tmp_path / "a.csv", ["x"])
    write(tmp_path / "b.jsonl", ["x"])
    with pytest.raises(InvalidArgument, match=r"a\.csv and b\.jsonl are of different formats"):
        open_source(tmp_path, None, None)
    (tmp_path / "c.docx").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=r"c\.docx: embatch reads \.arrow"):
        open_source(tmp_path / "c.docx", None, None)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("text", "id_", "field"), [("no", "key", "--text"), ("body", "no", "--id")])
def test_a_missing_column_names_what_there_is(
    tmp_path: Path, ending: str, text: str, id_: str, field: str
) -> None:
    """The error says which flag is wrong and lists the columns."""
    path = write(tmp_path / f"in{ending}", TEXTS)
    with pytest.raises(InvalidArgument, match=r"'no'; it has (key, body|body, key)") as caught:
        open_source(path, text, id_)
    assert caught.value.field == field


def test_the_text_column_is_found(tmp_path: Path) -> None:
    """`text`, else the only one that holds text; several have to be named."""
    for texts, id_ in ((["key", "body"], "key"), (["key", "text"], None)):
        pq.write_table(pa.table({texts[0]: ["k"], texts[1]: ["found"], "n": [1]}), tmp_path / "in.parquet")
        assert all_of(open_source(tmp_path / "in.parquet", None, id_))[1] == ["found"]
    (tmp_path / "in.jsonl").write_bytes(b'{"n":1,"title":"found"}\n')
    assert all_of(open_source(tmp_path / "in.jsonl", None, None))[1] == ["found"]
    (tmp_path / "in.jsonl").write_bytes(b'{"body":"a","title":"b"}\n')
    with pytest.raises(InvalidArgument, match="name one of body, title with --text"):
        open_source(tmp_path / "in.jsonl", None, None)


def test_columns_keep_their_types(tmp_path: Path) -> None:
    """Ids of Parquet stay what they are, dictionaries are read, numbers are not embedded as digits."""
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode(), "n": [3, 1, None]})
    pq.write_table(table, tmp_path / "in.parquet")
    source = open_source(tmp_path / "in.parquet", None, "n")
    ids, texts, _ = all_of(source)
    assert (ids, texts, source.ids) == ([3, 1, None], ["a", "b", "a"], pa.int64())
    with pytest.raises(InvalidArgument, match=r"'n' of in\.parquet holds int64, not text"):
        open_source(tmp_path / "in.parquet", "n", None)
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    (rows,) = open_source(tmp_path / "null.parquet", None, None).blocks()
    assert (rows.texts, rows.faults) == (["a", None], {1: "the text is null"})


def test_bad_lines_of_jsonl_fail_alone(tmp_path: Path) -> None:
    """A broken line, a non-object and a text that is a number keep their place; blank lines are no rows."""
    (tmp_path / "in.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text":"a","id":7}\n{broken\n\n[1]\n{"text":5}\r\n{"id":null}\n\xff\n{"text":"z","id":[1]}'
    )
    (rows,) = open_source(tmp_path / "in.jsonl", "text", "id").blocks()
    assert rows.texts == ["a", None, None, None, None, None, "z"]
    assert rows.ids.to_pylist() == ["7", None, None, None, None, None, "[1]"]
    assert rows.faults[1].startswith("line 2: not JSON")
    assert rows.faults[2] == "line 4: not a JSON object"
    assert rows.faults[3] == "line 5: 'text' is not text"
    assert rows.faults[4] == "line 6: no text in 'text'"
    assert rows.faults[5].startswith("line 7: not JSON")


def test_ids_of_jsonl_keep_their_digits(tmp_path: Path) -> None:
    """Also numbers that no machine word holds, alone or within something; what cannot be read fails alone."""
    ids = ["100000000000000000001", "100000000000000000002", "-9223372036854775809", "18446744073709551616"]
    ids += [
        "1.10",
        "0.12345678901234567891",
        "9007199254740993.0",
        "1E5",
        "18446744073709551615",
        "-7",
        "true",
    ]
    ids += ['[100000000000000000001,{"a":1.50,"b":["x","\u00fc"]}]', "9" * 300]
    lines = [f'{{"text":"t","id":{id_}}}\n' for id_ in ids]
    deep = "[" * 1000 + "]" * 1000
    lines += [f'{{"text":"t","id":{deep}}}\n', '{"text":"t","id":"100000000000000000001"}\n']
    (tmp_path / "in.jsonl").write_text("".join(lines), "utf-8")
    (rows,) = open_source(tmp_path / "in.jsonl", None, "id").blocks()
    assert rows.ids.to_pylist() == [*ids, None, "100000000000000000001"]
    assert rows.faults == {len(ids): f"line {len(ids) + 1}: nested too deeply"}


def test_bad_lines_of_csv_fail_alone(tmp_path: Path) -> None:
    """Too few values, too many, and what is not UTF-8; the line is where the record begins."""
    (tmp_path / "in.csv").write_bytes(
        b'\xef\xbb\xbfkey,text\r\nk0,"two\nlines"\r\nk1\r\n\r\nk2,a,b\r\nk3,\xff\r\nk4,good\r\n'
    )
    (rows,) = open_source(tmp_path / "in.csv", None, "key").blocks()
    assert rows.texts == ["two\nlines", None, None, None, "good"]
    assert rows.ids.to_pylist() == ["k0", "k1", "k2", "k3", "k4"]
    assert rows.faults == {
        1: "line 4: 1 values, and the header has 2",
        2: "line 6: 3 values, and the header has 2",
        3: "line 7: not UTF-8",
    }


def test_lines_of_text_are_rows(tmp_path: Path) -> None:
    """Row numbers are line numbers: an empty line is a row that fails."""
    (tmp_path / "in.txt").write_bytes(b"one\r\n\n\xff\nfour")
    source = open_source(tmp_path / "in.txt", None, None)
    (rows,) = source.blocks()
    assert rows.texts == ["one", None, None, "four"]
    assert rows.faults == {1: "line 2: empty", 2: "line 3: not UTF-8"}
    with pytest.raises(InvalidArgument, match="plain text"):
        open_source(tmp_path / "in.txt", "body", None)


@pytest.mark.parametrize("ending", [*ENDINGS, ".txt"])
def test_an_empty_file_has_no_rows(tmp_path: Path, ending: str) -> None:
    """No header, no line; formats with a schema have one."""
    named = ending not in (".txt", ".jsonl", ".ndjson")
    path = tmp_path / f"in{ending}"
    path.write_bytes(content_of(ending, []))
    assert list(open_source(path, "body" if named else None, None).blocks()) == []


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather", ".jsonl.gz", ".csv.zst"])
def test_damaged_files_say_so(tmp_path: Path, ending: str) -> None:
    """Not only that they fail but which one it is."""
    (tmp_path / f"in{ending}").write_bytes(b"this is nothing of the kind")
    with pytest.raises(InvalidArgument, match=f"in{ending}"):
        list(open_source(tmp_path / f"in{ending}", "body", None).blocks())


def test_a_file_without_the_column_is_named(tmp_path: Path) -> None:
    """Where the first one has it and a later one does not."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"body": ["b"]}), tmp_path / "2.parquet")
    with pytest.raises(InvalidArgument, match=r"2\.parquet has no column 'text'"):
        list(open_source(tmp_path, None, None).blocks())


def test_a_fingerprint_tells_inputs_apart(tmp_path: Path) -> None:
    """Another time, size, name or column is another input; looking again is not."""
    path = write(tmp_path / "in.jsonl", TEXTS)
    seen = {open_source(path, "body", "key").fingerprint()}
    assert seen == {open_source(path, "body", "key").fingerprint()}
    seen.add(open_source(path, "body", None).fingerprint())
    seen.add(open_source(path, "key", None).fingerprint())
    os.utime(path, ns=(1, 1))
    seen.add(open_source(path, "body", "key").fingerprint())
    write(tmp_path / "in.jsonl", TEXTS[:-1])
    os.utime(path, ns=(1, 1))
    seen.add(open_source(path, "body", "key").fingerprint())
    assert len(seen) == 5


def test_a_line_over_the_limit_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never held whole."""
    monkeypatch.setattr("embatch.runs.sources.lines.LINE_BYTES", 1 << 20)
    long = b'{"text":"' + b"x" * (3 << 20) + b'"}\n'
    (tmp_path / "in.jsonl").write_bytes(b'{"text":"a"}\n' + long + b'{"text":"b"}\n')
    (rows,) = open_source(tmp_path / "in.jsonl", None, None).blocks()
    assert rows.texts == ["a", None, "b"]
    assert rows.faults == {1: "line 2: it is over 1 MiB long"}


def test_a_column_of_nothing_is_read(tmp_path: Path) -> None:
    """Parquet gives a column that holds only nulls a type of its own; every row says why it fails."""
    pq.write_table(pa.table({"text": [None, None], "id": [None, None]}), tmp_path / "in.parquet")
    (rows,) = open_source(tmp_path / "in.parquet", None, "id").blocks()
    assert rows.texts == [None, None]
    assert sorted(rows.faults) == [0, 1]
    assert rows.ids.type == pa.string()
