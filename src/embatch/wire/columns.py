"""Our Arrow streams: input files of requests, and results with their vectors in the form a reader asks for.

An input is validated fully before a value of it is used: Arrow's offsets are the sender's, and a bad one
would read outside the buffer. Results are one stream of record batches, in order:

    index int64 · key · metadata (JSON text) · embedding · tokens int32 · truncated bool ·
    error_code int32 · error_reason · error_message

`embedding` is a fixed-size list: of float32 or float16; for `int8` of int8 with a column `scale` (value =
int8 * scale); for `bits` of uint8, eight signs a byte, most significant first, 1 where the number is above 0.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import numpy as np
import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.numbers import Numbers, narrowed
from embatch.shard import GIVEN, completed
from embatch.vectors import truncate

if TYPE_CHECKING:
    from collections.abc import Iterator


MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
NUMBERS: Final = tuple(Numbers)
_FIELD: Final = "batch.inputConfig.fileName"


def read_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Yield the requests of an input stream, columns as in `shard.GIVEN`, a record batch at a time.

    Raises:
        InvalidArgument: not an Arrow stream, a column that is missing, unknown or of another type, offsets
            that do not hold, or metadata that is no JSON object.
    """
    try:
        with pa.ipc.open_stream(pa.PythonFile(cast("io.IOBase", file), mode="r")) as reader:
            _check(reader.schema)
            for batch in reader:
                batch.validate(full=True)
                given = completed(batch, GIVEN)
                if not all(map(_is_object, given.column("metadata").drop_null().to_pylist())):
                    raise InvalidArgument(
                        "column metadata holds text that is not a JSON object", field=_FIELD
                    )
                yield given
    except (pa.ArrowException, OSError) as error:  # a torn stream is an OSError
        raise InvalidArgument(
            f"the file is not a readable Arrow stream: {str(error)[:200]}", field=_FIELD
        ) from None


def _check(schema: pa.Schema) -> None:
    if "text" not in schema.names:
        raise InvalidArgument("the Arrow stream has no column text", field=_FIELD)
    for column in schema:
        if column.name not in GIVEN.names:
            known = ", ".join(GIVEN.names)
            raise InvalidArgument(
                f"unknown column {column.name[:64]!r}: the columns are {known}", field=_FIELD
            )
        if column.type != (expected := GIVEN.field(column.name).type):
            raise InvalidArgument(f"column {column.name} is {column.type}, not {expected}", field=_FIELD)


def _is_object(text: Any) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


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
