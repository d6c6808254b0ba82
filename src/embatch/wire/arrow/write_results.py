"""Results as an Arrow stream, with their vectors in the form a reader asks for.

One stream of record batches, in order:

    index int64 · key · metadata (JSON text) · embedding · tokens int32 · truncated bool ·
    error_code int32 · error_reason · error_message

`embedding` is a fixed-size list: of float32 or float16; for `int8` of int8 with a column `scale` (value =
int8 * scale); for `bits` of uint8, eight signs a byte, most significant first, 1 where the number is above 0.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embatch.dtypes import Dtype, quantize
from embatch.vectors import truncate

if TYPE_CHECKING:
    from collections.abc import Iterator


def results_stream(
    parts: Iterator[pa.RecordBatch], native: int, dimensions: int | None, dtype: str
) -> Iterator[bytes]:
    """Yield a results stream piece by piece, one shard in memory at a time.

    Args:
        parts: as `results.Results.parts` of the service.
        native: dimensions of the vectors in them.
        dimensions: leading dimensions wanted of every vector, normalised again; `None` for native.
        dtype: one of `Dtype`.
    """
    size = dimensions or native
    schema = _result_schema(size, dtype)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        for part in parts:
            writer.write_batch(_viewed(part, size, dtype, schema))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _result_schema(size: int, dtype: str) -> pa.Schema:
    form = Dtype(dtype)
    kind = pa.list_(pa.from_numpy_dtype(form.numpy), form.width(size))
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
    if form is Dtype.INT8:
        columns.append(pa.field("scale", pa.float32()))
    return pa.schema(columns)


def _viewed(part: pa.RecordBatch, size: int, dtype: str, schema: pa.Schema) -> pa.RecordBatch:
    embedding: Any = part.column("embedding")
    native = embedding.type.list_size
    vectors = truncate(np.asarray(embedding.values, np.float32).reshape(-1, native), min(size, native))
    missing = pa.array(np.asarray(embedding.is_null()))
    columns = {name: part.column(name) for name in schema.names if name not in ("embedding", "scale")}
    flat, scales = quantize(vectors, Dtype(dtype))
    if scales is not None:
        columns["scale"] = pa.array(scales)
    width = flat.shape[1]
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width, mask=missing)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
