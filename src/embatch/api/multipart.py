"""A multipart/related body read as it arrives: a small JSON part that describes, then the file's bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_HEAD_BYTES: Final = 8 << 10
DESCRIPTION_BYTES: Final = 16 << 10
"""Most bytes of what describes a file: a name of 512 characters, and a few words."""
_BOUNDARY: Final = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))""", re.IGNORECASE)


def boundary_of(content_type: str) -> bytes:
    """Return the boundary named in a Content-Type.

    Raises:
        InvalidArgument: it is not multipart/related or names none.
    """
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/related") or found is None:
        raise InvalidArgument(
            "a multipart upload needs Content-Type: multipart/related; boundary=…", field="Content-Type"
        )
    return (found.group(1) or found.group(2)).encode("latin-1")


@dataclass(frozen=True, slots=True)
class PartHead:
    """The head of one part: its media type, empty where it names none."""

    content_type: str


class RelatedReader:
    """Reads the two parts in order: `metadata` once, then `file`, whose bytes are never held together."""

    def __init__(self, body: AsyncIterator[bytes], boundary: bytes) -> None:
        self._body = body
        self._buffer = bytearray(b"\r\n")  # so that the first delimiter looks like every other
        self._delimiter = b"\r\n--" + boundary

    async def metadata(self) -> bytes:
        """Return the first part."""
        await self._until(self._delimiter, _HEAD_BYTES, "there is no first part")
        await self._head()
        return await self._until(self._delimiter, DESCRIPTION_BYTES, "the first part does not end")

    async def file_head(self) -> PartHead:
        """Return the head of the second part."""
        return await self._head()

    async def file(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the second part."""
        keep = len(self._delimiter) - 1  # the buffer's end may be the beginning of the delimiter
        while (end := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > keep:
                piece = bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
                yield piece
            await self._more("the file's part does not end")
        if end:
            yield bytes(self._buffer[:end])
        del self._buffer[: end + len(self._delimiter)]
        while len(self._buffer) < 2:
            await self._more("the last part does not end")
        if not self._buffer.startswith(b"--"):
            raise InvalidArgument("a multipart upload has two parts: JSON, then the file", field="body")
        async for _ in self._body:  # an epilogue means nothing, but it must leave the connection
            pass

    async def _head(self) -> PartHead:
        lines = await self._until(b"\r\n\r\n", _HEAD_BYTES, "a part's head does not end")
        if not lines.startswith(b"\r\n") and lines.strip():
            raise InvalidArgument("a multipart upload has two parts: JSON, then the file", field="body")
        kinds = [
            line.split(b":", 1)[1].strip().decode("latin-1")
            for line in lines.split(b"\r\n")
            if line.lower().startswith(b"content-type:")
        ]
        return PartHead(kinds[0] if kinds else "")

    async def _until(self, marker: bytes, limit: int, fault: str) -> bytes:
        seen = 0  # what comes byte by byte is not looked through from its beginning each time
        while (end := self._buffer.find(marker, seen)) < 0:
            if len(self._buffer) > limit:
                raise InvalidArgument(f"{fault} within {limit} bytes", field="body")
            seen = max(0, len(self._buffer) - len(marker) + 1)
            await self._more(fault)
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(marker)]
        return found

    async def _more(self, fault: str) -> None:
        try:
            self._buffer += await anext(self._body)
        except StopAsyncIteration:
            raise InvalidArgument(fault, field="body") from None
