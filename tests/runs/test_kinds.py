"""What a file is: read where its bytes are what its ending says, refused by what it is where they are not."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.errors import InvalidArgument
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from embatch.runs.sources import Source

LINES = [".jsonl", ".csv", ".txt"]
WORDS = ["alpha", "βήτα", "гамма", "上海一北京", "naïve 🧪"]


def texts_of(source: Source) -> list[str | None]:
    """Return every text."""
    return [text for rows in source.blocks() for text in rows.texts]


def of_lines(ending: str, words: list[str]) -> str:
    """Return a file of lines with these texts."""
    match ending:
        case ".jsonl":
            return "".join(orjson.dumps({"text": word}).decode() + "\n" for word in words)
        case ".csv":
            return "text,n\r\n" + "".join(f"{word},1\r\n" for word in words)
    return "".join(f"{word}\n" for word in words)


def parquet() -> bytes:
    """Return a Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), out)
    return out.getvalue()


def arrow(*, stream: bool) -> bytes:
    """Return an Arrow file or stream."""
    out, table = io.BytesIO(), pa.table({"text": ["a"]})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def spreadsheet() -> bytes:
    """Return a zip archive, as a spreadsheet is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    """Return content compressed."""
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def refused(path: Path, content: bytes) -> str:
    """Return the message by which a file is refused; no character of it is one that a terminal obeys."""
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as error:
        open_source(path, None, None)
    assert error.value.field == "IN"
    message = str(error.value)
    assert message.isprintable()
    assert path.name in message
    return message


@pytest.mark.parametrize("ending", LINES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_says_how_lines_are_read(
    tmp_path: Path, ending: str, encoding: str, *, packed: bool
) -> None:
    """Of UTF-16 in both orders and of UTF-8, compressed or not."""
    mark = "\ufeff" if encoding in ("utf-16-be", "utf-16-le") else ""
    content = (mark + of_lines(ending, WORDS)).encode(encoding)
    path = tmp_path / f"in{ending}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert texts_of(open_source(path, None, None)) == WORDS


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_half_a_character_of_utf16_fails_its_line_alone(tmp_path: Path, order: str) -> None:
    """Also the last one, of a file that was cut short."""
    content = "\ufeffone\nt\ud83dwo\nthree\nfou".encode(order, "surrogatepass")
    (tmp_path / "in.txt").write_bytes(content + b"\x00")
    (rows,) = open_source(tmp_path / "in.txt", None, None).blocks()
    assert rows.texts == ["one", None, "three", None]
    assert rows.faults == {1: "line 2: not UTF-8", 3: "line 4: not UTF-8"}


def test_utf16_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    """Every line of some megabytes is there once."""
    words = [f"{at} Шанхай 🧪" for at in range(100_000)]
    (tmp_path / "in.txt").write_bytes(of_lines(".txt", words).encode("utf-16"))
    assert texts_of(open_source(tmp_path / "in.txt", None, None)) == words


@pytest.mark.parametrize("ending", LINES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-32"])
@pytest.mark.parametrize(
    "words", [["alpha", "beta"], ["гамма", "дельта и"], ["上海", "一北京"], ["नमस्ते दुनिया", "किताब है"]]
)
def test_text_of_two_or_four_bytes_without_a_mark_is_refused(
    tmp_path: Path, ending: str, encoding: str, words: list[str]
) -> None:
    """In any script: its bytes read as UTF-8 would be rubbish, and some of it would pass."""
    message = refused(tmp_path / f"in{ending}", of_lines(ending, words).encode(encoding))
    assert f"is {encoding[:6].upper()}" in message
    assert "UTF-8" in message


@pytest.mark.parametrize("ending", LINES)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"text\na\n", mtime=0), "gzip"),
        (bz2.compress(b"text\na\n"), "bz2"),
        (zstd(b"text\na\n"), "zstd"),
        (parquet(), "Parquet"),
        (arrow(stream=False), "Arrow"),
        (arrow(stream=True), "Arrow stream"),
        (spreadsheet(), "zip archive"),
        (pickle.dumps({"text": ["a"]}), "pickle"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "Office"),
        (b"SQLite format 3\x00" + bytes(99), "SQLite"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (bytes(range(256)), "binary"),
    ],
)
def test_another_kind_of_file_is_refused_as_what_it_is(
    tmp_path: Path, ending: str, content: bytes, what: str
) -> None:
    """Under the name of one of lines, and below a compression too."""
    assert what in refused(tmp_path / f"in{ending}", content)
    assert what in refused(tmp_path / f"in{ending}.gz", gzip.compress(content))


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"text":"a"}\n', "text"),
        (gzip.compress(b"a", mtime=0), "gzip"),
        (spreadsheet(), "zip"),
        (b"", "empty (0 bytes)"),
    ],
)
def test_what_is_no_table_is_refused_as_what_it_is(
    tmp_path: Path, ending: str, content: bytes, what: str
) -> None:
    """Nothing at all as well: a table without rows is not of 0 bytes."""
    message = refused(tmp_path / f"in{ending}", content)
    assert what in message or ending == ".arrow"


@pytest.mark.parametrize("ending", [".csv.gz", ".jsonl.zst", ".txt.bz2"])
def test_a_compressed_ending_wants_compressed_bytes(tmp_path: Path, ending: str) -> None:
    """Of that kind, and some."""
    assert "not compressed" in refused(tmp_path / f"in{ending}", b"text\na\n")
    assert "empty (0 bytes)" in refused(tmp_path / f"in{ending}", b"")
    assert "is xz" in refused(tmp_path / f"in{ending}", b"\xfd7zXZ\x00 and more")


@pytest.mark.parametrize(
    "content",
    [
        b'[{"text":"a"},{"text":"b"}]',
        b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
        b'\xef\xbb\xbf [\n"a",\n"b"]',
        b"[]\n",
    ],
)
def test_one_json_array_is_no_jsonl(tmp_path: Path, content: bytes) -> None:
    """It says so, and how to make lines of it; a list that is a line among others fails alone."""
    assert "jq -c '.[]'" in refused(tmp_path / "in.jsonl", content)
    (tmp_path / "in.jsonl").write_bytes(b'["a"]\n[broken\n{"text":"b"}\n')
    assert texts_of(open_source(tmp_path / "in.jsonl", None, None)) == [None, None, "b"]


def test_a_file_that_is_something_else_is_found_before_any_is_read(tmp_path: Path) -> None:
    """The last of several, which is named by its path in the folder."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b'{"text":"a"}\n')
    (tmp_path / "b" / "c.jsonl").write_bytes(gzip.compress(b'{"text":"a"}\n'))
    with pytest.raises(InvalidArgument, match=r"^b/c\.jsonl is gzip: name it c\.jsonl\.gz"):
        open_source(tmp_path, None, None)


def test_text_with_odd_characters_is_text(tmp_path: Path) -> None:
    """A zero here and there, separators of old, escapes of a terminal; a byte of Latin-1 fails its row."""
    content = b"a\x00b\n\x1b[31mred\nx\x01y\x01z\nplain\n" * 20 + b"caf\xe9\n"
    (tmp_path / "in.txt").write_bytes(content)
    texts = texts_of(open_source(tmp_path / "in.txt", None, None))
    assert texts == ["a\x00b", "\x1b[31mred", "x\x01y\x01z", "plain"] * 20 + [None]


def test_no_message_holds_a_control_character(tmp_path: Path) -> None:
    """Whoever named the file, its columns or the one that is asked for."""
    path = tmp_path / os.fsdecode("\x1b[31m\u202ein.csv".encode())  # in whatever locale
    path.write_bytes(b"a\x1b]0;title\x07,b\r\n1,2\r\n")
    odd = tmp_path / "in.parquet"
    pq.write_table(pa.table({"a\x1b[2J\nb": [1], "text\x00": [{"\x1b": 1}]}), odd)
    for place in (path, odd):
        for text in (None, "no\x1b", "a\x1b[2J\nb", "text\x00"):
            with pytest.raises(InvalidArgument) as error:
                open_source(place, text, None)
            assert str(error.value).isprintable()


def test_a_message_lists_some_columns_of_many(tmp_path: Path) -> None:
    """A file where every line has another key does not give a message of megabytes."""
    lines = (orjson.dumps({f"key {at} {'x' * 300}": "a", "b": "c"}) + b"\n" for at in range(5000))
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(InvalidArgument, match="more") as error:
        open_source(tmp_path / "in.jsonl", "text", None)
    assert len(str(error.value)) < 4000


def test_nothing_compressed_and_frames_to_skip_are_what_they_are(tmp_path: Path) -> None:
    """An empty part of bzip2 has no rows, and zstd may begin with a frame that says something else."""
    (tmp_path / "0.txt.bz2").write_bytes(bz2.compress(b""))
    (tmp_path / "1.txt.bz2").write_bytes(bz2.compress(b"one\n") + bz2.compress(b"two\n"))
    found = [text for rows in open_source(tmp_path, None, None).blocks() for text in rows.texts]
    assert found == ["one", "two"]
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    (tmp_path / "a.txt.zst").write_bytes(skipped + pa.compress(b"three\n", codec="zstd", asbytes=True))
    found = [text for rows in open_source(tmp_path / "a.txt.zst", None, None).blocks() for text in rows.texts]
    assert found == ["three"]
