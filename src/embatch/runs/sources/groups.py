"""How many rows of a Parquet file are decoded at once: a few megabytes of them, whatever was made of them.

A value that stands many times stands once in the file, in a dictionary, and is written out for every row when
rows are decoded: a file of some hundred bytes may hold gigabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embatch.runs.sources.format import CHUNK_BYTES, CHUNK_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FEW: Final = 4
"""Times `CHUNK_BYTES` that the rows of a group may take without a look at its dictionaries."""
_RUN_ROWS: Final = 64 * 1024
"""Rows of small groups that are read in one go."""
_OF_BYTES: Final = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def _within(path: str, names: Sequence[str]) -> bool:
    """Return whether a column of a file is one of these, or a part of one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


class Groups:
    """The row groups of an open Parquet file, of which some columns are read.

    Args:
        parquet: the file, without reading ahead.
        stored: where it is read from.
        names: the columns.
        buffer: bytes of a column read at once.
    """

    def __init__(self, parquet: pq.ParquetFile, stored: Any, names: Sequence[str], buffer: int) -> None:
        self._parquet, self._stored, self._names, self._buffer = parquet, stored, list(names), buffer
        metadata: Any = parquet.metadata
        self._metadata = metadata
        paths = [parquet.schema.column(at).path for at in range(metadata.num_columns)]
        self._columns = [at for at, path in enumerate(paths) if _within(path, self._names)]

    def rows(self) -> list[int]:
        """Return how many rows each group has."""
        return [self._metadata.row_group(at).num_rows for at in range(self._metadata.num_row_groups)]

    def batches(self, begin: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all groups from one on."""
        run, size, rows = list[int](), 0, 0
        for group in range(begin, self._metadata.num_row_groups):
            at_once = self._at_once(group)
            if run and (at_once != size or rows >= _RUN_ROWS):
                yield from self._decoded(run, size)
                run, rows = [], 0
            run.append(group)
            size, rows = at_once, rows + self._metadata.row_group(group).num_rows
        yield from self._decoded(run, size)

    def _decoded(self, groups: list[int], size: int) -> Iterator[pa.RecordBatch]:
        if groups:
            yield from self._parquet.iter_batches(size, row_groups=groups, columns=self._names)

    def _at_once(self, group: int) -> int:
        """Return how many rows are decoded at once: `CHUNK_ROWS`, or fewer where those would be too large."""
        said = self._metadata.row_group(group)
        rows = max(1, said.num_rows)
        chunks = [said.column(at) for at in self._columns]
        stored = sum(chunk.total_uncompressed_size for chunk in chunks)
        widest = stored / rows  # on average, of what is written out in full
        if any(chunk.has_dictionary_page for chunk in chunks) and rows * stored > _FEW * CHUNK_BYTES:
            widest = max(widest, self._widest(group))
        fitting = max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(1.0, widest))))
        return 1 << (fitting.bit_length() - 1)  # a power of two: groups alike are read in one go

    def _widest(self, group: int) -> int:
        """Return the bytes of the longest values in the dictionaries of a group, one of each column."""
        names: Any = self._names
        with pq.ParquetFile(
            self._stored,
            metadata=self._parquet.metadata,
            read_dictionary=names,
            buffer_size=self._buffer,
            pre_buffer=False,
        ) as parquet:
            first = next(parquet.iter_batches(1, row_groups=[group], columns=self._names), None)
        widest = 0
        for column in () if first is None else first.columns:
            values: Any = column.dictionary if isinstance(column, pa.DictionaryArray) else column
            if any(of(values.type) for of in _OF_BYTES):
                widest += pc.max(pc.binary_length(values)).as_py() or 0
        return widest
