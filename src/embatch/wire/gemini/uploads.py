"""Google's resumable upload from both sides: the headers of each step, and what the replies say.

start → an address that is its own credential → chunks at their offsets → finalize. After a broken connection
`query` tells how much arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from embatch.errors import Internal, InvalidArgument
from embatch.wire.gemini import routes
from embatch.wire.gemini.read_queries import byte_count

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK_BYTES: Final = 8 << 20
"""Bytes of one chunk, as Google's own client sends them; a multiple of every granularity in use."""


def start_headers(size: int, mime_type: str) -> dict[str, str]:
    """Return the headers that announce a file of so many bytes."""
    return {
        "Content-Type": "application/json",
        routes.UPLOAD_PROTOCOL: "resumable",
        routes.UPLOAD_COMMAND: "start",
        routes.UPLOAD_LENGTH: str(size),
        routes.UPLOAD_TYPE: mime_type,
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
        return headers[routes.UPLOAD_ADDRESS.lower()]
    except KeyError:
        raise Internal("the service began an upload without saying where to send the file") from None


def chunk_headers(offset: int, *, final: bool) -> dict[str, str]:
    """Return the headers of the chunk that begins at this byte; `final` completes the file with it."""
    return {
        "Content-Type": "application/octet-stream",
        routes.UPLOAD_COMMAND: "upload, finalize" if final else "upload",
        routes.UPLOAD_OFFSET: str(offset),
    }


def query_headers() -> dict[str, str]:
    """Return the headers that ask how much has arrived."""
    return {routes.UPLOAD_COMMAND: "query"}


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
    final = headers.get(routes.UPLOAD_STATUS.lower()) == "final"
    received = headers.get(routes.UPLOAD_RECEIVED.lower(), "")
    if not received.isdecimal() and not final:
        raise Internal("the service did not say how much of the upload arrived")
    return Arrived(int(received) if received.isdecimal() else 0, final)


# from the receiver's side


def protocol(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """Return which protocol an upload follows, in lower case: the header says it, else the query."""
    said = (headers.get(routes.UPLOAD_PROTOCOL), *(query.get(name) for name in routes.UPLOAD_PROTOCOLS))
    return next(filter(None, said), "raw").lower()


def commands(headers: Mapping[str, str]) -> frozenset[str]:
    """Return what a step shall do, in lower case; nothing, if it does not say."""
    words = headers.get(routes.UPLOAD_COMMAND, "").split(",")
    return frozenset(word.strip().lower() for word in words)


def offset(headers: Mapping[str, str]) -> int:
    """Return where a chunk begins. Raises InvalidArgument."""
    found = byte_count(headers.get(routes.UPLOAD_OFFSET), routes.UPLOAD_OFFSET)
    if found is None:
        raise InvalidArgument("say where the chunk begins", field=routes.UPLOAD_OFFSET)
    return found


def started_headers(address: str, token: str) -> dict[str, str]:
    """Return what the reply to a start carries; `address` is that of the start, and of all that follows."""
    where = f"{address}?{routes.UPLOAD_ID}={token}&{routes.UPLOAD_PROTOCOLS[0]}=resumable"
    return {routes.UPLOAD_ADDRESS: where, routes.UPLOAD_STATUS: "active", routes.UPLOAD_GRANULARITY: "1"}


def status_headers(status: str, received: int | None = None) -> dict[str, str]:
    """Return what the reply to a step carries: how the upload is, and how many bytes have arrived.

    Without the status Google's client sends the chunk again, three times, seven seconds long; with `active`
    it takes the chunk for accepted.
    """
    how_far = {} if received is None else {routes.UPLOAD_RECEIVED: str(received)}
    return {routes.UPLOAD_STATUS: status, **how_far}
