"""The formats of lines: JSONL, plain text, and what CSV shares. A bad line fails alone, with its number."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.escapes import visible
from embatch.jsontext import MESSAGE_DEPTH, split_lines, too_deep
from embatch.runs.sources.files import UNREADABLE
from embatch.runs.sources.format import CHUNK_BYTES, CHUNK_ROWS, Chunk, Columns, chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.runs.sources.files import File

LINE_BYTES: Final = 64 << 20
"""A longer line fails, and is never held whole."""
_LOOKED_AT: Final = 100
_KEPT: Final = 1000
_LINE: Final = "text"
"""Stands for the column that lines of plain text are."""
_MARK: Final = b"\xef\xbb\xbf"

Row = tuple[str | None, str | None, str | None]
"""Id, text, and what is wrong with it."""


def chunks(rows: Iterator[Row], columns: Columns) -> Iterator[Chunk]:
    """Yield rows as chunks."""
    while part := _some(rows):
        ids = None if columns.id is None else pa.array([one[0] for one in part], pa.string())
        faults = {at: one[2] for at, one in enumerate(part) if one[2] is not None}
        yield Chunk(ids, [None if one[2] is not None else one[1] for one in part], faults)


def _some(rows: Iterator[Row]) -> list[Row]:
    """Return the next rows: as many as are held at a time."""
    some, size = list[Row](), 0
    for row in islice(rows, CHUNK_ROWS):
        some.append(row)
        if row[1] is not None:
            size += len(row[1])
        if size >= CHUNK_BYTES:
            break
    return some


@contextmanager
def naming(file: File) -> Iterator[None]:
    """Say which file it is that cannot be read or decompressed."""
    try:
        yield
    except UNREADABLE as error:
        raise InvalidArgument(f"{file.label} cannot be read: {visible(str(error))}", field="IN") from None


def guarded(file: File, read: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield chunks; what cannot be read on the way is an error that names the file."""
    with naming(file):
        yield from read


class Jsonl:
    """One JSON object a line; blank lines are no rows."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns | None:
        """As `Format.look`: from the first lines, and on until each column that is named was seen."""
        names: dict[str, None] = {}
        texts: dict[str, None] = {}
        wanted = {name for name in (text, id_) if name is not None} - file.partitions.keys()
        met = False
        with naming(file):
            for number, (_, _, record, _) in enumerate(self._records(file)):
                met = True
                if number >= _LOOKED_AT and names and wanted <= names.keys():
                    break
                # However many there are in a file, some hundred tell what a mistaken name may have meant.
                kept = record if len(names) < _KEPT else [name for name in wanted if name in record]
                names |= dict.fromkeys(kept)
                texts |= dict.fromkeys(name for name in kept if isinstance(record[name], str))
        if not met:
            return None
        if not names:  # nothing to look at: every row will say what is wrong with it
            return Columns(text or "text", id_, pa.string())
        return Columns(chosen(file, list(names), list(texts), text, id_), id_, pa.string())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def lines(self, file: File, columns: Columns) -> Iterator[int]:  # noqa: ARG002
        """As `Format.lines`."""
        with naming(file):
            for number, *_ in self._records(file):
                yield number

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return guarded(file, chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[Row]:
        said = {name: value for name, value in file.partitions.items() if name in (columns.text, columns.id)}
        for number, line, found, broken in self._records(file):
            record = {**said, **found} if said else found
            text = record.get(columns.text)
            fault = broken
            if fault is None and not isinstance(text, str):
                fault = f"no text in {columns.text!r}" if text is None else f"{columns.text!r} is not text"
            id_ = None
            try:
                id_ = _id(line, record, columns.id)
            except ValueError:
                fault = "nested too deeply"
            reason = None if fault is None else f"line {number}: {fault}"
            yield id_, text if isinstance(text, str) else None, reason

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
        if too_deep(line, MESSAGE_DEPTH):
            raise ValueError("nested too deeply")
        # A whole number beyond 64 bits has become a float, which others become too: digits as they stand.
        value = json.loads(line, parse_int=orjson.Fragment, parse_float=orjson.Fragment)[name]
    return orjson.dumps(value).decode()


class PlainText:
    """One text a line. An empty line is a row without a text, so that line numbers stay row numbers."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns | None:
        """As `Format.look`: there are no columns to name, but those of the folders."""
        for option, name in (("--text", text), ("--id", id_)):
            if name is not None and name not in file.partitions:
                raise InvalidArgument(f"{file.label} is plain text and has no column {name!r}", field=option)
        return Columns(text or _LINE, id_, pa.int64() if id_ is None else pa.string())

    def count(self, file: File) -> int | None:  # noqa: ARG002
        """As `Format.count`."""
        return None

    def lines(self, file: File, columns: Columns) -> Iterator[int]:
        """As `Format.lines`: each line is a row."""
        with naming(file):
            for number, _ in enumerate(self._rows(file, columns), 1):
                yield number

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:  # noqa: ARG002
        """As `Format.read`."""
        return guarded(file, chunks(self._rows(file, columns), columns))

    def _rows(self, file: File, columns: Columns) -> Iterator[Row]:
        said = file.partitions
        id_ = None if columns.id is None else said.get(columns.id)
        with file.open() as stored:
            given = split_lines(stored, LINE_BYTES)
            first = next(given, None)
            second = next(given, None)
            if first == (_MARK, True) and second is None:  # an empty part
                return
            known = (line for line in (first, second) if line is not None)
            for number, (line, whole) in enumerate(chain(known, given), 1):
                content = (line.removeprefix(_MARK) if number == 1 else line).removesuffix(b"\r")
                fault = None if whole else f"it is over {LINE_BYTES >> 20} MiB long"
                text: str | None = None
                try:
                    text = content.decode()
                except UnicodeDecodeError:
                    fault = fault or "not UTF-8"
                if fault is None and not content.strip():
                    fault = "empty"
                if columns.text != _LINE and fault is None:
                    text = said.get(columns.text)
                    fault = None if text else f"no text in {columns.text!r}"
                yield id_, text, None if fault is None else f"line {number}: {fault}"
