"""Our Arrow streams: input files of requests, and results with their vectors in the form a reader asks for.

An input is bounded before it is decoded (`messages`) and validated fully before a value of it is used:
Arrow's offsets are the sender's, and a bad one would read outside the buffer. Results are one stream of
record batches, in order:

    index int64 · key · metadata (JSON text) · embedding · tokens int32 · truncated bool ·
    error_code int32 · error_reason · error_message

`embedding` is a fixed-size list: of float32 or float16; for `int8` of int8 with a column `scale` (value =
int8 * scale); for `bits` of uint8, eight signs a byte, most significant first, 1 where the number is above 0.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.numbers import Numbers, narrowed
from embatch.shard import GIVEN, completed
from embatch.vectors import truncate
from embatch.wire import messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
NUMBERS: Final = tuple(Numbers)
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
    schema = _schema(messages.read_columns(file))
    for message in messages.record_batches(file):
        try:
            batch = _decoded(message, schema)
        except (pa.ArrowException, OSError) as error:  # what does not decompress is an OSError
            raise messages.unreadable(str(error)[:200]) from None
        given = pa.schema([batch.schema.field(one.name) if one.name == "text" else one for one in GIVEN])
        for piece in messages.pieces(batch):
            yield _cut(completed(piece, given), max(text_bytes, messages.PIECE_BYTES))


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


def _schema(columns: Sequence[messages.Column]) -> pa.Schema:
    """Return the schema of an input's columns: made anew, so that Arrow need not believe the sender's."""
    names = [column.name for column in columns]
    if "text" not in names:
        raise InvalidArgument("the Arrow stream has no column text", field=messages.FIELD)
    for at, column in enumerate(columns):
        if column.name not in GIVEN.names:
            known = ", ".join(GIVEN.names)
            raise InvalidArgument(
                f"unknown column {column.name[:64]!r}: the columns are {known}", field=messages.FIELD
            )
        if column.name in names[:at]:
            raise InvalidArgument(f"there are two columns {column.name}", field=messages.FIELD)
        if column.type != (expected := str(GIVEN.field(column.name).type)):
            raise InvalidArgument(
                f"column {column.name} is {column.type}, not {expected}", field=messages.FIELD
            )
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


def results_stream(
    parts: Iterator[pa.RecordBatch], native: int, dimensions: int | None, numbers: str
) -> Iterator[bytes]:
    """Yield a results stream piece by piece, one shard in memory at a time.

    Args:
        parts: as `reading.Results.parts`.
        native: dimensions of the vectors in them.
        dimensions: leading dimensions wanted of every vector, normalised again; `None` for native.
        numbers: one of `NUMBERS`.
    """
    size = dimensions or native
    schema = _result_schema(size, numbers)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        for part in parts:
            writer.write_batch(_viewed(part, size, numbers, schema))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _result_schema(size: int, numbers: str) -> pa.Schema:
    form = Numbers(numbers)
    kind = pa.list_(pa.from_numpy_dtype(form.dtype), form.width(size))
    columns: list[pa.Field[Any]] = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("embedding", kind),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("error_code", pa.int32()),
        pa.field("error_reason", pa.string()),
        pa.field("error_message", pa.string()),
    ]
    if form is Numbers.INT8:
        columns.append(pa.field("scale", pa.float32()))
    return pa.schema(columns)


def _viewed(part: pa.RecordBatch, size: int, numbers: str, schema: pa.Schema) -> pa.RecordBatch:
    embedding: Any = part.column("embedding")
    native = embedding.type.list_size
    vectors = truncate(np.asarray(embedding.values, np.float32).reshape(-1, native), min(size, native))
    missing = pa.array(np.asarray(embedding.is_null()))
    columns = {name: part.column(name) for name in schema.names if name not in ("embedding", "scale")}
    flat, scales = narrowed(vectors, Numbers(numbers))
    if scales is not None:
        columns["scale"] = pa.array(scales)
    width = flat.shape[1]
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width, mask=missing)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
