"""Whatever is sent, reading four times as much of it takes about four times as long."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import TYPE_CHECKING, Any

import h11
import orjson
import pyarrow as pa
import pytest
from growth import MOST, growth

from embatch import jsontext
from embatch.api.limits import Bounds, judge_head
from embatch.api.multipart import RelatedReader, boundary_of
from embatch.errors import InvalidArgument
from embatch.service.views import after
from embatch.settings import Settings
from embatch.shard import rows_of
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.gemini import read_jsonl, read_requests
from embatch.wire.gemini.files import announced
from embatch.wire.gemini.read_json import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LARGEST = 1 << 20
"""What takes no time at this size is none to fear: a body has an end."""
REQUEST = b'{"request":{"content":{"parts":[{"text":"a text, and more: \\"quoted\\""}]}},"key":"k"}'
ROOM = 1 << 40


def same(_: str) -> bool:
    """Take every model for the same."""
    return True


def create(body: bytes) -> object:
    """Read a submit."""
    return read_requests.create(body, "m", same, most=100_000)


def listed(head: bytes, element: bytes, tail: bytes) -> Callable[[int], bytes]:
    """Return what makes a body of so many bytes that repeats one element."""
    return lambda size: head + b",".join([element] * (size // (len(element) + 1) + 1)) + tail


def submit(element: bytes) -> Callable[[int], bytes]:
    """Return what makes a submit that repeats one request."""
    return listed(b'{"batch":{"inputConfig":{"requests":{"requests":[', element, b"]}}}}")


def keys(size: int, last: bytes = b"") -> bytes:
    """Return an object of many fields."""
    return b"{" + b",".join(b'"k%d":1' % number for number in range(size // 11 + 2)) + last + b"}"


def of_lines(content: bytes) -> object:
    """Read an input file of lines."""
    return list(read_jsonl.read_rows(io.BytesIO(content), ROOM, same))


def split(content: bytes) -> object:
    """Split a file into lines."""
    return list(jsontext.split_lines(io.BytesIO(content), ROOM))


def of_columns(content: bytes) -> object:
    """Read an input file of columns."""
    pieces = read_batches(io.BytesIO(content), 1 << 20)
    return [row for piece in pieces for row in rows_of(piece)]


def stream(size: int, rows: int) -> bytes:
    """Return an Arrow stream in record batches of so many rows."""
    count = size // 40 + 1
    table = pa.table({"text": ["a text"] * count, "metadata": ['{"a":1}'] * count})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def of_parts(content: bytes) -> object:
    """Read a multipart body that comes in pieces of a few bytes."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 16):
            yield content[at : at + 16]

    async def read() -> list[bytes]:
        reader = RelatedReader(pieces(), b"x" * 70)
        await reader.metadata()
        await reader.file_head()
        return [piece async for piece in reader.file()]

    return asyncio.run(read())


def parts(size: int, filler: bytes) -> bytes:
    """Return a multipart body with a file of so many bytes."""
    line = b"\r\n--" + b"x" * 70
    return line + b"\r\n\r\n{}" + line + b"\r\n\r\n" + filler * (size // len(filler)) + line + b"--"


def first_part(size: int) -> bytes:
    """Return a multipart body whose first part is long; its limit is not that of the file."""
    return b"--" + b"x" * 70 + b"\r\n\r\n" + b"\r\n--" * (min(size, 60 << 10) // 4)


def head(content: bytes) -> object:
    """Judge a head whose Content-Type and Host are long."""
    kind = b"application/json" + content
    request = h11.Request(
        method="POST",
        target=b"/v1/x?" + content.replace(b" ", b"+"),
        headers=[(b"Host", b"localhost"), (b"Content-Type", kind)],
    )
    return judge_head(request, Bounds.of(Settings(header_bytes=1 << 40), []))


CASES: dict[str, tuple[Callable[[int], Any], Callable[[Any], object]]] = {
    "text of quotes that does not end": (lambda n: b'{"a":"' + rb"\"" * (n // 2) + b"[" * 33, load),
    "text of quotes and brackets": (lambda n: b'{"a":"' + rb"\"[{" * (n // 4) + b'"}', load),
    "text of backslashes": (lambda n: b'{"a":"' + rb"\\" * (n // 2) + b'"}', load),
    "text of escapes": (lambda n: b'{"a":"' + b"\\u00e9" * (n // 6) + b'"}', create),
    "backslashes outside of a text": (lambda n: b"{" + b"[" * 20 + b"\\" * n, create),
    "brackets that do not end": (lambda n: b"[" * n, load),
    "brackets that only end": (lambda n: b"{" + b"]" * n + b"[" * 99, load),
    "many fields": (keys, load),
    "one field twice": (lambda n: keys(n, b',"k0":2'), load),
    "all fields twice": (lambda n: keys(n) [:-1] + b"," + keys(n)[1:], load),
    "many objects with a field twice": (listed(b'{"a":[', b'{"b":1,"b":2}', b"]}"), load),
    "blanks": (lambda n: b" " * n + b"{}" + b" " * n, create),
    "requests": (submit(REQUEST), create),
    "requests without an end": (lambda n: submit(REQUEST)(n)[:-5], create),
    "requests that are nothing": (submit(b"[]"), create),
    "requests of no text": (submit(b"{}"), create),
    "one request of many values": (submit(b'{"metadata":{"a":[' + b"1," * 70_000 + b"1]}}"), create),
    "one request of many parts": (
        lambda n: submit(listed(b'{"request":{"content":{"parts":[', b'{"text":"a"}', b"]}}}")(n))(1),
        create,
    ),
    "a list in another place": (listed(b'{"batch":{"a":[', b"[]", b"]}}"), create),
    "many lists": (listed(b'{"batch":{"a":{"b":{"c":[[', b"1],[1", b"]]}}}}"), create),
    "interactive requests": (
        listed(b'{"requests":[', b'{"content":{"parts":[{"text":"a"}]}}', b"]}"),
        lambda body: read_requests.embed_many(body, same, 1 << 30),
    ),
    "contents": (
        listed(b'{"contents":[', b'{"parts":[{"text":"a"}]}', b"]}"),
        lambda body: read_requests.count_tokens(body, 1 << 30),
    ),
    "a mask of commas": (lambda n: "," * n, lambda mask: read_requests.update(b"{}", mask)),
    "a mask of underlines": (lambda n: "display" + "_" * n, lambda mask: read_requests.update(b"{}", mask)),
    "a mask of names": (
        lambda n: "priority,display_name," * (n // 22),
        lambda mask: read_requests.update(b"{}", mask),
    ),
    "digits": (lambda n: b'{"a":[' + b"1" * n, jsontext.loads),
    "long integers": (listed(b'{"a":[', b"1" * 25, b"]}"), jsontext.loads),
    "a long integer and blanks": (lambda n: b'{"a":"[' + b"1" * 25 + b" " * n + b'x"}', jsontext.loads),
    "integers and blanks": (listed(b'{"a":["', b"1" * 25 + b"   x", b'"]}'), jsontext.loads),
    "metadata of brackets": (lambda n: '{"a":"' + "[{" * (n // 2) + '"}', jsontext.is_object),
    "a value of long integers": (lambda n: [[10**20]] * (n // 25), jsontext.dumps),
    "a value of short lists": (lambda n: [[[]]] * (n // 5), jsontext.dumps),
    "lines": (lambda n: (REQUEST + b"\n") * (n // 90 + 1), of_lines),
    "line ends": (lambda n: b"\n" * n, of_lines),
    "one line": (lambda n: b'{"a":"' + rb"\"[" * (n // 3), of_lines),
    "one line of values": (listed(b'{"metadata":[', b"[]", b"]}"), of_lines),
    "a line in many blocks": (lambda n: b"x" * (2 * n), split),
    "rows": (lambda n: stream(n, 1 << 20), of_columns),
    "record batches": (lambda n: stream(n // 8, 4), of_columns),
    "a file in parts": (lambda n: parts(n // 4, b"abcd"), of_parts),
    "a file of beginnings of its end": (lambda n: parts(n // 4, b"\r\n--xx"), of_parts),
    "a first part without an end": (first_part, of_parts),
    "a boundary": (lambda n: "multipart/related; " + "boundary=" * (n // 9), boundary_of),
    "a quoted boundary": (lambda n: "multipart/related; boundary=" + '"x' * (n // 2), boundary_of),
    "a content type of parameters": (lambda n: b"; charset=utf-8" * (n // 150), head),
    "a page token": (lambda n: "A" * n, after),
    "a page token of brackets": (lambda n: "W1tb" * (n // 40), after),
    "a file's description": (lambda n: b'{"file":' + keys(n) + b"}", announced),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_four_times_as_much_takes_about_four_times_as_long(case: str) -> None:
    """Process CPU time, the best of five, of a size that takes long enough to be measured."""
    make, call = CASES[case]

    def made(size: int) -> Callable[[], object]:
        given = make(size)

        def run() -> None:
            with contextlib.suppress(
                InvalidArgument, orjson.JSONDecodeError
            ):  # what it refuses has been read too
                call(given)

        return run

    assert growth(made, 4096, LARGEST) < MOST
