"""Input files in JSONL, read line by line: one bad line is one faulty request, never the end of the file.

All layouts in use are taken: flat or under `embedContentConfig`, camelCase or snake_case, `key` or
`custom_id`. Blank lines are skipped; a byte order mark is taken on the first line; CRLF and a missing last
line end are fine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import orjson

from embatch import jsontext
from embatch.errors import Code, InvalidArgument, Reason, RequestError
from embatch.jsontext import split_lines
from embatch.shard import RequestRow
from embatch.wire.gemini.read_requests import row_of_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEDIA_TYPE: Final = "application/jsonl"
_UPLOAD_LINES: Final = "upload it decompressed, as lines of JSON in UTF-8"
_OTHERS: Final = (
    (b"\x1f\x8b\x08", "compressed by gzip", _UPLOAD_LINES),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UPLOAD_LINES),
    (b"BZh", "compressed by bzip2", _UPLOAD_LINES),
    (b"\xfd7zXZ\x00", "compressed by xz", _UPLOAD_LINES),
    (b"PK\x03\x04", "a ZIP archive", _UPLOAD_LINES),
    (b"PAR1", "Parquet", "upload lines of JSON in UTF-8, or an Arrow stream"),
    (b"ARROW1\x00\x00", "an Arrow file", "upload an Arrow stream, or lines of JSON in UTF-8"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "upload it as application/vnd.apache.arrow.stream"),
    (b"\xff\xfe", "UTF-16 or UTF-32", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32", "save it as UTF-8"),
    (b"{\x00", "UTF-16 or UTF-32", "save it as UTF-8"),
    (b"\x00{", "UTF-16", "save it as UTF-8"),
    (b"\x00\x00\x00{", "UTF-32", "save it as UTF-8"),
)
"""How a file begins that cannot be JSONL, what it is instead, and what to do."""


def read_rows(file: BinaryIO, line_bytes: int, same_model: Callable[[str], bool]) -> Iterator[RequestRow]:
    """Yield one row for each line that is not blank, in bounded memory however long a line is.

    Args:
        file: the bytes; read once, from where they stand.
        line_bytes: a longer line fails, and only its head is ever held.
        same_model: whether a request's own `model` is the batch's.

    Raises:
        InvalidArgument: the file as a whole is something else, by its first bytes.
    """
    for number, (line, whole) in enumerate(split_lines(file, line_bytes), 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if number == 1:
            _refuse_other(content)
        if not content.strip():
            continue
        if not whole:
            yield _faulty(Reason.LINE_TOO_LONG, f"line {number} is over {line_bytes} bytes: shorten it")
            continue
        yield _row(content, number, same_model)


def _refuse_other(beginning: bytes) -> None:
    """Refuse what is no JSONL: its bytes between two line ends are no requests."""
    for mark, kind, remedy in _OTHERS:
        if beginning.startswith(mark):
            raise InvalidArgument(
                f"the input file is {kind}: {remedy}",
                field="batch.inputConfig.fileName",
                reason=Reason.BAD_ENCODING.value,
            )


def _row(line: bytes, number: int, same_model: Callable[[str], bool]) -> RequestRow:
    try:
        line.decode()
    except UnicodeDecodeError:
        return _faulty(Reason.BAD_ENCODING, f"line {number} is not UTF-8")
    if jsontext.too_many(line):
        most = jsontext.MOST_MARKS
        return _faulty(
            Reason.BAD_LINE,
            f"line {number} has more than {most} brackets and commas: send fewer values in it",
        )
    try:
        value = jsontext.loads(line)
    except orjson.JSONDecodeError as error:
        reason = Reason.BAD_UNICODE if "surrogate" in str(error) else Reason.BAD_LINE
        return _faulty(reason, f"line {number} is not JSON: {error.msg}")
    if not isinstance(value, dict):
        return _faulty(Reason.BAD_LINE, f"line {number} is not a JSON object")
    try:
        return row_of_line(value, same_model)
    except InvalidArgument as error:
        reason = Reason.MODEL_MISMATCH if (error.field or "").endswith("model") else Reason.BAD_FIELD
        key = value.get("key", value.get("custom_id"))
        fault = RequestError(
            Code.INVALID_ARGUMENT, reason, f"line {number}, {error.field or 'request'}: {error.message}"
        )
        # The key is kept so that the error finds its way back.
        return RequestRow(None, key=key if isinstance(key, str) else None, fault=fault)


def _faulty(reason: Reason, message: str) -> RequestRow:
    return RequestRow(None, fault=RequestError(Code.INVALID_ARGUMENT, reason, message))
