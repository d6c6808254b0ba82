"""What a source makes of files as they are found: odd names, other writers, damage, and long lines."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.errors import InvalidArgument
from embatch.runs.sources import Source, open_source

if TYPE_CHECKING:
    from pathlib import Path


def texts_of(source: Source, skip: int = 0) -> list[str | None]:
    """Return every text."""
    return [text for rows in source.blocks(7, skip) for text in rows.texts]


def lines(path: Path, *texts: str) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return path


@given(st.lists(st.text(max_size=12), max_size=12), st.integers(0, 14))
@settings(max_examples=60, deadline=None)
def test_whatever_text_comes_through(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], skip: int
) -> None:
    """Control characters, quotes, separators and line ends of every kind, in CSV and JSONL."""
    folder = tmp_path_factory.mktemp("any")
    table = io.StringIO(newline="")
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])
    (folder / "in.csv").write_bytes(table.getvalue().encode())
    assert texts_of(open_source(folder / "in.csv", None, None), skip) == texts[skip:]
    assert texts_of(open_source(lines(folder / "in.jsonl", *texts), "text", None), skip) == texts[skip:]


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    """Of a file and of a folder; only what is not there is read as a glob."""
    lines(tmp_path / "in[1].jsonl", "file")
    lines(tmp_path / "[all]" / "in.jsonl", "folder")
    assert texts_of(open_source(tmp_path / "in[1].jsonl", None, None)) == ["file"]
    assert texts_of(open_source(tmp_path / "[all]", None, None)) == ["folder"]
    assert texts_of(open_source(f"{tmp_path}/in?1].jsonl", None, None)) == ["file"]


@pytest.mark.parametrize(
    "names",
    [
        ("data/train_sft-00000-of-00001.jsonl", "data/train_gen-00000-of-00001.jsonl"),
        ("train/0.jsonl", "test/0.jsonl"),
        ("train/part-00000-of-00001.jsonl", "test/part-00000-of-00001.jsonl"),
        ("en/a_train.jsonl", "en/a_dev.jsonl"),
        ("config-test/train-0.jsonl", "config-test/test-0.jsonl"),
    ],
)
def test_the_glob_that_a_refusal_names_works(tmp_path: Path, names: tuple[str, str]) -> None:
    """However splits are told apart; a word in the path above the source does not matter."""
    root = tmp_path / "test"
    for name in names:
        lines(root / name, name)
    with pytest.raises(InvalidArgument, match="holds the splits") as error:
        open_source(root, None, None)
    assert error.value.field == "IN"
    (found,) = texts_of(open_source(str(error.value).split("'")[-2], None, None))
    assert found in names


def test_files_of_one_split_are_one_source(tmp_path: Path) -> None:
    """Several shards, or parts of no split at all, below a folder whose name is that of one."""
    root = tmp_path / "dev"
    lines(root / "part-00000-of-00002.jsonl", "a")
    lines(root / "part-00001-of-00002.jsonl", "b")
    assert texts_of(open_source(root, None, None)) == ["a", "b"]


def test_a_later_file_may_not_hold_numbers(tmp_path: Path) -> None:
    """They would be embedded as whatever they print as."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": [5]}), tmp_path / "2.parquet")
    with pytest.raises(InvalidArgument, match=r"'text' of 2\.parquet holds int64") as error:
        open_source(tmp_path, None, None)
    assert error.value.field == "--text"


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("encoded", [False, True])
def test_text_that_is_not_utf8_fails_alone(tmp_path: Path, ending: str, *, encoded: bool) -> None:
    """Writers do not check what they call a string."""
    column: Any = pa.array([b"good", b"\xff\xfe", None, b"\xc3\xa9"]).view(pa.string())
    if encoded:
        column = column.dictionary_encode()
    table = pa.table({"text": column})
    path = tmp_path / f"in{ending}"
    if ending == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    (rows,) = open_source(path, None, None).blocks()
    assert rows.texts == ["good", None, None, "é"]
    assert rows.faults == {1: "not UTF-8", 2: "the text is null"}


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    """Others may be; a spreadsheet leaves several without a name."""
    (tmp_path / "in.csv").write_text("text,,\na,,\n")
    assert texts_of(open_source(tmp_path / "in.csv", None, None)) == ["a"]
    (tmp_path / "in.csv").write_text("text,text\na,b\n")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "in.parquet")
    for name in ("in.csv", "in.parquet"):
        with pytest.raises(InvalidArgument, match="several columns 'text'") as error:
            open_source(tmp_path / name, None, None)
        assert error.value.field == "--text"


def test_a_mistaken_column_of_jsonl_is_refused_and_a_late_one_found(tmp_path: Path) -> None:
    """However many lines there are; the likely column is offered."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text":"a"}\n' * 300 + b'{"text":"b","late":1}\n')
    with pytest.raises(InvalidArgument, match=r"'titel'; it has text, late: perhaps 'text'\?"):
        open_source(path, "titel", None)
    (rows,) = open_source(path, None, "late").blocks()
    assert rows.ids.to_pylist()[-2:] == [None, "1"]


@pytest.mark.parametrize(
    ("ending", "content"), [(".jsonl", b"{\n[]\n"), (".txt", b"\n \n"), (".csv", b"text\na,b\n,,\n")]
)
def test_rows_that_all_fail_are_rows(tmp_path: Path, ending: str, content: bytes) -> None:
    """What becomes of a run without a row is for the run to say."""
    (tmp_path / f"in{ending}").write_bytes(content)
    (rows,) = open_source(tmp_path / f"in{ending}", None, None).blocks()
    assert rows.texts == [None, None]
    assert all(reason.startswith("line ") for reason in rows.faults.values())
    assert sorted(rows.faults) == [0, 1]


def test_arrow_reads_the_wanted_columns_alone_and_counts(tmp_path: Path) -> None:
    """A file knows its rows, a stream does not."""
    table = pa.table({"vector": [[1.0]] * 9, "id": list(range(9)), "text": [f"t{at}" for at in range(9)]})
    for name, writer_of in (("in.arrow", pa.ipc.new_file), ("in.arrows", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as out, writer_of(out, table.schema) as writer:
            writer.write_table(table, 4)
    file = open_source(tmp_path / "in.arrow", None, "id")
    stream = open_source(tmp_path / "in.arrows", None, "id")
    assert (file.rows, stream.rows) == (9, None)
    for source in (file, stream):
        (rows,) = source.blocks(9, 6)
        assert (rows.first, rows.ids.to_pylist(), rows.texts) == (6, [6, 7, 8], ["t6", "t7", "t8"])


def test_compressed_files_put_together_are_one(tmp_path: Path) -> None:
    """As `cat a.gz b.gz` makes them; one that was cut short is an error that names it."""
    whole = gzip.compress(b'{"text":"a"}\n') + gzip.compress(b'{"text":"b"}\n')
    (tmp_path / "in.jsonl.gz").write_bytes(whole)
    assert texts_of(open_source(tmp_path / "in.jsonl.gz", None, None)) == ["a", "b"]
    (tmp_path / "in.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(InvalidArgument, match=r"in\.jsonl\.gz cannot be read"):
        texts_of(open_source(tmp_path / "in.jsonl.gz", "text", None))


@pytest.mark.parametrize(
    ("long", "rest"),
    [
        ("{x},1\n", [("b", None)]),
        ('"{x}\nmore",1\n', [("b", None)]),
        ('"before\n{x}",1\n', [("b", None)]),
        ("{x}", []),
    ],
)
def test_a_long_line_of_csv_fails_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: str, rest: list[tuple[str, None]]
) -> None:
    """Also within quotes that open or close in what is not held."""
    monkeypatch.setattr("embatch.runs.sources.lines.LINE_BYTES", 1 << 20)
    after = "b,2\n" if rest else ""
    (tmp_path / "in.csv").write_text("text,n\na,0\n" + long.replace("{x}", "x" * (3 << 20)) + after)
    (rows,) = open_source(tmp_path / "in.csv", None, None).blocks()
    assert rows.texts == ["a", None, *(text for text, _ in rest)]
    assert rows.faults == {1: "line 3: it is over 1 MiB long"}


@pytest.mark.parametrize("end", ["", 'e,"x"\n', '"e",7\n', '"e\n'])
def test_a_quote_that_nobody_meant_takes_no_rows_with_it(tmp_path: Path, end: str) -> None:
    """Whatever comes after it, sound records of several lines too, is read as if it were not there."""
    table = 'text,n\na,1\n"stray,2\nb,3\n' + end + 'c "quoted",4\n"two\nlines",5\n"12" inch,6\nd,7\n'
    (tmp_path / "in.csv").write_text(table)
    (rows,) = open_source(tmp_path / "in.csv", None, None).blocks()
    after: list[str | None] = [] if not end else [None] if end == '"e\n' else ["e"]
    assert rows.texts == ["a", None, "b", *after, 'c "quoted"', "two\nlines", "12 inch", "d"]
    assert rows.faults[1].startswith("line 3: not CSV")
    assert set(rows.faults) == ({1, 3} if after == [None] else {1})


def test_a_quoted_value_without_an_end_leaves_the_rest(tmp_path: Path) -> None:
    """The file's last quote opens a value: its line fails, those after it are rows."""
    (tmp_path / "in.csv").write_text('text,n\n"a,1\n' + "b,2\n" * 3)
    (rows,) = open_source(tmp_path / "in.csv", None, None).blocks()
    assert rows.texts == [None, "b", "b", "b"]
    assert rows.faults == {0: "line 2: not CSV: unexpected end of data"}


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv.gz", ".txt.gz"])
def test_a_line_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """A line of 96 MB in a small file takes a few MB: what is over the limit is thrown away as it comes."""
    monkeypatch.setattr("embatch.runs.sources.lines.LINE_BYTES", 1 << 20)
    path = tmp_path / f"in{ending}"
    with gzip.open(path, "wb", 1) as out:
        out.write(b"text\n" if ending == ".csv.gz" else b'{"text":"a"}\n')
        for _ in range(96):
            out.write(b"x" * 1_000_000)
        out.write(b"\n")
    source = open_source(path, None, None)
    tracemalloc.start()
    try:
        (rows,) = source.blocks()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.texts[-1] is None
    assert rows.faults[len(rows.texts) - 1] == "line 2: it is over 1 MiB long"
    assert peak < 16 << 20


def test_a_row_group_is_never_held_whole(tmp_path: Path) -> None:
    """One of 48 MB is read through a buffer; many writers make but one of a file."""
    path = tmp_path / "in.parquet"
    noise = np.random.default_rng(3).bytes(24_000_000).hex()
    texts = [noise[at : at + 2000] for at in range(0, len(noise), 2000)]
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, compression="none")
    assert pq.read_metadata(path).num_row_groups == 1
    del noise
    # Arrow's memory is its own: measured where nothing else has used it.
    measure = (
        "import sys, pyarrow as pa\n"
        "from embatch.runs.sources import open_source\n"
        "rows = sum(len(one.texts) for one in open_source(sys.argv[1], None, None).blocks(1000))\n"
        "print(rows, pa.default_memory_pool().max_memory())\n"
    )
    said = subprocess.run([sys.executable, "-c", measure, path], capture_output=True, check=True).stdout
    rows, peak = map(int, said.split())
    assert rows == len(texts)
    assert peak < 36 << 20
