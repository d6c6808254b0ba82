"""Input files: lines without bounds in bounded memory, Arrow that is not believed before it is checked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import InvalidArgument, Reason
from embatch.shard import RequestRow, rows_of
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.gemini import read_jsonl
from embatch.wire.gemini.read_json import load

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _same(_: str) -> bool:
    return True


class _Endless(io.RawIOBase):
    """A stream of one byte over and over, made as it is read, then some more bytes."""

    def __init__(self, count: int, tail: bytes) -> None:
        self._left, self._tail = count, tail

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._left)
        if size:
            view[:size] = b"x" * size
            self._left -= size
            return size
        size = min(len(view), len(self._tail))
        view[:size], self._tail = self._tail[:size], self._tail[size:]
        return size


def test_a_line_of_a_gigabyte_fails_alone_in_bounded_memory() -> None:
    """The line is named, the one after it is read, and a few blocks are all that is ever held."""
    tail = b'\n{"request":{"content":{"parts":[{"text":"after"}]}}}\n'
    stream = io.BufferedReader(_Endless(1 << 30, tail), 1 << 16)
    tracemalloc.start()
    try:
        rows = list(read_jsonl.read_rows(stream, 2 << 20, _same))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [row.fault.reason if row.fault else row.text for row in rows] == [Reason.LINE_TOO_LONG, "after"]
    assert peak < 16 << 20


@given(st.lists(st.text(max_size=20), max_size=20), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_every_text_comes_through(texts: list[str], ending: bytes, last: bool) -> None:  # noqa: FBT001  (drawn)
    """Whatever is in them, with either line end, with and without one at the end of the file."""
    import orjson

    sound = [text for text in texts if not any("\ud800" <= letter <= "\udfff" for letter in text)]
    content = ending.join(
        orjson.dumps({"key": str(at), "request": {"content": {"parts": [{"text": text}]}}})
        for at, text in enumerate(sound)
    ) + (ending if last else b"")
    rows = list(read_jsonl.read_rows(io.BytesIO(content), 1 << 20, _same))
    assert [row.text for row in rows] == sound
    assert [row.key for row in rows] == [str(at) for at in range(len(sound))]


def _stream(table: pa.Table) -> io.BytesIO:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return io.BytesIO(sink.getvalue())


def _rows(table: pa.Table) -> list[RequestRow]:
    return [row for batch in read_batches(_stream(table), 1 << 20) for row in rows_of(batch)]


GOOD = '{"request":{"content":{"parts":[{"text":"x"}]}}}\n'


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(GOOD.encode()), "gzip"),
        (bytes(pa.compress(GOOD.encode(), "zstd", asbytes=True)), "zstd"),
        (bz2.compress(GOOD.encode()), "bzip2"),
        (lzma.compress(GOOD.encode()), "xz"),
        (b"PAR1" + b"x" * 100, "Parquet"),
        (b"ARROW1\0\0" + b"x" * 100, "an Arrow file"),
        (b"\xff\xff\xff\xff" + b"x" * 100, "an Arrow stream"),
        *(
            (GOOD.encode(name), "UTF-")
            for name in ("utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_another_kind_is_refused_as_what_it_is(content: bytes, kind: str) -> None:
    """As a whole: its bytes between two line ends are no requests that failed."""
    with pytest.raises(InvalidArgument, match=kind):
        list(read_jsonl.read_rows(io.BytesIO(content), 1000, _same))


@pytest.mark.parametrize("blanks", [1, 100, 300, 4 << 20])
@pytest.mark.parametrize("tail", [b"", b"\n", b"\n" + b" " * 300 + b"\n\t"])
def test_a_long_line_that_begins_with_blanks_is_no_blank_line(blanks: int, tail: bytes) -> None:
    """It fails for its length, wherever the blocks end; one of blanks alone is left out."""
    line = b" " * blanks + b'{"text":"' + b"x" * 300 + b'"}'
    found = list(read_jsonl.read_rows(io.BytesIO(b"\n" + line + tail), 200, _same))
    assert [row.fault and row.fault.reason for row in found] == [Reason.LINE_TOO_LONG]
    assert "line 2 is over 200 bytes" in str(found[0].fault)


@pytest.mark.parametrize("size", [2_600_000, (3 << 20) - 1, 3 << 20, (3 << 20) + 1])
def test_a_long_last_line_without_an_end_is_told_of(size: int) -> None:
    """Of two megabytes at most, with a blank at its beginning, and ending where a block does."""
    found = list(read_jsonl.read_rows(io.BytesIO((b" " + b"x" * size)[:size]), 2 << 20, _same))
    assert [row.fault and row.fault.reason for row in found] == [Reason.LINE_TOO_LONG]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"key":"a","custom_id":"b","request":{"content":{"parts":[{"text":"x"}]}}}', Reason.BAD_FIELD),
        (b'{"key":1,"customId":"2","request":{"content":{"parts":[{"text":"x"}]}}}', Reason.BAD_FIELD),
        (b'{"key":"a","custom_id":"a","request":{"content":{"parts":[{"text":"x"}]}}}', None),
        (b'{"key":null,"custom_id":"a","request":{"content":{"parts":[{"text":"x"}]}}}', None),
    ],
)
def test_of_two_keys_of_a_line_none_is_dropped_in_silence(line: bytes, expected: Reason | None) -> None:
    """A line goes by one name: where `key` and `custom_id` differ it fails."""
    (row,) = read_jsonl.read_rows(io.BytesIO(line), 200, _same)
    assert (row.fault.reason if row.fault else None) == expected


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b'{"content":{"parts":[{"inlineData":{}},{"foo":1}]}}', Reason.UNSUPPORTED_PART),
        (b'{"content":{"parts":[{"text":1},2]}}', Reason.NOT_TEXT),
        (b'{"content":{"parts":3}}', Reason.EMPTY_TEXT),
        (b'{"content":{"parts":[{"foo":1},{"text":1}]}}', Reason.BAD_FIELD),
        (b'{"content":{"parts":[{"text":"a"}]},"embedContentConfig":[]}', None),  # PHP's empty object
    ],
)
def test_a_fault_of_content_comes_before_what_stands_behind_it(
    request_: bytes, reason: Reason | None
) -> None:
    """The first part that is no text is the row's fault; later ones are not looked at."""
    (row,) = read_jsonl.read_rows(io.BytesIO(b'{"request":' + request_ + b"}"), 1 << 20, _same)
    assert (row.fault and row.fault.reason) == reason


def test_arrow_rows_come_through() -> None:
    """All columns, and text alone."""
    full = pa.table(
        {
            "text": ["a", None],
            "key": ["k", None],
            "metadata": ['{"x":1}', None],
            "dimensions": pa.array([3, None], pa.int32()),
        }
    )
    rows = _rows(full)
    assert [(row.text, row.key, row.metadata, row.dimensions) for row in rows] == [
        ("a", "k", '{"x":1}', 3),
        (None, None, None, None),
    ]
    assert [row.text for row in _rows(pa.table({"text": ["z"]}))] == ["z"]


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (pa.table({"body": ["a"]}), "no column text"),
        (pa.table({"text": ["a"], "colour": ["b"]}), "unknown column 'colour'"),
        (pa.table({"text": [1]}), "column text is int64"),
        (pa.table({"text": pa.array(["a"], pa.large_string())}), "column text is large_string"),
        (pa.table({"text": pa.array(["a"]).dictionary_encode()}), "column text is dictionary"),
        (pa.table({"text": [["a"]]}), "column text is list"),
        (pa.table([["a"], ["b"]], ["text", "text"]), "two columns text"),
    ],
)
def test_arrow_of_another_shape_is_refused(table: pa.Table, match: str) -> None:
    """The message names the column."""
    with pytest.raises(InvalidArgument, match=match):
        list(read_batches(_stream(table), 1 << 20))


def test_arrow_with_bad_offsets_is_refused() -> None:
    """Offsets that point outside their buffer are found before a value is read."""
    sound = np.array([0, 5, 11], np.int32).tobytes()
    content = _stream(pa.table({"text": ["hello", " world"]})).getvalue()
    assert content.count(sound) == 1
    broken = content.replace(sound, np.array([0, 5, 1 << 20], np.int32).tobytes())
    with pytest.raises(InvalidArgument, match="not a readable Arrow stream"):
        list(read_batches(io.BytesIO(broken), 1 << 20))


@given(st.binary(max_size=300))
def test_noise_is_refused_by_name(noise: bytes) -> None:
    """Whatever is no Arrow stream is an InvalidArgument, never another error."""
    with pytest.raises(InvalidArgument):
        list(read_batches(io.BytesIO(noise), 1 << 20))


@given(st.binary(max_size=200))
def test_no_body_is_ever_another_error(noise: bytes) -> None:
    """Any bytes are either an object or refused with the field `body`."""
    try:
        found = load(noise)
    except InvalidArgument as refused:
        found = {"field": refused.field}
    assert isinstance(found, dict)
    assert found.get("field", "") is not None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "MALFORMED_JSON"),
        (b"null", "MALFORMED_JSON"),
        (b"[]", "MALFORMED_JSON"),
        (b'{"a":1} x', "MALFORMED_JSON"),
        (b'\xef\xbb\xbf{"a":1}', "BAD_ENCODING"),
        ('{"a":1}'.encode("utf-16"), "BAD_ENCODING"),
        (b'{"a":"\xff"}', "BAD_ENCODING"),
        (b'{"a":NaN}', "MALFORMED_JSON"),
        (b'{"a":1,"a":2}', "DUPLICATE_KEY"),
        (b'{"a":{"b":1,"b":2}}', "DUPLICATE_KEY"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "TOO_DEEP"),
        (b"[" * 100_000, "TOO_DEEP"),
    ],
)
def test_bodies_that_cannot_be_read_say_why(body: bytes, reason: str) -> None:
    """Each kind has its reason."""
    with pytest.raises(InvalidArgument) as caught:
        load(body)
    assert caught.value.reason == reason


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    """A text of braces and quotes is a text."""
    assert load(b'{"text":"' + rb"[{\"" * 50 + b'"}')["text"].startswith("[{")
