"""Parquet and Arrow: files that know their columns and the types of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from embatch.errors import InvalidArgument
from embatch.runs.sources.files import UNREADABLE
from embatch.runs.sources.format import CHUNK_ROWS, Chunk, Columns, chosen
from embatch.runs.sources.id_columns import kept_ids, kept_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from embatch.runs.sources.files import File

_BUFFER: Final = 8 << 20
"""Bytes of a Parquet column read at once."""


def is_text(kind: Any) -> bool:
    """Return whether a column of this type can be read as texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):  # of a file without rows, or with nothing in the column
        return True
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _of_schema(file: File, schema: Any, text: str | None, id_: str | None) -> Columns:
    column = chosen(file, schema.names, [one.name for one in schema if is_text(one.type)], text, id_)
    kind = schema.field(column).type
    if not is_text(kind):
        raise InvalidArgument(f"column {column!r} of {file.name} holds {kind}, not text", field="--text")
    id_type = pa.int64() if id_ is None else kept_type(file, id_, schema.field(id_).type)
    return Columns(column, id_, id_type)


def _chunk(file: File, batch: Any, columns: Columns) -> Chunk:
    for name in (columns.text, columns.id):
        if name is not None and batch.schema.names.count(name) != 1:
            several = name in batch.schema.names
            raise InvalidArgument(
                f"{file.name} has {'several columns' if several else 'no column'} {name!r}", field="IN"
            )
    column = batch.column(columns.text)
    if not is_text(column.type):  # the first file had it as text
        raise InvalidArgument(
            f"column {columns.text!r} of {file.name} holds {column.type}, not text", field="--text"
        )
    texts, faults = _texts(column)
    if columns.id is None:
        return Chunk(None, texts, faults)
    found, bad = kept_ids(file, batch.column(columns.id), columns.id_type)
    faults = {**bad, **faults}
    texts = [None if at in bad else one for at, one in enumerate(texts)] if bad else texts
    return Chunk(found, texts, faults)


def _texts(column: Any) -> tuple[list[str | None], dict[int, str]]:
    """Return the texts of a column, and why those are missing that are."""
    faults: dict[int, str] = {}
    try:
        texts: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:  # writers do not check: only now is it known, and not of which row
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        texts = []
        for at, value in enumerate(plain.cast(pa.large_binary()).to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                faults[at] = "not UTF-8"
    missing = {at: "the text is null" for at, text in enumerate(texts) if text is None}
    return texts, missing | faults


def _chunks(file: File, batches: Iterable[Any], columns: Columns, skip: int) -> Iterator[Chunk]:
    """Yield batches as chunks; where all of one is skipped, nothing is decoded."""
    for batch in batches:
        count = batch.num_rows
        yield (
            Chunk(_nothing(columns, count), [None] * count, {})
            if count <= skip
            else _chunk(file, batch, columns)
        )
        skip = max(0, skip - count)


def _wanted(columns: Columns) -> list[str]:
    # One column named twice would be read once.
    return list(dict.fromkeys([columns.text] if columns.id is None else [columns.text, columns.id]))


def _unreadable(file: File, what: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(f"{file.name} is not {what}: {error}", field="IN")


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

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:
        """As `Format.read`: row groups that are skipped whole are not read."""
        try:
            with (
                file.open_anywhere() as stored,
                # Read ahead, or without a buffer, a row group would be held with all of its column.
                pq.ParquetFile(stored, buffer_size=_BUFFER, pre_buffer=False) as parquet,
            ):
                groups = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
                begin = 0
                while begin < len(groups) and groups[begin] <= skip:
                    skip -= groups[begin]
                    yield Chunk(_nothing(columns, groups[begin]), [None] * groups[begin], {})
                    begin += 1
                names = set(parquet.schema_arrow.names)
                batches = parquet.iter_batches(
                    CHUNK_ROWS,
                    row_groups=list(range(begin, len(groups))),
                    columns=[name for name in _wanted(columns) if name in names],
                )
                yield from _chunks(file, batches, columns, skip)
        except UNREADABLE as error:
            raise _unreadable(file, "a readable Parquet file", error) from None


def _nothing(columns: Columns, count: int) -> pa.Array[Any] | None:
    kind: Any = columns.id_type
    return None if columns.id is None else pa.nulls(count, kind)


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
    for batch in (reader.get_batch(at) for at in places) if _has_places(reader) else reader:
        for begin in range(0, batch.num_rows, CHUNK_ROWS):
            yield batch.slice(begin, CHUNK_ROWS)
