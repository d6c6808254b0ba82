"""Input files of requests as an Arrow stream.

An input is bounded before it is decoded (`ipc`) and validated fully before a value of it is used: Arrow's
offsets are the sender's, and a bad one would read outside the buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.shard import GIVEN, completed
from embatch.wire.arrow import ipc

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Sequence


_BESIDE: Final = 64
"""Bytes that a column of one text may have beside it."""


def read_batches(file: io.BufferedIOBase, text_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the requests of an input stream, columns as in `shard.GIVEN`, in pieces and in bounded memory.

    In a piece with a text that is not UTF-8 the texts are bytes: `rows_of` reads them.

    Args:
        file: the bytes; read once, from where they stand.
        text_bytes: what the longest good text has; of a text that makes a huge request of its own, only this
            much and a little more is said.

    Raises:
        InvalidArgument: not an Arrow stream, a column that is missing, unknown, there twice or of another
            type, a record batch that is too large, or offsets that do not hold.
    """
    schema = _schema(ipc.read_columns(file))
    for message in ipc.record_batches(file):
        try:
            batch = _decoded(message, schema)
        except (pa.ArrowException, OSError) as error:  # what does not decompress is an OSError
            raise ipc.unreadable(str(error)[:200]) from None
        given = pa.schema([batch.schema.field(one.name) if one.name == "text" else one for one in GIVEN])
        for piece in ipc.pieces(batch):
            yield _cut(completed(piece, given), max(text_bytes, ipc.PIECE_BYTES))


def _decoded(message: bytearray, schema: pa.Schema) -> pa.RecordBatch:
    """Return a record batch, validated; `text` is a column of bytes where one of them is not UTF-8."""
    batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        at = schema.get_field_index("text")
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema.set(at, pa.field("text", pa.binary())))
        batch.validate(full=True)  # of the rest, all is as strict as before
    return batch


def _schema(columns: Sequence[ipc.Column]) -> pa.Schema:
    """Return the schema of an input's columns: made anew, so that Arrow need not believe the sender's."""
    names = [column.name for column in columns]
    if "text" not in names:
        raise InvalidArgument("the Arrow stream has no column text", field=ipc.FIELD)
    for at, column in enumerate(columns):
        if column.name not in GIVEN.names:
            known = ", ".join(GIVEN.names)
            raise InvalidArgument(
                f"unknown column {column.name[:64]!r}: the columns are {known}", field=ipc.FIELD
            )
        if column.name in names[:at]:
            raise InvalidArgument(f"there are two columns {column.name}", field=ipc.FIELD)
        if column.type != (expected := str(GIVEN.field(column.name).type)):
            raise InvalidArgument(f"column {column.name} is {column.type}, not {expected}", field=ipc.FIELD)
    return pa.schema([GIVEN.field(name) for name in names])


def _cut(piece: pa.RecordBatch, most: int) -> pa.RecordBatch:
    """Return a piece in which no text has more than `most + 1` bytes: it fails for its length all the same.

    Only a request that is a piece of its own can have one, and as a value of Python it may take four times
    its bytes.
    """
    if piece.num_rows != 1 or piece.nbytes <= most:
        return piece
    texts = [
        one if one.nbytes <= most + _BESIDE else pa.array(["x" * (most + 1)]).cast(one.type)
        for one in piece.columns
    ]
    return pa.RecordBatch.from_arrays(texts, schema=piece.schema)
