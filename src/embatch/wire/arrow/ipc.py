"""An Arrow stream message by message: what each would take is known before any of it is decoded.

Arrow takes its sender's word for memory: for the length of a body, for the size that a compressed buffer will
have, for a schema in which one long name stands for a million columns. So names, types and sizes are read
here, and only a record batch that stays within bounds goes on to Arrow.

    stream  = schema · record batches · a length of 0, or the end of the file
    message = FFFFFFFF · int32 length of metadata · metadata · body
    metadata: a flatbuffer of Arrow's Message.fbs; its tables are read by the numbers of their fields
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase

    import pyarrow as pa

FIELD: Final = "input_file"
BATCH_BYTES: Final = 128 << 20
"""Most bytes of a record batch as it is sent, and again as it is decoded: a reader has room for both."""
PIECE_BYTES: Final = 8 << 20
_PIECE_REQUESTS: Final = 8192
_SCHEMA_BYTES: Final = 1 << 20
"""Most metadata of the schema: some writers keep notes there, of which nothing is read."""
_METADATA_BYTES: Final = 16 << 10
"""Most metadata of a record batch: some hundred bytes say where the buffers of six columns are."""
_MOST_COLUMNS: Final = 64
_CONTINUATION: Final = -1

_V4, _V5 = 3, 4
_SCHEMA, _RECORD_BATCH = 1, 3
_INT: Final = 2
_TYPES: Final = (
    *("none", "null", "int", "float", "binary", "string", "bool", "decimal", "date", "time", "timestamp"),
    *("interval", "list", "struct", "union", "fixed_size_binary", "fixed_size_list", "map", "duration"),
    *("large_binary", "large_string", "large_list", "run_end_encoded", "binary_view", "string_view"),
)


class Column(NamedTuple):
    """A column as the schema has it."""

    name: str
    type: str
    """As Arrow spells it, such as `string` or `int32`."""


def read_columns(file: BufferedIOBase) -> list[Column]:
    """Read the schema, with which a stream begins.

    Raises:
        InvalidArgument: this is no Arrow stream, or one of a kind that is not taken.
    """
    metadata = _metadata(file, _SCHEMA_BYTES)
    try:
        schema = _header(metadata or b"", _SCHEMA)
        if schema.number(0, "<h"):
            raise unreadable("it is big-endian")
        fields = schema.tables(1)
        if len(fields) > _MOST_COLUMNS:
            raise unreadable(f"it has {len(fields)} columns")
        return [Column(field.text(0), _type_of(field)) for field in fields]
    except (struct.error, UnicodeDecodeError):
        raise unreadable("its schema is damaged") from None


def _type_of(field: _Table) -> str:
    if field.has(4):
        return "dictionary"
    number, about = field.number(2, "<B"), field.table(3)
    if number == _INT and about is not None:
        return f"{'int' if about.number(1, '<B') else 'uint'}{about.number(0, '<i')}"
    return _TYPES[number] if number < len(_TYPES) else "of an unknown type"


def record_batches(file: BufferedIOBase) -> Iterator[bytearray]:
    """Yield each record batch as the whole message that Arrow reads, one at a time in memory.

    Raises:
        InvalidArgument: the file ends within a message, something else than a record batch stands in it, or a
            record batch has, or says it would have, more than `BATCH_BYTES`.
    """
    while (metadata := _metadata(file, _METADATA_BYTES)) is not None:
        try:
            size = _Table.root(metadata).number(3, "<q")
            batch = _header(metadata, _RECORD_BATCH)
            _check_size(size)
            head = struct.pack("<ii", _CONTINUATION, len(metadata)) + metadata
            message = bytearray(len(head) + size)
            message[: len(head)] = head
            body = memoryview(message)[len(head) :]
            _fill(file, body)
            _check_size(_decoded(batch, body))
        except struct.error:
            raise unreadable("a record batch is damaged") from None
        yield message


def is_compressed(metadata: bytes) -> bool:
    """Return whether the record batch of a message, by its metadata, takes more room than its bytes show.

    Raises:
        InvalidArgument: it is damaged, or no record batch.
    """
    try:
        return _header(metadata, _RECORD_BATCH).has(3)
    except struct.error:
        raise unreadable("a record batch is damaged") from None


def _check_size(size: int) -> None:
    if size < 0:
        raise unreadable("a record batch is damaged")
    if size > BATCH_BYTES:
        raise InvalidArgument(
            f"a record batch of the Arrow stream has more than {BATCH_BYTES} bytes: write smaller ones, such "
            "as with write_table(table, max_chunksize=4096)",
            field=FIELD,
        )


def _decoded(batch: _Table, body: memoryview) -> int:
    """Return the bytes that the buffers of a compressed record batch say they have; 0 for another one."""
    if not batch.has(3):
        return 0
    total = 0
    for offset, length in batch.structs(2, "<qq"):
        if length:
            size = _unpack("<q", body, offset)[0]
            if size < -1:
                return size
            # A buffer that compression would have made longer is sent as it is.
            total += length if size == -1 else size
    return total


def _metadata(file: BufferedIOBase, most: int) -> bytes | None:
    """Read the metadata of the next message; `None` at the end of the stream."""
    head = file.read(4)
    if head == struct.pack("<i", _CONTINUATION):
        head = file.read(4)
    if not head:
        return None
    if len(head) < 4:
        raise unreadable("it is torn")
    (size,) = struct.unpack("<i", head)
    if not 0 <= size <= most:
        raise unreadable("what stands in it is no message of a stream")
    metadata = file.read(size)
    if len(metadata) < size:
        raise unreadable("it is torn")
    return metadata or None


def _fill(file: BufferedIOBase, body: memoryview) -> None:
    while body:
        count = file.readinto(body)
        if not count:
            raise unreadable("it is torn")
        body = body[count:]


def _header(metadata: bytes, kind: int) -> _Table:
    """Return the schema or record batch that a message is."""
    message = _Table.root(metadata)
    version, found, header = message.number(0, "<h"), message.number(1, "<B"), message.table(2)
    if found != kind or header is None:
        raise unreadable(f"a message of kind {found} has no place here")
    # Before Arrow 1.0 a message said in a note of its own that it is compressed.
    if version > _V5 or version < _V4 or (version == _V4 and message.has(4)):
        raise unreadable("it was written by another version of Arrow")
    return header


class _Table:
    """A table of a flatbuffer. Offsets are the sender's: one that points outside raises `struct.error`."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - _unpack("<i", data, at)[0]
        self._size = _unpack("<H", data, self._fields)[0]

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that a flatbuffer holds."""
        return cls(data, _unpack("<I", data, 0)[0])

    def _place(self, field: int) -> int | None:
        slot = 4 + 2 * field
        offset = _unpack("<H", self._data, self._fields + slot)[0] if slot + 2 <= self._size else 0
        return self._at + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + _unpack("<I", self._data, place)[0]

    def has(self, field: int) -> bool:
        """Return whether a field is there."""
        return self._place(field) is not None

    def number(self, field: int, form: str) -> int:
        """Return a number; 0, the default of all that are read here, where it is left out."""
        place = self._place(field)
        return 0 if place is None else int(_unpack(form, self._data, place)[0])

    def table(self, field: int) -> _Table | None:
        """Return a table, also the one of a union."""
        target = self._target(field)
        return None if target is None else _Table(self._data, target)

    def text(self, field: int) -> str:
        """Return a text, empty where it is left out."""
        target = self._target(field)
        if target is None:
            return ""
        return bytes(_unpack(f"{_unpack('<I', self._data, target)[0]}s", self._data, target + 4)[0]).decode()

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """Yield the structs of a vector."""
        target = self._target(field)
        if target is not None:
            count = _unpack("<I", self._data, target)[0]
            for number in range(count):
                yield _unpack(form, self._data, target + 4 + number * struct.calcsize(form))

    def tables(self, field: int) -> list[_Table]:
        """Return the tables of a vector."""
        target = self._target(field)
        if target is None:
            return []
        return [
            _Table(self._data, target + 4 + 4 * number + offset)
            for number, (offset,) in enumerate(self.structs(field, "<I"))
        ]


def _unpack(form: str, data: bytes | memoryview, at: int) -> tuple[int, ...]:
    if at < 0:  # which Python would count from the end
        raise struct.error
    return struct.unpack_from(form, data, at)


def unreadable(why: str) -> InvalidArgument:
    """Return the refusal of a file."""
    return InvalidArgument(f"the file is not a readable Arrow stream: {why}", field=FIELD)


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a record batch in pieces of at most `PIECE_BYTES`, or of one request, that share its memory.

    As values of Python the same requests take several times as much.
    """
    count = batch.num_rows
    if count <= 1 or (count <= _PIECE_REQUESTS and batch.nbytes <= PIECE_BYTES):
        yield batch
    else:
        yield from pieces(batch.slice(0, count // 2))
        yield from pieces(batch.slice(count // 2))
