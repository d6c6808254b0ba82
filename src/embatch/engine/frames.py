"""Frames on a pipe between the service and an engine process: a JSON header and raw bytes, never pickle.

    u32 length of the header · u64 length of the body · header (JSON object) · body

Lengths are little-endian. A pipe that ends between two frames ends the conversation; one that ends inside a
frame means that the other side died.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

_LENGTHS: Final = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    header: Mapping[str, Any]
    body: bytes = b""


def write(stream: BinaryIO, header: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one frame and flush it. The caller keeps writers apart. Raises `OSError` when nobody reads."""
    head = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    stream.write(_LENGTHS.pack(len(head), len(body)))
    stream.write(head)
    stream.write(body)
    stream.flush()


def read(stream: BinaryIO) -> Frame | None:
    """Return the next frame, or `None` at the end, also when it ends inside a frame."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, body = _LENGTHS.unpack(lengths)
    content = stream.read(head), stream.read(body)
    if len(content[0]) < head or len(content[1]) < body:
        return None
    return Frame(orjson.loads(content[0]), content[1])
