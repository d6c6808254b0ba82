"""The texts of an Arrow column, in bounded memory: a value that stands many times is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embatch.runs.sources import lines
from embatch.runs.sources.format import CHUNK_BYTES, CHUNK_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def is_text(kind: Any) -> bool:
    """Return whether a column of this type can be read as texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):  # of a file without rows, or with nothing in the column
        return True
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


class Checked:
    """Refuses columns of which something leads out of what there is, whatever their values say.

    A text need not be UTF-8, nor a date a whole number of days. One is for one column of a file: a dictionary
    that comes with every batch is looked through once.
    """

    def __init__(self) -> None:
        self._dictionary: Any = None
        """Kept, so that its place in memory is nobody else's."""

    def check(self, column: Any) -> None:
        """Look through the column of a batch.

        Raises:
            ArrowException: something leads out, or it cannot be told.
        """
        if not pa.types.is_dictionary(column.type):
            _check(column)
            return
        if self._dictionary is None or _places(self._dictionary) != _places(column.dictionary):
            _check(column.dictionary)
            self._dictionary = column.dictionary
        column.indices.validate(full=True)
        pa.DictionaryArray.from_arrays(column.indices, pa.nulls(len(column.dictionary)), safe=True)


def _check(column: Any) -> None:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        column.view(_plain(column.type)).validate(full=True)


def _places(column: Any) -> tuple[object, ...]:
    """Return where a column lies in memory."""
    buffers = (None if buffer is None else (buffer.address, buffer.size) for buffer in column.buffers())
    return (column.type, column.offset, len(column), *buffers)


def _plain(kind: Any) -> Any:
    """Return a type that is laid out alike and takes every value."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type), kind.keys_sorted)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = kind.value_field.with_type(_plain(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(values, kind.list_size)
        return pa.list_(values) if pa.types.is_list(kind) else pa.large_list(values)
    return _plain_value(kind)


def _plain_value(kind: Any) -> Any:
    """Return bytes for texts and decimals, whole numbers for dates and times."""
    for text, plain in (
        (pa.string(), pa.binary()),
        (pa.large_string(), pa.large_binary()),
        (pa.string_view(), pa.binary_view()),
    ):
        if kind == text:
            return plain
    if pa.types.is_decimal(kind):
        return pa.binary(kind.byte_width)
    if pa.types.is_time(kind) or pa.types.is_date(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def pieces(batch: Any, name: str) -> Iterator[Any]:
    """Yield a batch in pieces of as many rows as are held at a time, by the texts in a column."""
    sizes = _sizes(batch.column(name))
    ends, start = np.cumsum(sizes), 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + CHUNK_BYTES, side="right"))
        end = min(max(end, start + 1), start + CHUNK_ROWS)
        yield batch.slice(start, end - start)
        start = end


def _sizes(column: Any) -> NDArray[np.int64]:
    """Return the bytes of each value of a column of texts, int64 (rows,); 0 for null."""
    values, rows = column, np.arange(len(column))
    valid = np.asarray(column.is_valid(), np.bool_)
    if pa.types.is_dictionary(column.type):
        values, rows = column.dictionary, np.asarray(column.indices.fill_null(0), np.int64)
    if not len(values) or pa.types.is_null(values.type):
        return np.zeros(len(column), np.int64)
    # Of the values that the rows have, and no others: a dictionary may have many more.
    rows, (_, places, *_) = rows + values.offset, values.buffers()
    if pa.types.is_string_view(values.type):
        found = np.frombuffer(places, np.int32)[::4][rows].astype(np.int64)
    else:
        ends = np.frombuffer(places, np.int64 if pa.types.is_large_string(values.type) else np.int32)
        found = ends[rows + 1].astype(np.int64) - ends[rows]
    return np.where(valid, found, 0)


def texts_of(column: Any) -> tuple[list[str | None], dict[int, str]]:
    """Return the texts of a column, and why those are missing that are."""
    if pa.types.is_dictionary(column.type):
        return _decoded(column)
    sizes = _sizes(column)
    if len(sizes) and sizes.max() > lines.LINE_BYTES:
        return _without_long(column, sizes)
    faults: dict[int, str] = {}
    try:
        texts: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:  # writers do not check: only now is it known, and not of which row
        texts = []
        for at, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                faults[at] = "not UTF-8"
    missing = {at: "the text is null" for at, text in enumerate(texts) if text is None}
    return texts, missing | faults


def _without_long(column: Any, sizes: NDArray[np.int64]) -> tuple[list[str | None], dict[int, str]]:
    """As `texts_of`, without making those that are over the limit."""
    texts, faults = list[str | None](), dict[int, str]()
    for at, size in enumerate(sizes.tolist()):
        if size > lines.LINE_BYTES:
            text: list[str | None] = [None]
            fault = {0: f"the text is over {lines.LINE_BYTES >> 20} MiB long"}
        else:
            text, fault = texts_of(column.slice(at, 1))
        texts += text
        if fault:
            faults[at] = fault[0]
    return texts, faults


def _decoded(column: Any) -> tuple[list[str | None], dict[int, str]]:
    """As `texts_of`, each value that the rows have once."""
    used = pc.unique(column.indices).drop_null()
    values, reasons = texts_of(column.dictionary.take(used))
    places = dict(zip(used.to_pylist(), range(len(values)), strict=True))
    of = [None if index is None else places[index] for index in column.indices.to_pylist()]
    texts = [None if place is None else values[place] for place in of]
    faults = {
        at: "the text is null" if place is None else reasons[place]
        for at, place in enumerate(of)
        if place is None or place in reasons
    }
    return texts, faults
