"""What rows of an output are, whatever writes them: ids, embeddings in one or several sizes, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from embatch.dtypes import Dtype, quantize
from embatch.vectors import truncate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def sizes(dimensions: Sequence[int]) -> dict[str, int | None]:
    """Return dimensions by the suffix of their column; `None` where only the model knows them."""
    if len(dimensions) < 2:
        return {"": dimensions[0] if dimensions else None}
    return {f"_{size}": size for size in dimensions}


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of an output: `id`, an embedding for each number of dimensions, `error`.

    One number of dimensions is the column `embedding`, several are `embedding_256` and so on. int8 has a
    column `scale` (`scale_256`) beside each. An embedding is null exactly where there is an error.
    """

    ids: pa.DataType
    native: int
    """Dimensions of the vectors that are written."""
    dimensions: tuple[int, ...] = ()
    """Leading dimensions kept, re-normalised; `()` keeps all as they are."""
    dtype: Dtype = Dtype.FLOAT32

    @property
    def sizes(self) -> dict[str, int]:
        """Dimensions by the suffix of their column."""
        return {suffix: size or self.native for suffix, size in sizes(self.dimensions).items()}

    def schema(self, notes: Mapping[str, str]) -> pa.Schema:
        """Return the columns as Arrow, with what the file says of itself."""
        columns: list[pa.Field[Any]] = [pa.field("id", self.ids)]
        for suffix, size in self.sizes.items():
            value = pa.from_numpy_dtype(self.dtype.numpy)
            columns.append(pa.field(f"embedding{suffix}", pa.list_(value, self.dtype.width(size))))
            if self.dtype is Dtype.INT8:
                columns.append(pa.field(f"scale{suffix}", pa.float32()))
        columns.append(pa.field("error", pa.string()))
        return pa.schema(columns, {name.encode(): note.encode() for name, note in notes.items()})

    def forms(
        self, vectors: NDArray[np.float32]
    ) -> dict[str, tuple[NDArray[Any], NDArray[np.float32] | None]]:
        """Return the values and scales of vectors, float32 (n, native), by the suffix of their column."""
        return {suffix: quantize(truncate(vectors, size), self.dtype) for suffix, size in self.sizes.items()}

    def batch(
        self, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> pa.RecordBatch:
        """Return rows as the columns of `schema`."""
        failed = pa.array([error is not None for error in errors], pa.bool_())
        columns: list[Any] = [ids]
        for values, scales in self.forms(vectors).values():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=failed))
            if scales is not None:
                columns.append(pa.array(scales, mask=np.asarray(failed)))
        columns.append(pa.array(errors, pa.string()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema({}))


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """What a finished output is."""

    place: str
    bytes: int | None
    """`None` where it is no file."""


class Sink(Protocol):
    """An output under way."""

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """Add rows, in order. A database holds them durably on return, and repeating is safe there.

        Args:
            first: number of the first row in the whole output.
            ids: of the layout's type.
            vectors: float32 (n, native); anything where there is an error.
            errors: why a row has no embedding, `None` where it has one.
        """
        ...

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:
        """Put the output in place, durable on return.

        Args:
            rejected: under `OUT.rejected` instead.
            rows: of the whole output, so that a table can drop what is left of a longer earlier one; `None`
                leaves that.
        """
        ...

    def abandon(self) -> None:
        """Drop what is half written; a database keeps its blocks. Repeating is safe."""
        ...


@runtime_checkable
class DatabaseSink(Sink, Protocol):
    """An output that is written block by block, and holds what earlier calls wrote."""

    def holds(self, first: int, rows: int, failed: int) -> bool:
        """Return whether rows are there that were written before.

        Args:
            first: number of the first of them.
            rows: how many they are.
            failed: how many of them have an error.
        """
        ...


class Regrouped:
    """Rows cut anew into groups of one size, so that the same rows give the same bytes however they came."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[pa.RecordBatch] = []
        self._count = 0

    def add(self, batch: pa.RecordBatch) -> list[pa.Table]:
        """Take rows and return the groups that are full."""
        full = []
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, self._size - self._count)
            self._held.append(part)
            start, self._count = start + part.num_rows, self._count + part.num_rows
            if self._count == self._size:
                full += self.rest()
        return full

    def rest(self) -> list[pa.Table]:
        """Return what is held as the last group; nothing if there is none."""
        held, self._held, self._count = self._held, [], 0
        return [pa.Table.from_batches(held).combine_chunks()] if held else []
