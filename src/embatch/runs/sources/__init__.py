"""Where a run reads from: rows of text from files of any usual format, in bounded memory however large.

A row that cannot be read (a bad line, a text that is not text) stays in its place with a reason: it fails
alone. Only what makes every row unreadable, such as a column that is not there, is an error of the run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.runs.places import shown
from embatch.runs.sources.files import FORMATS, File, find
from embatch.runs.sources.id_columns import surveyed
from embatch.runs.sources.lines import Csv, Jsonl, PlainText
from embatch.runs.sources.tables import Arrow, Parquet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from embatch.runs.sources.format import Chunk, Columns, Format

BLOCK_ROWS: Final = 20_000
"""Rows of one batch of a run: some minutes of work on a laptop, a few tens of MB of results."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of the input, in its order."""

    first: int
    """0-based row number of the first row."""
    ids: pa.Array[Any]
    """The id column, or the row numbers where none was named; one type through the whole source."""
    texts: list[str | None]
    """`None` where the row cannot be read; then `faults` says why."""
    faults: dict[int, str]
    """Reason by position in these rows."""


@dataclass(frozen=True)
class Source:
    """Files of one format whose rows have a text and perhaps an id, in the order of their paths."""

    name: str
    """For people."""
    files: tuple[File, ...]
    format: Format
    columns: Columns
    place: str
    """As it was given: a file, a folder or a glob."""

    @property
    def size(self) -> int:
        """Bytes of all files as they are stored."""
        return sum(file.size for file in self.files)

    @cached_property
    def rows(self) -> int | None:
        """Rows of all files where their formats say so without being read, else `None`."""
        counts = [self.format.count(file) for file in self.files]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def ids(self) -> pa.DataType:
        """The type of the ids."""
        return pa.int64() if self.columns.id is None else self.columns.id_type

    def fingerprint(self) -> str:
        """Return the digest of what tells this input from another: names, sizes and times of its files."""
        files = [(file.path, file.size, file.changed) for file in self.files]
        return hashlib.sha256(orjson.dumps([files, self.columns.text, self.columns.id])).hexdigest()

    def parts(self) -> dict[str, str | None]:
        """Return what the fingerprint is of, by name: its files as a digest, and the columns."""
        files = [(file.path, file.size, file.changed) for file in self.files]
        digest = hashlib.sha256(orjson.dumps(files)).hexdigest()
        return {"input": digest, "text column": self.columns.text, "id column": self.columns.id}

    def blocks(self, rows: int = BLOCK_ROWS, skip: int = 0) -> Iterator[Rows]:
        """Yield the rows after the first `skip` in blocks of exactly `rows`, the last one shorter.

        Raises:
            InvalidArgument: a file cannot be read, or lacks a column.
        """
        first = skip
        held: list[Chunk] = []
        count = 0
        for chunk in self._chunks(skip):
            start = 0
            while start < len(chunk.texts):
                part = chunk.slice(start, rows - count)
                held.append(part)
                start, count = start + len(part.texts), count + len(part.texts)
                if count == rows:
                    yield self._joined(first, held)
                    first, held, count = first + rows, [], 0
        if held:
            yield self._joined(first, held)

    def _chunks(self, skip: int) -> Iterator[Chunk]:
        """Yield everything after the first `skip` rows; files that lie before them are not opened."""
        for file in self.files:
            count = self.format.count(file) if skip else None
            if count is not None and count <= skip:
                skip -= count
                continue
            for chunk in self.format.read(file, self.columns, skip):
                if len(chunk.texts) <= skip:
                    skip -= len(chunk.texts)
                    continue
                yield chunk.slice(skip, len(chunk.texts))
                skip = 0

    def _joined(self, first: int, chunks: list[Chunk]) -> Rows:
        texts: list[str | None] = []
        faults: dict[int, str] = {}
        for chunk in chunks:
            faults |= {len(texts) + at: reason for at, reason in chunk.faults.items()}
            texts += chunk.texts
        ids: Any
        if self.columns.id is None:
            ids = pa.array(range(first, first + len(texts)), pa.int64())
        else:
            parts: Any = [chunk.ids for chunk in chunks]
            kind: Any = self.ids
            ids = pa.chunked_array(parts, kind).combine_chunks()
        return Rows(first, ids, texts, faults)


def open_source(place: str | Path, text: str | None, id_: str | None) -> Source:
    """Return the source of a place; a first look at it finds a missing column.

    Args:
        place: a file, a folder (searched through), or a glob, as a path or an address; see `places`. By their
            endings: Parquet, JSONL, CSV, TSV, Arrow, Feather, plain text, the line formats also compressed.
        text: name of the text column; `None` takes `text`, else the only column of text.
        id_: name of the id column; `None` numbers the rows.

    Raises:
        InvalidArgument: there is no such file, its ending is unknown, a column is missing, or ids of two
            files have no common type.
    """
    files = find(place)
    form = format_of(files)
    columns = form.look(files[0], text, id_)
    if isinstance(form, (Parquet, Arrow)):  # what is of lines is text by nature
        columns = surveyed(form, files, columns)
    name = files[0].name if len(files) == 1 else f"{len(files)} files of {shown(place)}"
    return Source(name, files, form, columns, str(place))


def format_of(files: Sequence[File]) -> Format:
    """Return how files are read by their endings.

    Raises:
        InvalidArgument: an ending is unknown, or they are of several formats.
    """
    kinds = {FORMATS.get(file.ending): file for file in reversed(files)}
    if None in kinds:
        raise InvalidArgument(
            f"{kinds[None].name}: embatch reads {', '.join(sorted(FORMATS))}, those of lines also with .gz, "
            ".zst or .bz2 behind; rename or convert the file",
            field="IN",
        )
    if len(kinds) > 1:
        names = " and ".join(sorted(file.name for file in kinds.values()))
        raise InvalidArgument(f"{names} are of different formats: name one with a glob", field="IN")
    formats: dict[str | None, Format] = {
        "parquet": Parquet(),
        "arrow": Arrow(),
        "jsonl": Jsonl(),
        "csv": Csv(),
        "text": PlainText(),
    }
    return formats[next(iter(kinds))]
