"""Parquet and Arrow: files that know their columns and the types of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from embatch.errors import InvalidArgument
from embatch.escapes import visible
from embatch.runs.sources.files import UNREADABLE
from embatch.runs.sources.format import Chunk, Columns, chosen
from embatch.runs.sources.groups import Groups
from embatch.runs.sources.id_columns import kept_ids, kept_type
from embatch.runs.sources.texts import Checked, is_text, pieces, texts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from embatch.runs.sources.files import File

_BUFFER: Final = 8 << 20
"""Bytes of a Parquet column read at once."""
_SKIPPED: Final = 1 << 20
"""Rows at once of those that are skipped."""


def _of_schema(file: File, schema: Any, text: str | None, id_: str | None) -> Columns:
    column = chosen(file, schema.names, [one.name for one in schema if is_text(one.type)], text, id_)
    for name in file.partitions.keys() - set(schema.names):
        schema = schema.append(pa.field(name, pa.string()))
    kind = schema.field(column).type
    if not is_text(kind):
        raise InvalidArgument(
            f"column {column!r} of {file.label} holds {visible(str(kind))}, not text", field="--text"
        )
    id_type = pa.int64() if id_ is None else kept_type(file, id_, schema.field(id_).type)
    return Columns(column, id_, id_type)


def _with_partitions(file: File, batch: Any, columns: Columns) -> Any:
    """Return a batch with those columns that the names of folders say."""
    said, names = file.partitions, batch.schema.names
    if all(name in names for name in _wanted(columns)):
        return batch
    found = {name: batch.column(at) for at, name in enumerate(names)}
    for name in _wanted(columns):
        if name not in found and name in said:
            found[name] = pa.array([said[name]], pa.string()).take(pa.array([0] * batch.num_rows, pa.int8()))
    return pa.RecordBatch.from_pydict(found)


def _pieces(file: File, batch: Any, columns: Columns) -> Iterator[Any]:
    """Yield the rows of a batch, some at a time. Raises InvalidArgument where it has not the columns."""
    batch = _with_partitions(file, batch, columns)
    for name in (columns.text, columns.id):
        if name is not None and batch.schema.names.count(name) != 1:
            several = name in batch.schema.names
            raise InvalidArgument(
                f"{file.label} has {'several columns' if several else 'no column'} {name!r}", field="IN"
            )
    column = batch.column(columns.text)
    if not is_text(column.type):  # the first file had it as text
        raise InvalidArgument(
            f"column {columns.text!r} of {file.label} holds {visible(str(column.type))}, not text",
            field="--text",
        )
    return pieces(batch, columns.text)


def _chunk(file: File, batch: Any, columns: Columns) -> Chunk:
    texts, faults = texts_of(batch.column(columns.text))
    if columns.id is None:
        return Chunk(None, texts, faults)
    found, bad = kept_ids(file, batch.column(columns.id), columns.id_type)
    faults = {**bad, **faults}
    texts = [None if at in bad else one for at, one in enumerate(texts)] if bad else texts
    return Chunk(found, texts, faults)


def _chunks(file: File, batches: Iterable[Any], columns: Columns, skip: int) -> Iterator[Chunk]:
    """Yield batches as chunks; where all of one is skipped, nothing is decoded."""
    for batch in batches:
        if batch.num_rows <= skip:
            yield from _nothing(columns, batch.num_rows)
        else:
            for piece in _pieces(file, batch, columns):
                yield _chunk(file, piece, columns)
        skip = max(0, skip - batch.num_rows)


def _wanted(columns: Columns) -> list[str]:
    # One column named twice would be read once.
    return list(dict.fromkeys([columns.text] if columns.id is None else [columns.text, columns.id]))


def _unreadable(file: File, what: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(f"{file.label} is not {what}: {visible(str(error))}", field="IN")


class Parquet:
    """Parquet files, one row group after the other."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`."""
        try:
            with file.open_anywhere() as stored:
                return _of_schema(file, pq.read_schema(stored), text, id_)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Parquet file", error) from None

    def count(self, file: File) -> int | None:
        """As `Format.count`: it stands at the end of the file."""
        try:
            with file.open_anywhere() as stored:
                return int(pq.read_metadata(stored).num_rows)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Parquet file", error) from None

    def lines(self, file: File, columns: Columns) -> None:  # noqa: ARG002
        """As `Format.lines`."""
        return

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:
        """As `Format.read`: row groups that are skipped whole are not read."""
        try:
            with (
                file.open_anywhere() as stored,
                # Read ahead, or without a buffer, a row group would be held with all of its column.
                pq.ParquetFile(stored, buffer_size=_BUFFER, pre_buffer=False) as parquet,
            ):
                names = set(parquet.schema_arrow.names)
                groups = Groups(
                    parquet, stored, [name for name in _wanted(columns) if name in names], _BUFFER
                )
                counts, begin = groups.rows(), 0
                while begin < len(counts) and counts[begin] <= skip:
                    yield from _nothing(columns, counts[begin])
                    skip, begin = skip - counts[begin], begin + 1
                yield from _chunks(file, groups.batches(begin), columns, skip)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Parquet file", error) from None


def _nothing(columns: Columns, count: int) -> Iterator[Chunk]:
    """Yield rows that are skipped."""
    kind: Any = columns.id_type
    for start in range(0, count, _SKIPPED):
        rows = min(_SKIPPED, count - start)
        yield Chunk(None if columns.id is None else pa.nulls(rows, kind), [None] * rows, {})


class Arrow:
    """Arrow IPC files and streams, and Feather, which is one of them."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns:
        """As `Format.look`."""
        try:
            with file.open_anywhere() as stored:
                return _of_schema(file, _ipc(stored).schema, text, id_)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Arrow file", error) from None

    def count(self, file: File) -> int | None:
        """As `Format.count`: a file says it batch by batch, a stream does not."""
        try:
            with file.open_anywhere() as stored:
                reader = _ipc(stored)
                return int(reader.count_rows()) if _has_places(reader) else None
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Arrow file", error) from None

    def lines(self, file: File, columns: Columns) -> None:  # noqa: ARG002
        """As `Format.lines`."""
        return

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:
        """As `Format.read`: of the columns that are wanted alone."""
        try:
            with file.open_anywhere() as stored:
                names = _ipc(stored).schema.names
                stored.seek(0)
                reader = _ipc(stored, [at for at, name in enumerate(names) if name in _wanted(columns)])
                yield from _chunks(file, _batches(reader), columns, skip)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Arrow file", error) from None


def _ipc(stored: Any, fields: Sequence[int] = ()) -> Any:
    """Return a reader of some columns, of all where none is named; data sets on disk are streams."""
    options = pa.ipc.IpcReadOptions(included_fields=list(fields))
    try:
        return pa.ipc.open_file(stored, options=options)
    except pa.ArrowInvalid:
        stored.seek(0)
        return pa.ipc.open_stream(stored, options=options)


def _has_places(reader: Any) -> bool:
    return isinstance(reader, pa.ipc.RecordBatchFileReader)


def _batches(reader: Any) -> Iterator[Any]:
    places = range(reader.num_record_batches) if _has_places(reader) else ()
    checks = [Checked() for _ in reader.schema]
    for batch in (reader.get_batch(at) for at in places) if _has_places(reader) else reader:
        for check, column in zip(checks, batch.columns, strict=True):
            check.check(column)  # what leads out of the file would be read, and end the process
        yield batch
