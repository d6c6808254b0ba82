"""The Arrow stream of results, as an embatch service sends it, read by the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from embatch import jsontext
from embatch.errors import Code, DataLoss, InvalidArgument, Reason, RequestError, printable
from embatch.wire.arrow import ipc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from embatch.vectors import Vectors


_DAMAGED: Final = (
    *(pa.ArrowException, KeyError, OSError, StopIteration),  # damage that Arrow sees
    *(InvalidArgument, ValueError, TypeError, AttributeError),  # columns of other types than ours
)


@dataclass(frozen=True, repr=False, slots=True)
class ResultRows:
    """Consecutive requests and what became of them, row by row."""

    index: NDArray[np.int64]
    keys: list[str | None]
    metadata: list[Mapping[str, Any] | None]
    values: Vectors
    """float32: all numbers, one embedding after the other."""
    widths: NDArray[np.int32]
    """Dimensions of each embedding; 0 where the request failed."""
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: dict[int, RequestError]
    """By row of this part."""


def read_parts(content: bytes | bytearray) -> Iterator[ResultRows]:
    """Yield the parts of a complete stream; numbers are not copied.

    Raises:
        DataLoss: the stream is damaged or was cut off, or would take more room than its bytes do.
    """
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(content))
        schema = pa.ipc.read_schema(reader.read_next_message())
        for message in reader:
            if ipc.is_compressed(message.metadata.to_pybytes()):
                raise DataLoss("the stream of results is compressed, which no embatch service does")
            batch = pa.ipc.read_record_batch(message, schema)
            # Its offsets are the sender's: one that points outside would be followed.
            batch.validate(full=True)
            yield _part(batch)
    except _DAMAGED as error:
        raise DataLoss(f"the stream of results is damaged: {type(error).__name__}") from error


def _part(batch: Any) -> ResultRows:
    embeddings = batch.column("embedding")
    widths = embeddings.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
    # `flatten` leaves out what belongs to nulls, which a fixed-size list has room for as well.
    values = embeddings.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    codes, reasons, words = (_values(batch, f"error_{name}") for name in ("code", "reason", "message"))
    return ResultRows(
        batch.column("index").to_numpy(),
        _values(batch, "key"),
        [None if text is None else jsontext.loads(text) for text in _values(batch, "metadata")],
        values,
        widths,
        batch.column("tokens").fill_null(0).to_numpy(zero_copy_only=False),
        batch.column("truncated").fill_null(False).to_numpy(zero_copy_only=False),  # noqa: FBT003  (Arrow's)
        {
            row: RequestError(
                Code.of_number(code),
                Reason(reasons[row]) if reasons[row] in Reason.__members__ else None,
                printable(words[row] or ""),
            )
            for row, code in enumerate(codes)
            if code is not None
        },
    )


def _values(batch: Any, name: str) -> list[Any]:
    column = batch.column(name)
    # Most columns of most batches are empty, and a list of nothing is made in no time.
    return [None] * len(column) if column.null_count == len(column) else list(column.to_pylist())
