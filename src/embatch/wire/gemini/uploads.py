"""Google's resumable upload from the sender's side: the headers of each step, and what the replies say.

start → an address that is its own credential → chunks at their offsets → finalize. After a broken connection
`query` tells how much arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from embatch.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK_BYTES: Final = 8 << 20
"""Bytes of one chunk, as Google's own client sends them; a multiple of every granularity in use."""


def start_headers(size: int, mime_type: str) -> dict[str, str]:
    """Return the headers that announce a file of so many bytes."""
    return {
        "Content-Type": "application/json",
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Command": "start",
        "X-Goog-Upload-Header-Content-Length": str(size),
        "X-Goog-Upload-Header-Content-Type": mime_type,
    }


def start_body(display_name: str, mime_type: str, name: str | None = None) -> bytes:
    """Return the body that goes with `start_headers`; `name` is `files/{id}`, `None` for any."""
    file = {"displayName": display_name, "mimeType": mime_type}
    return orjson.dumps({"file": file if name is None else {**file, "name": name}})


def upload_address(headers: Mapping[str, str]) -> str:
    """Return the address for the chunks from the reply to the start; header names in lower case.

    Raises:
        Internal: the service named none.
    """
    try:
        return headers["x-goog-upload-url"]
    except KeyError:
        raise Internal("the service began an upload without saying where to send the file") from None


def chunk_headers(offset: int, *, final: bool) -> dict[str, str]:
    """Return the headers of the chunk that begins at this byte; `final` completes the file with it."""
    return {
        "Content-Type": "application/octet-stream",
        "X-Goog-Upload-Command": "upload, finalize" if final else "upload",
        "X-Goog-Upload-Offset": str(offset),
    }


def query_headers() -> dict[str, str]:
    """Return the headers that ask how much has arrived."""
    return {"X-Goog-Upload-Command": "query"}


@dataclass(frozen=True, slots=True)
class Arrived:
    """How far an upload is, as the reply to a query says."""

    size: int
    """Bytes that arrived and need not be sent again."""
    final: bool
    """Whether the file was completed."""


def arrived(headers: Mapping[str, str]) -> Arrived:
    """Read the reply to a query; header names in lower case.

    Raises:
        Internal: it does not say.
    """
    final = headers.get("x-goog-upload-status") == "final"
    received = headers.get("x-goog-upload-size-received", "")
    if not received.isdecimal() and not final:
        raise Internal("the service did not say how much of the upload arrived")
    return Arrived(int(received) if received.isdecimal() else 0, final)
