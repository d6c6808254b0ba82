"""What a request must keep to before anything reads it: sizes, deadlines, framing, host, content type.

The place is the connection itself (a subclass of uvicorn's h11 protocol), because an application sees a
request only once its head is complete: too late for a head that never ends, and for a body that is refused by
its announced length. What to refuse is decided by pure functions over values (`judge_head`, `BodyCount`); the
protocol answers with the envelope every error has, and closes.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from embatch.settings import Settings

UPLOADS: Final = (b"/upload/", b"/resumable/upload/")
"""Paths whose bodies are files: larger, and of any content type."""
_ENVELOPE_BYTES: Final = 64 << 10
"""What a multipart upload may add around the file."""
_RATE: Final = 1024
"""Bytes per second below which a body counts as held back on purpose."""
_TINY_CHUNKS: Final = 4096
"""Chunks a body may have before their average size is looked at: each costs as much as a kilobyte."""
_LINGER_SECONDS: Final = 1.0
"""How long what still arrives is read and thrown away after a refusal. Closing at once would reset the
connection, and the reset can overtake the answer."""
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_LOOPBACK: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})

_log = logging.getLogger("embatch.api")

_READS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing: what they answer, a browser keeps from the page of another origin."""

_NAMES: Final = {
    HTTPStatus.FORBIDDEN: "PERMISSION_DENIED",
    HTTPStatus.REQUEST_TIMEOUT: "DEADLINE_EXCEEDED",
    HTTPStatus.METHOD_NOT_ALLOWED: "UNIMPLEMENTED",
}


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
        )

    def body_limit(self, target: bytes) -> int:
        """Return the most bytes a body sent to this target may have."""
        return self.file_bytes if target.startswith(UPLOADS) else self.body_bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered without being read further."""

    status: HTTPStatus
    reason: str
    message: str

    def encode(self) -> bytes:
        """Return the whole response."""
        body = orjson.dumps(
            {
                "error": {
                    "code": self.status.value,
                    "message": self.message,
                    "status": _NAMES.get(self.status, "INVALID_ARGUMENT"),
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                            "reason": self.reason,
                            "domain": "embatch",
                        }
                    ],
                }
            }
        )
        allow = "Allow: GET, POST, PATCH, DELETE\r\n" if self.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{allow}"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + body


def _bad(reason: str, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Refusal:
    return Refusal(status, reason, message)


def judge_head(request: h11.Request, bounds: Bounds) -> Refusal | None:
    """Return why a request with this head is refused, or `None` to go on."""
    names = [name for name, _ in request.headers]
    size = sum(len(name) + len(value) + 4 for name, value in request.headers) + len(request.target)
    if len(names) > bounds.header_count or size > bounds.header_bytes:
        return too_large_head(bounds)
    headers = dict(request.headers)
    return (
        _judge_address(headers, names, bounds)
        or _judge_origin(request, headers)
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
        f"the body is larger than {limit} bytes; a batch that large goes through an uploaded file",
    )


def _judge_address(headers: dict[bytes, bytes], names: list[bytes], bounds: Bounds) -> Refusal | None:
    host = _HOST.fullmatch(headers.get(b"host", b""))
    if host is None or names.count(b"host") > 1:
        return _bad("BAD_HOST", "the Host header must be a host name and perhaps a port")
    if bounds.hosts is not None and host.group(1).lower() not in bounds.hosts:
        return _bad("BAD_HOST", "this service does not go by the name in the Host header")
    if b"upgrade" in headers and headers[b"upgrade"].lower() == b"websocket":
        return _bad("NO_UPGRADE", "this service speaks HTTP only", HTTPStatus.METHOD_NOT_ALLOWED)
    return None


def _judge_origin(request: h11.Request, headers: dict[bytes, bytes]) -> Refusal | None:
    """Any page may send a file or a form to any address; but its browser says whose page it is."""
    host = headers[b"host"].lower()
    own = (b"http://" + host, b"https://" + host)
    origins = [value.lower() for name, value in request.headers if name == b"origin"]
    if request.method in _READS or all(origin in own for origin in origins):
        return None
    return _bad(
        "FOREIGN_ORIGIN",
        "a page of another address may change nothing here: the Origin header must name this service",
        HTTPStatus.FORBIDDEN,
    )


def _judge_body(request: h11.Request, headers: dict[bytes, bytes], bounds: Bounds) -> Refusal | None:
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            # Two readers that disagree on which one counts see two different requests (smuggling).
            return _bad("BAD_FRAMING", "Content-Length and Transfer-Encoding exclude each other")
    elif length is None or int(length) == 0:
        return None
    elif int(length) > bounds.body_limit(request.target):
        return too_large_body(bounds.body_limit(request.target))
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return _bad(
            "CONTENT_ENCODING",
            "bodies are taken as they are: send this one without Content-Encoding",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if request.target.startswith(UPLOADS) or _is_json(headers.get(b"content-type", b"")):
        return None
    return _bad(
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
            return _bad("TINY_CHUNKS", "the body comes in chunks of a few bytes; send larger ones")
        return None


class GuardedConnection(h11.Connection):
    """h11's connection, which takes a request over a limit for one that breaks the protocol."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(h11.SERVER, bounds.header_bytes)
        self.bounds = bounds
        self.refusal: Refusal | None = None
        """Why the peer was refused; set before the `RemoteProtocolError` is raised."""
        self._body = BodyCount(0)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """As h11's; `RemoteProtocolError` also for what the bounds forbid."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = (
                too_large_head(self.bounds)
                if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                else _bad("MALFORMED_HTTP", "this is not a well-formed HTTP/1.1 request")
            )
            raise
        if isinstance(event, h11.Request):
            self._body = BodyCount(self.bounds.body_limit(event.target))
            self.refusal = judge_head(event, self.bounds)
        elif isinstance(event, h11.Data):
            self.refusal = self._body.add(event)
        if self.refusal is not None:
            raise h11.RemoteProtocolError(self.refusal.reason, self.refusal.status)
        return event


class GuardedProtocol(H11Protocol):
    """uvicorn's h11 protocol with limits and deadlines. Made by `guarded`."""

    bounds: ClassVar[Bounds]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: GuardedConnection = GuardedConnection(self.bounds)
        self._deadline: asyncio.TimerHandle | None = None
        self._phase: object = None
        self._arrived = 0
        self._left = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the deadline for the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._await_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the peer was refused: then it is thrown away until the connection ends."""
        if not self._left:
            self._arrived += len(data)
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle what was parsed, then see what is awaited next."""
        super().handle_events()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what the connection refused."""
        self._refuse(self.conn.refusal or _bad("MALFORMED_HTTP", msg))

    def _watch(self) -> None:
        """Give the peer its deadline for what it is to send next: a head, a body, or nothing."""
        waiting = None
        if not self._left and not self.transport.is_closing():
            state = self.conn.their_state
            # Between two requests uvicorn's keep-alive time counts, until the first byte of the next head.
            if state is h11.SEND_BODY or (
                state is h11.IDLE and (self._arrived == 0 or self.conn.trailing_data[0])
            ):
                waiting = state
        if waiting is self._phase:
            return
        self._await_nothing()
        self._phase = waiting
        if waiting is not None:
            self._open_window()

    def _open_window(self) -> None:
        self._deadline = self.loop.call_later(
            self.bounds.receive_seconds, self._check, self._arrived, self.flow.read_paused
        )

    def _await_nothing(self) -> None:
        self._phase = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check(self, arrived_before: int, paused_before: bool) -> None:  # noqa: FBT001  (a timer's argument)
        """At the deadline: a head must be complete, a body must have come at a fair rate."""
        rate_met = self._arrived - arrived_before >= _RATE * self.bounds.receive_seconds
        # Reading is paused while the application is the slow one.
        if self._phase is h11.SEND_BODY and (rate_met or paused_before or self.flow.read_paused):
            self._open_window()
        elif self._arrived == 0:
            self.transport.close()
        else:
            self._refuse(
                Refusal(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "TOO_SLOW",
                    f"the request did not arrive within {self.bounds.receive_seconds:g} seconds",
                )
            )

    def _refuse(self, refusal: Refusal) -> None:
        """Answer if an answer is still possible, and close."""
        _log.info("refused", extra={"fields": {"status": refusal.status.value, "reason": refusal.reason}})
        self._left = True
        self._await_nothing()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        answerable = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The application learns that its client has gone; what it still sends goes nowhere.
            cycle.disconnected = True
            cycle.message_event.set()
        if not answerable:
            self.transport.close()
            return
        self.transport.write(refusal.encode())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def guarded(bounds: Bounds) -> type[GuardedProtocol]:
    """Return the protocol class for uvicorn's `http=` that holds every connection to these bounds."""
    return type("Guarded", (GuardedProtocol,), {"bounds": bounds})
