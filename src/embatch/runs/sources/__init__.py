"""Where a run reads from: rows of text from files of any usual format, in bounded memory however large.

A row that cannot be read (a bad line, a text that is not text) stays in its place with a reason: it fails
alone. Only what makes every row unreadable, such as a column that is not there, is an error of the run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.runs.locations import shown
from embatch.runs.sources.cutting import Space
from embatch.runs.sources.files import File, find, looked_at
from embatch.runs.sources.format import Columns
from embatch.runs.sources.id_columns import surveyed
from embatch.runs.sources.kinds import ENDINGS, FORMATS
from embatch.runs.sources.lines import Jsonl, PlainText
from embatch.runs.sources.separated import Csv
from embatch.runs.sources.tables import Arrow, Parquet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from embatch.runs.sources.format import Chunk, Format

BLOCK_ROWS: Final = 20_000
"""Rows of one batch of a run: some minutes of work on a laptop, a few tens of MB of results."""
BLOCK_BYTES: Final = 64 << 20
"""Most bytes of text in one batch of a run, however few rows that are: some blocks are held at once."""


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
    notes: tuple[str, ...] = ()
    """What of a folder or glob was left out, and why: a line each."""

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

    def blocks(
        self, rows: int = BLOCK_ROWS, skip: int = 0, lengths: Iterable[int] = (), size: int = BLOCK_BYTES
    ) -> Iterator[Rows]:
        """Yield the rows after the first `skip` in blocks, none of them empty.

        A block ends where the next row would be one too many, or its text one too large. That depends on
        nothing but the rows from the block's first one on: reading from where a block began gives the blocks
        that reading from the beginning gives.

        Args:
            rows: most rows of a block.
            skip: rows that lie before the first block.
            lengths: rows of the first blocks where that is known from before; what `rows` and `size` say is
                for those after them.
            size: most bytes of its texts in UTF-8. A text of more is a block of its own.

        Raises:
            InvalidArgument: a file cannot be read, or lacks a column.
        """
        first, known = skip, iter(lengths)
        held: list[Chunk] = []
        space = Space.of(next(known, None), rows, size)
        for chunk in self._chunks(skip):
            start, ends = 0, chunk.ends()
            while start < len(chunk.texts):
                count = space.fitting(ends, start)
                if count:
                    held.append(chunk.slice(start, count))
                    start = space.take(ends, start, count)
                if start < len(chunk.texts) or not space.rows:
                    yield self._joined(first, held)
                    first += sum(len(part.texts) for part in held)
                    held, space = [], Space.of(next(known, None), rows, size)
        if held:
            yield self._joined(first, held)

    def _chunks(self, skip: int) -> Iterator[Chunk]:
        """Yield everything after the first `skip` rows; files that lie before them are not opened."""
        for file in self.files:
            count = self.format.count(file) if skip else None
            if count is not None and count <= skip:
                skip -= count
                continue
            for chunk in self._named(file, self.format.read(file, self.columns, skip)):
                if len(chunk.texts) <= skip:
                    skip -= len(chunk.texts)
                    continue
                yield chunk.slice(skip, len(chunk.texts))
                skip = 0

    def _named(self, file: File, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Say of each bad row which file it is in, where there are several."""
        if len(self.files) == 1:
            yield from chunks
            return
        at = 0
        for chunk in chunks:
            faults = {
                row: f"{file.label}, {'' if reason.startswith('line ') else f'row {at + row}: '}{reason}"
                for row, reason in chunk.faults.items()
            }
            at += len(chunk.texts)
            yield replace(chunk, faults=faults)

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
        place: a file, a folder (searched through), or a glob, as a path or an address; see `locations`. By
            their endings: Parquet, JSONL, CSV, TSV, Arrow, Feather, plain text, the line formats also
            compressed.
        text: name of the text column; `None` takes `text`, else the only column of text.
        id_: name of the id column; `None` numbers the rows.

    Raises:
        InvalidArgument: there is no such file, its ending is unknown, a column is missing, or ids of two
            files have no common type.
    """
    found = find(place)
    form = format_of(found.files)
    files = looked_at(found.files)
    columns = _columns(form, files, text, id_)
    name = files[0].name if len(files) == 1 else f"{len(files)} files of {shown(place)}"
    return Source(name, files, form, columns, str(place), found.notes)


def _columns(form: Format, files: Sequence[File], text: str | None, id_: str | None) -> Columns:
    """Return the columns by the first file that has any; those that say what they have all have these."""
    looks = ((file, form.look(file, text, id_)) for file in files)
    first, columns = next(((file, found) for file, found in looks if found is not None), (None, None))
    if columns is None:  # nothing at all
        return Columns(text or "text", id_, pa.int64() if id_ is None else pa.string())
    if isinstance(form, (Parquet, Arrow)) and id_ is not None:  # what is of lines is text by nature
        return surveyed(form, files, columns)
    if not isinstance(form, (Jsonl, PlainText)):
        for file in files:
            if file is not first:
                form.look(file, columns.text, columns.id)
    return columns


def format_of(files: Sequence[File]) -> Format:
    """Return how files are read by their endings.

    Raises:
        InvalidArgument: an ending is unknown, or they are of several formats.
    """
    kinds = {FORMATS.get(file.ending): file for file in reversed(files)}
    if None in kinds:
        raise InvalidArgument(
            f"{kinds[None].label}: embatch reads {ENDINGS}; rename or convert the file", field="IN"
        )
    if len(kinds) > 1:
        names = " and ".join(sorted(file.label for file in kinds.values()))
        raise InvalidArgument(f"{names} are of different formats: name one with a glob", field="IN")
    formats: dict[str | None, Format] = {
        "parquet": Parquet(),
        "arrow": Arrow(),
        "jsonl": Jsonl(),
        "csv": Csv(),
        "text": PlainText(),
    }
    return formats[next(iter(kinds))]
