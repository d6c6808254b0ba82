"""The formats of lines: JSONL, CSV and TSV, plain text. A bad line fails alone, with its number."""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable, split_lines
from embatch.runs.sources.files import UNREADABLE
from embatch.runs.sources.format import CHUNK_ROWS, Chunk, Columns, chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.runs.sources.files import File

LINE_BYTES: Final = 64 << 20
"""A longer line fails, and is never held whole."""
_LOOKED_AT: Final = 100
_MARK: Final = b"\xef\xbb\xbf"

_Row = tuple[str | None, str | None, str | None]
"""Id, text, and what is wrong with it."""


def _chunks(rows: Iterator[_Row], columns: Columns) -> Iterator[Chunk]:
    while part := list(islice(rows, CHUNK_ROWS)):
        ids = None if columns.id is None else pa.array([one[0] for one in part], pa.string())
        faults = {at: one[2] for at, one in enumerate(part) if one[2] is not None}
        yield Chunk(ids, [None if one[2] is not None else one[1] for one in part], faults)


@contextmanager
def _naming(file: File) -> Iterator[None]:
    """Say which file it is that cannot be read or decompressed."""
    try:
        yield
    except UNREADABLE as error:
        raise InvalidArgument(f"{file.name} cannot be read: {error}", field="IN") from None


def _guarded(file: File, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    with _naming(file):
        yield from chunks


class Jsonl:
    """One JSON object a line; blank lines are no rows."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`: from the first lines, and on until each column that is named was seen."""
        names: dict[str, None] = {}
        texts: dict[str, None] = {}
        wanted = {name for name in (text, id_) if name is not None}
        with _naming(file):
            for number, (_, _, record, _) in enumerate(self._records(file)):
                if number >= _LOOKED_AT and names and wanted <= names.keys():
                    break
                names |= dict.fromkeys(record)
                texts |= dict.fromkeys(name for name, value in record.items() if isinstance(value, str))
        if not names:  # nothing to look at: every row will say what is wrong with it
            return Columns(text or "text", id_, pa.string())
        return Columns(chosen(file, list(names), list(texts), text, id_), id_, pa.string())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return _guarded(file, _chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[_Row]:
        for number, line, record, broken in self._records(file):
            text = record.get(columns.text)
            fault = broken
            if fault is None and not isinstance(text, str):
                fault = f"no text in {columns.text!r}" if text is None else f"{columns.text!r} is not text"
            id_ = None
            try:
                id_ = _id(line, record, columns.id)
            except (RecursionError, orjson.JSONEncodeError):
                fault = "nested too deeply"
            said = None if fault is None else f"line {number}: {fault}"
            yield id_, text if isinstance(text, str) else None, said

    def _records(self, file: File) -> Iterator[tuple[int, bytes, dict[str, Any], str | None]]:
        """Yield number, content, object and fault of each line that is not blank."""
        with file.open() as stored:
            for number, (line, whole) in enumerate(split_lines(stored, LINE_BYTES), 1):
                content = line.removeprefix(_MARK) if number == 1 else line
                if not whole:
                    yield number, content, {}, f"it is over {LINE_BYTES >> 20} MiB long"
                elif content.strip():
                    yield number, content, *_record(content)


def _record(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg}"
    return (record, None) if isinstance(record, dict) else ({}, "not a JSON object")


def _id(line: bytes, record: dict[str, Any], name: str | None) -> str | None:
    value = None if name is None else record.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (float, list, dict)):
        # A whole number beyond 64 bits has become a float, which others become too: digits as they stand.
        value = json.loads(line, parse_int=orjson.Fragment, parse_float=orjson.Fragment)[name]
    return orjson.dumps(value).decode()


class Csv:
    """CSV with a header, or TSV by its ending; quoted values may hold line ends."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`."""
        with _naming(file), file.open() as stored:
            _, header, _ = next(self._records(file, stored), (1, [], None))
        column = chosen(file, header, header, text, id_)
        for option, name in (("--text", column), ("--id", id_)):
            if name is not None and not encodable(name):
                raise InvalidArgument(
                    f"the header of {file.name} is not UTF-8, and a column that is read is named in it: "
                    "save the file as UTF-8",
                    field=option,
                )
        return Columns(column, id_, pa.string())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return _guarded(file, _chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[_Row]:
        with file.open() as stored:
            records = self._records(file, stored)
            _, header, _ = next(records, (1, [], None))
            for name in (columns.text, columns.id):
                if name is not None and name not in header:
                    raise InvalidArgument(f"{file.name} has no column {name!r}", field="IN")
            at = header.index(columns.text)
            key = None if columns.id is None else header.index(columns.id)
            for number, record, broken in records:
                fault = broken
                if fault is None and not encodable(record[at]):
                    fault = "not UTF-8"
                id_ = record[key] if key is not None and key < len(record) else None
                if id_ is not None and not encodable(id_):
                    id_, fault = None, fault or "the id is not UTF-8"
                yield (
                    id_,
                    record[at] if fault is None else None,
                    None if fault is None else f"line {number}: {fault}",
                )

    def _records(self, file: File, stored: Any) -> Iterator[tuple[int, list[str], str | None]]:
        """Yield the number of its first line, the values and the fault of each record; first the header.

        A record of several lines that is at fault gives its first line alone, and the others are read again:
        a quote that nobody meant would take every row up to the next one with it.
        """
        # What is not UTF-8 becomes lone surrogates, which no text holds: its row alone fails.
        text = io.TextIOWrapper(stored, "utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(LINE_BYTES)
        lines, between = _CsvLines(text), "\t" if file.ending == ".tsv" else ","
        reader = csv.reader(lines, delimiter=between, strict=True)
        header = 0
        while True:
            lines.begin()
            fault, record = None, list[str]()
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = f"not CSV: {error}"
                if len(lines.held) == 1 and "limit" not in fault:
                    # `"12" monitor` is no good CSV, and everybody reads it all the same.
                    fault, record = None, next(csv.reader(lines.held, delimiter=between))
            if lines.cut:
                fault, record = f"it is over {LINE_BYTES >> 20} MiB long", []
            elif record and header and len(record) != header:
                fault = f"{len(record)} values, and the header has {header}"
            if record or fault:
                yield lines.first, record, fault
                header = header or len(record)
            if fault and not lines.cut:
                lines.again()


class _CsvLines:
    """The lines of a file for a CSV reader, those over `LINE_BYTES` characters without what is in them.

    Attributes:
        held: the lines of the record that is being read.
        first: the number of the first of them.
        cut: whether one of them was left out.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._waiting: deque[str] = deque()
        """Lines that are read again."""
        self.held: list[str] = []
        self.first = 1
        self.cut = False

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.first += len(self.held)
        self.held, self.cut = [], False

    def again(self) -> None:
        """Let the record have been its first line, and give the others out again."""
        self._waiting.extendleft(reversed(self.held[1:]))
        del self.held[1:]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._next()
        if not line:
            raise StopIteration
        self.held.append(line)
        return line

    def _next(self) -> str:
        line = self._text.readline(LINE_BYTES)
        if len(line) < LINE_BYTES or line.endswith(("\n", "\r")):
            return line
        self.cut = True
        quotes, line = line.count('"'), "-"
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(1 << 20)
            quotes += line.count('"')
        # An odd quote opens or closes a value, and so whether the next line is a row of its own.
        return '"' * (quotes % 2) + "\n"


class PlainText:
    """One text a line. An empty line is a row without a text, so that line numbers stay row numbers."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`: there are no columns to name."""
        for option, name in (("--text", text), ("--id", id_)):
            if name is not None:
                raise InvalidArgument(f"{file.name} is plain text and has no column {name!r}", field=option)
        return Columns("text", None, pa.int64())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return _guarded(file, _chunks(self._rows(file), columns))

    def _rows(self, file: File) -> Iterator[_Row]:
        with file.open() as stored:
            for number, (line, whole) in enumerate(split_lines(stored, LINE_BYTES), 1):
                content = (line.removeprefix(_MARK) if number == 1 else line).removesuffix(b"\r")
                fault = None if whole else f"it is over {LINE_BYTES >> 20} MiB long"
                text: str | None = None
                try:
                    text = content.decode()
                except UnicodeDecodeError:
                    fault = fault or "not UTF-8"
                if fault is None and not content.strip():
                    fault = "empty"
                yield None, text, None if fault is None else f"line {number}: {fault}"
