"""CSV and TSV: records of values, with a header. A bad record fails alone, with the number of its line."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.runs.sources import lines
from embatch.runs.sources.format import Chunk, Columns, chosen
from embatch.runs.sources.lines import Row, chunks, guarded, naming

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from embatch.runs.sources.files import File

_SEPARATORS: Final = ",;\t|"
_MARKED: Final = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
"""What spreadsheets write above a header."""
_HELD_BYTES: Final = 64
"""What a line takes beside its characters."""


class Csv:
    """CSV with a header, or TSV by its ending; quoted values may hold line ends."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns | None:
        """As `Format.look`."""
        wanted = {name for name in (text, id_) if name is not None} - file.partitions.keys()
        with naming(file), file.open() as stored:
            first = next(self._records(file, stored, wanted), None)
        if first is None:
            return None
        _, header, _ = first
        column = chosen(file, header, header, text, id_)
        for option, name in (("--text", column), ("--id", id_)):
            if name is not None and not encodable(name):
                raise InvalidArgument(
                    f"the header of {file.label} is not UTF-8, and a column that is read is named in it: "
                    "save the file as UTF-8",
                    field=option,
                )
        return Columns(column, id_, pa.string())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def lines(self, file: File, columns: Columns) -> Iterator[int]:
        """As `Format.lines`."""
        wanted = {name for name in (columns.text, columns.id) if name is not None} - file.partitions.keys()
        with naming(file), file.open() as stored:
            for number, *_ in islice(self._records(file, stored, wanted), 1, None):
                yield number

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return guarded(file, chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[Row]:
        with file.open() as stored:
            said = file.partitions
            wanted = {name for name in (columns.text, columns.id) if name is not None} - said.keys()
            records = self._records(file, stored, wanted)
            first = next(records, None)
            if first is None:  # an empty part
                return
            _, header, _ = first
            for name in (columns.text, columns.id):
                if name is not None and name not in header and name not in said:
                    raise InvalidArgument(f"{file.label} has no column {name!r}", field="IN")
            at = header.index(columns.text) if columns.text in header else None
            key = header.index(columns.id) if columns.id in header else None
            for number, record, broken in records:
                text = said[columns.text] if at is None else record[at] if at < len(record) else None
                id_ = (
                    said.get(columns.id or "") if key is None else record[key] if key < len(record) else None
                )
                fault = broken
                if fault is None and text is None:
                    fault = f"no text in {columns.text!r}"
                if fault is None and text is not None and not encodable(text):
                    fault = "not UTF-8"
                if id_ is not None and not encodable(id_):
                    id_, fault = None, fault or "the id is not UTF-8"
                if fault is None:
                    yield id_, text, None
                else:
                    yield id_, None, f"line {number}: {fault}"

    def _records(
        self, file: File, stored: Any, wanted: set[str]
    ) -> Iterator[tuple[int, list[str], str | None]]:
        """Yield the number of its first line, the values and the fault of each record; first the header.

        A record of several lines that is at fault gives its first line alone, and the others are read again:
        a quote that nobody meant would take every row up to the next one with it.
        """
        # What is not UTF-8 becomes lone surrogates, which no text holds: its row alone fails.
        text = io.TextIOWrapper(stored, "utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(lines.LINE_BYTES)
        given = _CsvLines(text)
        between = given.marked() or ("\t" if file.ending == ".tsv" else ",")
        reader = csv.reader(given, delimiter=between, strict=True)
        header = 0
        while True:
            given.begin()
            fault = None
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record, fault = _amended(given, between, error)
            if given.cut:
                record, fault = [], f"it is over {lines.LINE_BYTES >> 20} MiB long"
            if record and not header and (other := _separator(file, given.held, record, wanted)):
                between, record = other, next(csv.reader(given.held, delimiter=other))
                reader = csv.reader(given, delimiter=between, strict=True)
            if record and header and len(record) != header:
                fault = f"{len(record)} values, and the header has {header}"
            if record or fault:
                yield given.first, record, fault
                header = header or len(record)
            if fault and not given.cut:
                given.again()


def _amended(given: _CsvLines, between: str, error: csv.Error) -> tuple[list[str], str | None]:
    """Return the values of a record that is no good CSV, or what is wrong with it."""
    if given.over:
        return [], f"not CSV: a quote is not closed within {lines.LINE_BYTES >> 20} MiB"
    fault = f"not CSV: {error}"
    if len(given.held) == 1 and "limit" not in fault:
        # `"12" monitor` is no good CSV, and everybody reads it all the same.
        return next(csv.reader(given.held, delimiter=between)), None
    return [], fault


def _separator(file: File, header: Sequence[str], names: Sequence[str], wanted: set[str]) -> str | None:
    """Return what separates values where it is not what the ending says: the header is one column so far.

    Args:
        file: for the error.
        header: its lines.
        names: the columns by the separator that is usual.
        wanted: columns that are named.

    Raises:
        InvalidArgument: it might be one or another.
    """
    if len(names) > 1 or wanted & set(names):
        return None
    found = dict[str, list[str]]()
    for other in _SEPARATORS:
        with suppress(csv.Error):
            columns = next(csv.reader(header, delimiter=other))
            if len(columns) > 1 and all(name.strip() for name in columns):
                found[other] = columns
    found = {other: columns for other, columns in found.items() if wanted <= set(columns)} or found
    if len(found) > 1:
        raise InvalidArgument(
            f"{file.label} may be separated by {' or '.join(map(repr, found))}: write it with commas",
            field="IN",
        )
    return next(iter(found), None)


class _CsvLines:
    """The lines of a file for a CSV reader, those over `LINE_BYTES` characters without what is in them.

    Attributes:
        held: the lines of the record that is being read.
        first: the number of the first of them.
        cut: whether one of them was left out.
        over: whether it was ended, for it went on and on.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._waiting: deque[str] = deque()
        """Lines that are read again."""
        self.held: list[str] = []
        self.first = 1
        self.cut = self.over = False
        self._size, self._limit = 0, lines.LINE_BYTES

    def marked(self) -> str | None:
        """Return the separator that a first line such as `sep=;` says, and pass over the line."""
        line = self._next()
        found = _MARKED.fullmatch(line)
        if found is None:
            self._waiting.append(line)
            return None
        self.held = [line]
        return found[1]

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.first += len(self.held)
        self.held, self._size = [], 0
        self.cut = self.over = False

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
        if self.held:  # a record of several lines, as few are
            self._size += len(line) + _HELD_BYTES
            if self._size > self._limit:
                self.over = True
                self._waiting.appendleft(line)
                raise StopIteration
        self.held.append(line)
        return line

    def _next(self) -> str:
        line = self._text.readline(self._limit)
        if len(line) < self._limit or line.endswith(("\n", "\r")):
            return line
        self.cut = True
        quotes, line = line.count('"'), "-"
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(1 << 20)
            quotes += line.count('"')
        # An odd quote opens or closes a value, and so whether the next line is a row of its own.
        return '"' * (quotes % 2) + "\n"
