"""Where a run reads from: Parquet, JSONL or CSV, one block of rows at a time, in bounded memory.

A row that cannot be read (a bad line, a text that is not text) stays in its place with a reason: it fails
alone. Only what makes every row unreadable, such as a column that is not there, is an error of the run.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK_ROWS: Final = 20_000
"""Rows of one batch of a run: some minutes of work on a laptop, a few tens of MB of results."""

Block = Any  # pyarrow's stubs do not parametrise RecordBatch the same way in all versions


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of the input, in its order."""

    first: int
    """0-based row number of the first row."""
    ids: pa.Array[Any]
    """The id column, or the row numbers where none was named."""
    texts: list[str | None]
    """`None` where the row cannot be read; then `faults` says why."""
    faults: dict[int, str]
    """Reason by position in this block."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows with a text column and perhaps an id column."""

    path: Path
    text: str
    id: str | None
    read: Callable[[Source, int], Iterator[Rows]]

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Rows]:
        """Yield the rows in blocks of at most `rows`."""
        return self.read(self, rows)


def open_source(path: Path, text: str | None, id_: str | None) -> Source:
    """Return the source for a path by its ending; the first look at it finds a missing column.

    Args:
        path: a `.parquet`, `.jsonl`/`.ndjson` or `.csv` file.
        text: name of the text column; `None` takes `text`.
        id_: name of the id column; `None` numbers the rows.

    Raises:
        InvalidArgument: the file or a column is missing, or the ending is unknown.
    """
    if not path.is_file():
        raise InvalidArgument(f"{path} is not a file", field="IN")
    readers = {".parquet": _parquet, ".pq": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgument(
            f"{path.name}: embatch reads {', '.join(sorted(readers))}; rename or convert the file", field="IN"
        )
    return Source(path, text or "text", id_, reader)


def _parquet(source: Source, rows: int) -> Iterator[Rows]:
    try:
        file = pq.ParquetFile(source.path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidArgument(
            f"{source.path.name} is not a readable Parquet file: {error}", field="IN"
        ) from None
    with file:
        _require(source, file.schema_arrow.names)
        columns = [source.text] if source.id is None else [source.text, source.id]
        # One column named twice would be read once.
        yield from _from_blocks(source, file.iter_batches(rows, columns=list(dict.fromkeys(columns))))


def _csv(source: Source, rows: int) -> Iterator[Rows]:
    try:
        with source.path.open(encoding="utf-8-sig") as file:
            head = file.readline(1 << 20)
        names = pacsv.read_csv(io.BytesIO(head.encode())).schema.names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"{source.path.name} is not readable CSV in UTF-8: {error}", field="IN"
        ) from None
    _require(source, names)
    wanted = [source.text] if source.id is None else [source.text, source.id]
    reader = pacsv.open_csv(
        source.path,
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            include_columns=list(dict.fromkeys(wanted)), column_types=dict.fromkeys(wanted, pa.string())
        ),
    )
    try:
        yield from _from_blocks(source, _rechunk(reader, rows))
    except pa.ArrowInvalid as error:
        raise InvalidArgument(f"{source.path.name}: {error}", field="IN") from None


def _rechunk(reader: Any, rows: int) -> Iterator[Block]:
    """Regroup blocks of whatever size into blocks of exactly `rows`, so that a run cuts the same batches."""
    held: list[Block] = []
    count = 0
    for block in reader:
        start = 0
        while block.num_rows - start:
            part = block.slice(start, rows - count)
            held.append(part)
            count, start = count + part.num_rows, start + part.num_rows
            if count == rows:
                yield from pa.Table.from_batches(held).combine_chunks().to_batches()
                held, count = [], 0
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _from_blocks(source: Source, blocks: Iterator[Block]) -> Iterator[Rows]:
    first = 0
    for block in blocks:
        column = block.column(source.text)
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            texts = column.to_pylist()
        else:
            raise InvalidArgument(f"column {source.text!r} holds {kind}, not text", field="--text")
        faults = {at: "the text is null" for at, text in enumerate(texts) if text is None}
        ids = (
            block.column(source.id)
            if source.id
            else pa.array(range(first, first + block.num_rows), pa.int64())
        )
        yield Rows(first, ids, texts, faults)
        first += block.num_rows


def _jsonl(source: Source, rows: int) -> Iterator[Rows]:
    first = 0
    ids: list[str | int | None] = []
    texts: list[str | None] = []
    faults: dict[int, str] = {}
    seen: set[str] = set()
    with source.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record, fault = _record(line.lstrip(b"\xef\xbb\xbf") if number == 1 else line)
            text = record.get(source.text)
            if fault is None and not isinstance(text, str):
                fault = f"no text in {source.text!r}"
            if fault is not None:
                faults[len(texts)] = f"line {number}: {fault}"
            seen.update(record)
            texts.append(text if fault is None and isinstance(text, str) else None)
            ids.append(_id(record, source.id, first + len(ids)))
            if len(texts) == rows:
                yield Rows(first, pa.array(ids, pa.string() if source.id else pa.int64()), texts, faults)
                first, ids, texts, faults = first + rows, [], [], {}
    if source.text not in seen or (source.id is not None and source.id not in seen):
        _require(source, sorted(seen))
    if texts:
        yield Rows(first, pa.array(ids, pa.string() if source.id else pa.int64()), texts, faults)


def _record(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg}"
    return (record, None) if isinstance(record, dict) else ({}, "not a JSON object")


def _id(record: dict[str, Any], name: str | None, number: int) -> str | int | None:
    if name is None:
        return number
    value = record.get(name)
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _require(source: Source, names: list[str]) -> None:
    for option, name in (("--text", source.text), ("--id", source.id)):
        if name is not None and name not in names:
            raise InvalidArgument(
                f"{source.path.name} has no column {name!r}; it has {', '.join(names) or 'none'}",
                field=option,
            )
