"""Frames on a pipe between the service and an engine process: a JSON header and raw bytes, never pickle.

    u32 length of the header · u64 length of the body · header (JSON object) · body

Lengths are little-endian. A pipe that ends, between two frames or inside one, ends the conversation: the
other side is gone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

from embatch.engine.protocol import EndpointTrouble, ModelChanged, OthersTaken
from embatch.errors import EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping

_LENGTHS: Final = struct.Struct("<IQ")
MOST_HEADER: Final = 64 << 20
MOST_BODY: Final = 4 << 30
"""No frame of ours is larger: lengths above it are something else that was written to the pipe."""
_TROUBLES: Final[Mapping[str, type[EngineTrouble]]] = MappingProxyType(
    {"engine": EngineTrouble, "endpoint": EndpointTrouble, "changed": ModelChanged, "texts": OthersTaken}
)
_OF: Final = {kind: name for name, kind in _TROUBLES.items()}


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
    """Return the next frame, or `None` at the end, also when it ends inside a frame.

    Raises:
        ValueError: what comes is no frame.
    """
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, body = _LENGTHS.unpack(lengths)
    if head > MOST_HEADER or body > MOST_BODY:
        raise ValueError("not a frame")
    content = stream.read(head), stream.read(body)
    if len(content[0]) < head or len(content[1]) < body:
        return None
    header = orjson.loads(content[0])
    if not isinstance(header, dict):
        raise ValueError("not a frame")  # noqa: TRY004  (one kind of error for anything that is no frame)
    return Frame(header, content[1])


def told(trouble: EngineTrouble) -> dict[str, Any]:
    """Return the fields of a header that carry an engine's trouble, whose it is included."""
    whose = _OF.get(type(trouble), "engine")
    return {"message": trouble.message, "retry_after": trouble.retry_after, "whose": whose}


def trouble(header: Mapping[str, Any]) -> EngineTrouble:
    """Return the trouble that a header carries. Raises `KeyError` where it carries none."""
    return _TROUBLES[header["whose"]](str(header["message"]), retry_after=header["retry_after"])
