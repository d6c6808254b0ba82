"""CSV and TSV: records of values, with a header. A bad record fails alone, with the number of its line."""

from __future__ import annotations

import csv
import io
from collections import deque
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.runs.sources import lines
from embatch.runs.sources.format import Chunk, Columns, chosen
from embatch.runs.sources.lines import Row, chunks, guarded, naming

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.runs.sources.files import File


class Csv:
    """CSV with a header, or TSV by its ending; quoted values may hold line ends."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`."""
        with naming(file), file.open() as stored:
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
        return guarded(file, chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[Row]:
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
                id_ = (
                    record[key] if key is not None and key < len(record) and encodable(record[key]) else None
                )
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
        csv.field_size_limit(lines.LINE_BYTES)
        given, between = _CsvLines(text), "\t" if file.ending == ".tsv" else ","
        reader = csv.reader(given, delimiter=between, strict=True)
        header = 0
        while True:
            given.begin()
            fault, record = None, list[str]()
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = f"not CSV: {error}"
                if len(given.held) == 1 and "limit" not in fault:
                    # `"12" monitor` is no good CSV, and everybody reads it all the same.
                    fault, record = None, next(csv.reader(given.held, delimiter=between))
            if given.cut:
                fault, record = f"it is over {lines.LINE_BYTES >> 20} MiB long", []
            elif record and header and len(record) != header:
                fault = f"{len(record)} values, and the header has {header}"
            if record or fault:
                yield given.first, record, fault
                header = header or len(record)
            if fault and not given.cut:
                given.again()


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
        line = self._text.readline(lines.LINE_BYTES)
        if len(line) < lines.LINE_BYTES or line.endswith(("\n", "\r")):
            return line
        self.cut = True
        quotes, line = line.count('"'), "-"
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(1 << 20)
            quotes += line.count('"')
        # An odd quote opens or closes a value, and so whether the next line is a row of its own.
        return '"' * (quotes % 2) + "\n"
