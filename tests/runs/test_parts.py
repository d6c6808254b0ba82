"""Several files as one source: empty parts, whose row it is that fails, columns of folders, separators."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.errors import InvalidArgument
from embatch.runs.sources import Rows, open_source

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(place: Path | str, text: str | None = None, id_: str | None = None) -> Rows:
    """Return all rows of a source that has few."""
    (rows,) = open_source(place, text, id_).blocks()
    return rows


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".csv", "body,n\nalpha,1\n"),
        (".tsv", "body\tn\nalpha\t1\n"),
        (".jsonl", '{"body":"alpha","n":1}\n'),
        (".txt", "alpha\n"),
    ],
)
@pytest.mark.parametrize("empty", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n\n", b"\r\n"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_part_has_no_rows(
    tmp_path: Path, ending: str, content: str, empty: bytes, *, first: bool, packed: bool
) -> None:
    """Before or after the others, compressed or not; a mark or blank lines are nothing, but in text."""
    parts = [content.encode(), empty]
    for number, part in enumerate(reversed(parts) if first else parts):
        name = f"part-{number}{ending}{'.gz' if packed else ''}"
        write(tmp_path / name, gzip.compress(part) if packed else part)
    rows = rows_of(tmp_path, None, None if ending == ".txt" else "n")
    blank = empty.count(b"\n") if ending == ".txt" else 0
    assert [text for text in rows.texts if text is not None] == ["alpha"]
    assert len(rows.texts) == 1 + blank
    if ending != ".txt":
        assert rows.ids.to_pylist() == ["1"]


def test_parts_that_are_all_empty_have_no_rows(tmp_path: Path) -> None:
    """What becomes of a run without a row is for the run to say."""
    for number in range(2):
        write(tmp_path / f"{number}.csv", b"")
    assert list(open_source(tmp_path, "text", "id").blocks()) == []


def test_a_table_without_rows_may_lack_the_rows_but_not_its_foot(tmp_path: Path) -> None:
    """One of 0 bytes was cut short: what it held is not left out in silence."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "2.parquet")
    assert rows_of(tmp_path).texts == ["a"]
    write(tmp_path / "3.parquet", b"")
    with pytest.raises(
        InvalidArgument, match=r"^3\.parquet is empty \(0 bytes\), and a file of Parquet never is"
    ):
        open_source(tmp_path, None, None)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".arrow"])
def test_a_part_without_the_column_is_refused_before_any_is_read(tmp_path: Path, ending: str) -> None:
    """By its name in the folder."""
    for name, column in (("a/1", "text"), ("b/1", "body")):
        path = write(tmp_path / f"{name}{ending}", f"{column}\nx\n")
        table = pa.table({column: ["x"]})
        if ending == ".parquet":
            pq.write_table(table, path)
        elif ending == ".arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
    with pytest.raises(InvalidArgument, match=rf"^b/1\{ending} has no column 'text'"):
        open_source(tmp_path, None, None)


def test_a_row_that_fails_names_its_file_where_there_are_several(tmp_path: Path) -> None:
    """And its line, or its row in the file where there are no lines."""
    for folder in "ab":
        write(tmp_path / folder / "in.jsonl", '{"text":"x"}\n\n{broken\n')
    assert sorted(rows_of(tmp_path).faults) == [1, 3]
    assert rows_of(tmp_path).faults[3].startswith("b/in.jsonl, line 3: not JSON")
    assert rows_of(tmp_path / "a").faults[1].startswith("line 3: not JSON")
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in "ab":
        pq.write_table(pa.table({"text": ["x"] * 5000 + [None]}), tables / f"{name}.parquet")
    assert list(rows_of(tables).faults.values()) == [
        f"{name}.parquet, row 5000: the text is null" for name in "ab"
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".parquet", ".arrow"])
def test_a_column_may_be_said_by_folders(tmp_path: Path, ending: str) -> None:
    """As ids and as texts, read from the path alone; digits stay as they are written."""
    table = pa.table({"body": ["x", "y"]})
    for folder in ("lang=en/year=007", "lang=a%2Fb/year=__HIVE_DEFAULT_PARTITION__"):
        path = write(
            tmp_path / folder / f"in{ending}", {".jsonl": '{"body":"x"}\n{"body":"y"}\n'}.get(ending, "")
        )
        match ending:
            case ".csv":
                path.write_text("body\nx\ny\n")
            case ".txt":
                path.write_text("x\ny\n")
            case ".parquet":
                pq.write_table(table, path)
            case ".arrow":
                with pa.ipc.new_file(str(path), table.schema) as writer:
                    writer.write_table(table)
    text = None if ending == ".txt" else "body"
    rows = rows_of(tmp_path, text, "lang")
    assert (rows.ids.to_pylist(), rows.texts) == (["a/b", "a/b", "en", "en"], ["x", "y"] * 2)
    assert rows_of(tmp_path, text, "year").ids.to_pylist() == [None, None, "007", "007"]
    rows = rows_of(tmp_path, "year")
    assert (rows.texts, sorted(rows.faults)) == ([None, None, "007", "007"], [0, 1])
    if ending != ".txt":
        assert rows_of(tmp_path).texts == ["x", "y"] * 2  # no folder is taken for the text by itself
    with pytest.raises(InvalidArgument, match="'no'") as error:
        open_source(tmp_path, text, "no")
    assert error.value.field == "--id"


def test_a_column_of_the_file_goes_before_one_of_the_folder(tmp_path: Path) -> None:
    """What stands in the row is the row's."""
    write(tmp_path / "id=1" / "in.jsonl", '{"text":"x","id":2}\n')
    assert rows_of(tmp_path, None, "id").ids.to_pylist() == ["2"]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("text", [None, "text"])
def test_values_may_be_separated_otherwise(tmp_path: Path, separator: str, text: str | None) -> None:
    """Where the header is one column by commas and several by something else: as spreadsheets write it."""
    table = 'id;text\r\n1;"one; two, ""three"""\r\n2;a, b\r\n3\r\n'.replace(";", separator)
    rows = rows_of(write(tmp_path / "in.csv", table), text, "id")
    assert rows.ids.to_pylist() == ["1", "2", "3"]
    assert rows.texts == [f'one{separator} two, "three"', "a, b", None]
    assert rows.faults == {2: "line 4: 1 values, and the header has 2"}


@pytest.mark.parametrize(
    ("content", "text", "found"),
    [
        ("text\na;b\n", None, ["a;b"]),
        ("text;more\na;b\n", "text;more", ["a;b"]),
        ("id,text;more\n1,a;b\n", "text;more", ["a;b"]),
        ("sep=;\nid;text\n1;a\n", None, ["a"]),
        ('"sep=|"\r\nid|text\r\n1|a\r\n', None, ["a"]),
        ("sep=,\nid,text\n1,a\n", None, ["a"]),
        ('"a,b";text\n1;x\n', None, ["x"]),
        ("a|b;text\n1;x\n", "text", ["x"]),
        ("text;\na;\n", "text;", ["a;"]),
    ],
)
def test_commas_are_left_only_for_what_the_header_says(
    tmp_path: Path, content: str, text: str | None, found: list[str]
) -> None:
    """Nothing is guessed from the rows, and a column that is named as it stands is that column."""
    assert rows_of(write(tmp_path / "in.csv", content), text).texts == found


def test_a_header_that_might_be_either_is_refused(tmp_path: Path) -> None:
    """And one of tabs may hold commas."""
    with pytest.raises(InvalidArgument, match=r"may be separated by ';' or '\|'") as error:
        open_source(write(tmp_path / "in.csv", "a|b;c\nx|y;z\n"), None, None)
    assert error.value.field == "IN"
    assert rows_of(write(tmp_path / "in.tsv", "text,n\nx,1\n")).texts == ["x"]


def test_a_quote_that_never_closes_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short lines are counted as what they take; those after it are rows."""
    monkeypatch.setattr("embatch.runs.sources.lines.LINE_BYTES", 1 << 20)
    content = 'text,n\n"a,1\n' + "b,2\n" * 100_000
    blocks = list(open_source(write(tmp_path / "in.csv", content), None, None).blocks(10_000_000))
    (rows,) = blocks
    assert rows.texts == [None] + ["b"] * 100_000
    assert rows.faults == {0: "line 2: not CSV: a quote is not closed within 1 MiB"}
