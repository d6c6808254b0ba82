"""Where a run writes to: one Parquet file of id, embedding and error, in input order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class ParquetSink:
    """Writes rows to `OUT.partial` beside the output and puts it in place at the end, whole or not at all.

    Columns: `id` (the input's type), `embedding` (fixed-size list of float32, null where the row failed),
    `error` (null where it did not). zstd with byte-stream split: floats of like size compress by their bytes.
    """

    def __init__(self, path: Path, ids: pa.DataType, dimensions: int, notes: Mapping[str, str]) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        columns: list[pa.Field[Any]] = [
            pa.field("id", ids),
            pa.field("embedding", pa.list_(pa.float32(), dimensions)),
            pa.field("error", pa.string()),
        ]
        self._dimensions = dimensions
        self._schema = pa.schema(
            columns, metadata={name.encode(): note.encode() for name, note in notes.items()}
        )
        self._writer = pq.ParquetWriter(
            self._partial,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=["embedding.list.element"],
        )

    def write(self, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]) -> None:
        """Append rows: vectors float32 (n, dimensions); a row with an error gets a null embedding."""
        failed = np.array([error is not None for error in errors], np.bool_)
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self._dimensions, mask=pa.array(failed))
        self._writer.write_batch(
            pa.RecordBatch.from_arrays([ids, column, pa.array(errors, pa.string())], schema=self._schema)
        )

    def finish(self) -> int:
        """Put the output in place, durable on return; return its size in bytes."""
        self._writer.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._path.stat().st_size

    def abandon(self) -> None:
        """Drop what was written so far; the work behind it stays in the service."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)
