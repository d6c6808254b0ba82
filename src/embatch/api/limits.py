"""What a request must keep to before anything reads it: sizes, deadlines, framing, host, content type.

What to refuse is decided by pure functions over values (`judge_head`, `BodyCount`); the connection
(`server.http_protocol`) answers with the envelope every error has, and closes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from embatch.wire.gemini import routes, write_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h11

    from embatch.settings import Settings

_UPLOADS: Final = tuple(f"{before}/".encode() for before in routes.UPLOAD.before)
"""How the paths begin whose bodies are files: larger, and of any content type."""
_TEXTS: Final = tuple(route.verb.encode() for route in routes.TAKE_TEXTS)
SMALL_BYTES: Final = 64 << 10
"""Most bytes of a body without texts."""
_ENVELOPE_BYTES: Final = 64 << 10
"""What a multipart upload may add around the file."""
_TINY_CHUNKS: Final = 4096
"""Chunks a body may have before their average size is looked at: each costs as much as a kilobyte."""
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_LOOPBACK: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})

_READS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing: what they answer, a browser keeps from the page of another origin."""

FREE_BYTES: Final = 64 << 10
"""So much of every body is taken whatever the others hold: no cancel and no query is refused for them."""
FILE_PIECES: Final = 2 << 20
"""What a file's body holds in memory at most, whatever its size: the rest is on disk."""
_BUSY_SECONDS: Final = 5.0
"""When a client that was refused for want of room may come back."""

_REMEDIES: Final = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": 'Bearer realm="embatch"'},
    HTTPStatus.METHOD_NOT_ALLOWED: {"Allow": "GET, POST, PATCH, DELETE"},
}
"""The headers that HTTP demands beside a status."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one listening address."""

    header_bytes: int
    header_count: int
    body_bytes: int
    file_bytes: int
    receive_seconds: float
    hosts: frozenset[bytes] | None
    """Names this service goes by, lower case, without port; `None` accepts any well-formed one. Another one
    comes from a browser lured by a foreign name that resolves to this machine."""
    held_bytes: int = 256 << 20
    """Bytes of bodies that all connections together may hold in memory."""
    body_seconds: float = 300.0
    connections: int = 10_000
    """Connections at once."""

    @classmethod
    def of(cls, settings: Settings, hosts: Sequence[str] | None) -> Bounds:
        """Return the bounds of a service; `hosts` are names beyond those of the loopback address."""
        return cls(
            header_bytes=settings.header_bytes,
            header_count=settings.header_count,
            body_bytes=settings.inline_bytes,
            file_bytes=settings.file_bytes + _ENVELOPE_BYTES,
            receive_seconds=settings.receive_seconds,
            hosts=None if hosts is None else _LOOPBACK | {host.lower().encode() for host in hosts},
            held_bytes=settings.held_bytes,
            body_seconds=settings.body_seconds,
            connections=settings.connections,
        )

    def body_limit(self, target: bytes) -> int:
        """Return the most bytes a body sent to this target may have."""
        if target.startswith(_UPLOADS):
            return self.file_bytes
        takes_texts = unquote_to_bytes(target.partition(b"?")[0]).endswith(_TEXTS)
        return self.body_bytes if takes_texts else min(SMALL_BYTES, self.body_bytes)

    def held_limit(self, target: bytes) -> int:
        """Return the most bytes of such a body that are in memory at once."""
        return FILE_PIECES if target.startswith(_UPLOADS) else self.body_bytes

    def overdue(self, spent: float, passed: int) -> bool:
        """Return whether a body or an answer is held back: `passed` bytes went by in `spent` seconds.

        A small one has `body_seconds`, a larger one as many for every `body_bytes` of it.
        """
        return spent >= self.body_seconds * (1 + passed // max(1, self.body_bytes))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered without being read further."""

    status: HTTPStatus
    reason: str
    message: str
    retry_after: float | None = None
    """Seconds after which repeating makes sense; `None`: it does not."""

    def encode(self) -> bytes:
        """Return the whole response."""
        answer = write_errors.refusal(self.status.value, self.message, self.reason, self.retry_after)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        headers |= {**_REMEDIES.get(self.status, {}), **answer.headers, "Connection": "close"}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n{''.join(lines)}\r\n".encode()
            + answer.body
        )


def bad(reason: str, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Refusal:
    """Return a refusal; unless told otherwise, of a request that is wrong."""
    return Refusal(status, reason, message)


def judge_head(request: h11.Request, bounds: Bounds, stranger: Refusal | None = None) -> Refusal | None:
    """Return why a request with this head is refused, or `None` to go on.

    Args:
        request: the head.
        bounds: of the address that was called.
        stranger: why its sender may not ask this, who then hears nothing of what else is wrong.
    """
    names = [name for name, _ in request.headers]
    size = sum(len(name) + len(value) + 4 for name, value in request.headers) + len(request.target)
    if len(names) > bounds.header_count or size > bounds.header_bytes:
        return too_large_head(bounds)
    headers = dict(request.headers)
    return (
        _judge_address(headers, names, bounds)
        or _judge_origin(request, headers)
        or stranger
        or _judge_body(request, headers, bounds)
    )


def too_large_head(bounds: Bounds) -> Refusal:
    """Return the refusal of a head with too many bytes or headers."""
    return Refusal(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "HEADERS_TOO_LARGE",
        f"the head of a request may have {bounds.header_bytes} bytes and {bounds.header_count} headers",
    )


def too_large_body(limit: int) -> Refusal:
    """Return the refusal of a body over a limit of bytes."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "BODY_TOO_LARGE",
        f"the body is larger than {limit} bytes"
        + ("" if limit <= SMALL_BYTES else "; a batch that large goes through an uploaded file"),
    )


def overloaded(what: str) -> Refusal:
    """Return the refusal of what there is no room for just now; `what` says of what there is too much."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, "OVERLOADED", f"{what}: come back in a moment", _BUSY_SECONDS
    )


def _judge_address(headers: dict[bytes, bytes], names: list[bytes], bounds: Bounds) -> Refusal | None:
    host = _HOST.fullmatch(headers.get(b"host", b""))
    if host is None or names.count(b"host") > 1:
        return bad("BAD_HOST", "the Host header must be a host name and perhaps a port")
    if bounds.hosts is not None and host.group(1).lower() not in bounds.hosts:
        return bad("BAD_HOST", "this service does not go by the name in the Host header")
    if b"upgrade" in headers and headers[b"upgrade"].lower() == b"websocket":
        return bad("NO_UPGRADE", "this service speaks HTTP only", HTTPStatus.METHOD_NOT_ALLOWED)
    return None


def _judge_origin(request: h11.Request, headers: dict[bytes, bytes]) -> Refusal | None:
    """Any page may send a file or a form to any address; but its browser says whose page it is."""
    host = headers[b"host"].lower()
    own = (b"http://" + host, b"https://" + host)
    origins = [value.lower() for name, value in request.headers if name == b"origin"]
    if request.method in _READS or all(origin in own for origin in origins):
        return None
    return bad(
        "FOREIGN_ORIGIN",
        "a page of another address may change nothing here: the Origin header must name this service",
        HTTPStatus.FORBIDDEN,
    )


def _judge_body(request: h11.Request, headers: dict[bytes, bytes], bounds: Bounds) -> Refusal | None:
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            # Two readers that disagree on which one counts see two different requests (smuggling).
            return bad("BAD_FRAMING", "Content-Length and Transfer-Encoding exclude each other")
    elif length is None or int(length) == 0:
        return None
    elif int(length) > bounds.body_limit(request.target):
        return too_large_body(bounds.body_limit(request.target))
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return bad(
            "CONTENT_ENCODING",
            "bodies are taken as they are: send this one without Content-Encoding",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if request.target.startswith(_UPLOADS) or _is_json(headers.get(b"content-type", b"")):
        return None
    return bad(
        "CONTENT_TYPE",
        "the body must be JSON in UTF-8: send Content-Type: application/json",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    )


def _is_json(value: bytes) -> bool:
    kind, *parameters = (part.strip().lower() for part in value.split(b";"))
    charsets = [part for part in parameters if part.startswith(b"charset=")]
    return kind == b"application/json" and all(
        part.removeprefix(b"charset=").strip(b'"') in (b"utf-8", b"utf8") for part in charsets
    )


@dataclass(slots=True)
class BodyCount:
    """What of one body has arrived."""

    limit: int
    size: int = 0
    chunks: int = 0

    def add(self, data: h11.Data) -> Refusal | None:
        """Count a piece; return why the body is refused at this point, or `None` to go on."""
        self.size += len(data.data)
        self.chunks += data.chunk_start
        if self.size > self.limit:
            return too_large_body(self.limit)
        if self.chunks > _TINY_CHUNKS and self.size < 16 * self.chunks:
            return bad("TINY_CHUNKS", "the body comes in chunks of a few bytes; send larger ones")
        return None


@dataclass(slots=True)
class HeldBodies:
    """The bytes of bodies that all connections hold in memory together. Lives in one event loop."""

    most: int
    held: int = 0


@dataclass(slots=True)
class HeldBody:
    """What one body takes of the memory for all of them, until it is let go."""

    among: HeldBodies
    most: int
    """What it holds at most: more of it is on disk."""
    size: int = 0

    def fits(self, size: int) -> bool:
        """Return whether a body of so many bytes has room. One that is alone always has."""
        taken = self._counted(size)
        others = self.among.held - self._counted(self.size)
        return not taken or not others or others + taken <= self.among.most

    def take(self, count: int) -> bool:
        """Count bytes that arrived; return whether they have room."""
        fits = self.fits(self.size + count)
        self._become(self.size + count)
        return fits

    def let_go(self) -> None:
        """Give the memory back. Repeating is safe."""
        self._become(0)

    def _become(self, size: int) -> None:
        self.among.held += self._counted(size) - self._counted(self.size)
        self.size = size

    def _counted(self, size: int) -> int:
        return max(0, min(size, self.most) - FREE_BYTES)
