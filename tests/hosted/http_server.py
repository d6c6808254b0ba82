"""HTTP on 127.0.0.1 whose connections break where a `Fault` says: what the stand-ins have in common.

A stand-in names the route of a request and answers it; this counts the calls of each route, lets faults
happen, and serves `/_control`, by which another process reads the counts, moves the clock and changes what
goes wrong.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson
from hosted.behaviour import Behaviour, Fault, told
from hosted.moment import Clock
from hosted.replies import Refused, Reply, details, envelope, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedIOBase

_PIECE = 256 * 1024
_CONTROL = "/_control"


class Broken(Exception):
    """The connection breaks here: the client has left, or a fault says so; `part` is what came of a body."""

    part: bytes = b""


@dataclass
class Body:
    """What a request brings, as it comes in."""

    source: BufferedIOBase
    left: int
    chunked: bool
    cut: int | None = None
    """Bytes that get through before the connection breaks."""
    taken: int = 0
    gone: bool = False
    """Whether the client left before the end."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes; Broken where they end before their end."""
        while piece := self._next():
            room = None if self.cut is None else max(0, self.cut - self.taken)
            if room is not None and len(piece) > room:
                self.taken += room
                yield piece[:room]
                raise Broken
            self.taken += len(piece)
            yield piece
            if self.gone:
                break
        if self.gone or self.cut is not None:
            raise Broken

    def read(self) -> bytes:
        """Return all that is left."""
        came = []
        try:
            for piece in self.pieces():
                came.append(piece)  # noqa: PERF402  (what came before a break is wanted, too)
        except Broken as broken:
            broken.part = b"".join(came)
            raise
        return b"".join(came)

    def _next(self) -> bytes:
        if self.chunked and not self.left:
            self.left = int(self._line().partition(b";")[0], 16)
            if not self.left:
                self._line()
                self.chunked = False
                return b""
        wanted = min(self.left, _PIECE)
        if self.cut is not None:  # no further than the cut, or its bytes would wait for more to come
            wanted = min(wanted, max(1, self.cut - self.taken))
        try:
            piece = self.source.read(wanted) if wanted else b""
        except OSError as error:
            raise Broken from error
        self.gone = len(piece) < wanted
        self.left -= len(piece)
        if self.chunked and not self.left:
            self._line()
        return piece

    def _line(self) -> bytes:
        if not (line := self.source.readline(1000)):
            raise Broken
        return line.strip()


@dataclass
class Ask:
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Body
    target: str
    """Path and query as they came."""

    @property
    def base(self) -> str:
        """The address under which the client sees the stand-in."""
        return f"http://{self.headers['host']}"


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    route: str
    method: str
    target: str
    headers: Mapping[str, str]


class StandIn:
    """A service; a context manager that serves while its block runs. `url` is its address."""

    def __init__(self, behaviour: Behaviour | None = None, clock: Clock | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        """May be replaced at any time; see also `behave`."""
        self.clock = clock or Clock()
        self.calls: Counter[str] = Counter()
        """Requests by route, those that went wrong included."""
        self.faults: Counter[str] = Counter()
        """Faults that happened by route."""
        self.seen: list[Seen] = []
        self.bytes_in = 0
        """Bytes of request bodies."""
        self.bytes_out = 0
        """Bytes of reply bodies."""
        self.trouble: list[str] = []
        """Tracebacks of the stand-in's own mistakes; the end of the block raises them."""
        self.lock = threading.RLock()
        self._settling = threading.Condition(self.lock)
        self._settled: Counter[str] = Counter()
        self.closing = threading.Event()
        self.url = ""
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def behave(self, **changes: Any) -> None:
        """Change some of the behaviour, by the names of its fields."""
        with self.lock:
            self.behaviour = replace(self.behaviour, **changes)

    def await_calls(self, route: str, count: int, seconds: float = 60) -> None:
        """Return when so many calls of a route have been handled: answered, broken or left in silence."""
        with self._settling:
            done = self._settling.wait_for(lambda: self._settled[route] >= count, seconds)
            assert done, f"{route}: {self.calls}"

    def settle(self, route: str) -> None:
        """Take note that a call has been handled as far as it will be."""
        with self._settling:
            self._settled[route] += 1
            self._settling.notify_all()

    def route(self, ask: Ask) -> str:
        """Name the route of a request."""
        raise NotImplementedError

    def answer(self, route: str, ask: Ask) -> Reply:
        """Answer a request, or raise Refused."""
        raise NotImplementedError

    def fail(self, fault: Fault) -> Reply:
        """Write the refusal that a fault tells of."""
        again = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        if fault.plain:
            return Reply(fault.status, fault.plain.encode(), {"Content-Type": "text/html", **again})
        made = envelope(fault.status, "", details(fault.details, fault.retry_seconds))
        return Reply(made.status, made.body, again)

    def counts(self) -> dict[str, Any]:
        """Return what was counted, for `/_control`."""
        return {
            "now": self.clock.now,
            "calls": dict(self.calls),
            "faults": dict(self.faults),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def tell(self, said: dict[str, Any]) -> None:
        """Do what a request to `/_control` says; ValueError for what is not known."""
        for route, count in said.pop("await_calls", {}).items():
            self.await_calls(route, count)
        if "advance" in said:
            self.clock.advance(said.pop("advance"))
        if "behaviour" in said:
            self.behave(**told(said.pop("behaviour")))
        if said:
            raise ValueError(f"nothing to tell: {', '.join(said)}")

    def respond(self, route: str, ask: Ask) -> Reply:
        """Answer a request; a mistake of the stand-in's own fails the test that uses it."""
        try:
            return self.answer(route, ask)
        except Refused as refusal:
            return refusal.reply
        except (Broken, OSError):
            raise
        except Exception:  # noqa: BLE001  (shown at the end)
            self.trouble.append(traceback.format_exc())
            return envelope(500, "the stand-in failed")

    def count_bytes(self, came: int, went: int) -> None:
        """Count bytes of bodies."""
        with self.lock:
            self.bytes_in += came
            self.bytes_out += went

    def begin(self, ask: Ask) -> tuple[str, Fault | None]:
        """Count a request; return its route and what goes wrong with it."""
        route = self.route(ask)
        with self.lock:
            self.calls[route] += 1
            self.seen.append(Seen(route, ask.method, ask.target, ask.headers))
            fault = self.behaviour.fault(route, self.calls[route])
            if fault is not None:
                self.faults[route] += 1
        return route, fault

    def control(self, ask: Ask) -> Reply:
        """Answer `/_control`."""
        if ask.method == "POST":
            try:
                self.tell(orjson.loads(ask.body.read()))
            except (ValueError, TypeError) as error:
                return say({"error": str(error)}, 400)
        with self.lock:
            return say(self.counts())

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stand_in = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.leave()
        self._server.server_close()
        if kind is None and self.trouble:
            raise AssertionError("".join(self.trouble))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stand_in: StandIn

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self._handlers = [one for one in self._handlers if one.is_alive()]
        arguments = (request, client_address)
        handler = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._handlers.append(handler)
        handler.start()

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def leave(self) -> None:
        """Close what clients keep open, so that none of them waits, and see the handlers end."""
        for connection in [*self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for handler in self._handlers:
            handler.join(10)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        stand_in = self.server.stand_in
        ask = self._ask()
        if ask.path == _CONTROL:
            self._send(stand_in.control(ask))
            return
        route, fault = stand_in.begin(ask)
        try:
            try:
                reply = self._reply(stand_in, route, ask, fault)
            finally:
                stand_in.settle(route)
            if fault is not None and fault.cut == "silent":
                self._wait()
            else:
                self._send(reply, fault)
        except (Broken, OSError):
            self._break(reset=fault is not None and fault.reset)
        finally:
            stand_in.count_bytes(ask.body.taken, 0)

    def _reply(self, stand_in: StandIn, route: str, ask: Ask, fault: Fault | None) -> Reply:
        if fault is not None and fault.cut in {None, "silent"}:
            if fault.handled:
                stand_in.respond(route, ask)
            ask.body.read()
            return stand_in.fail(fault)
        if fault is not None and fault.cut == "unread":
            raise Broken
        if fault is not None and fault.cut == "request":
            ask.body.cut = fault.at
        reply = stand_in.respond(route, ask)
        if ask.body.left or ask.body.chunked:
            ask.body.read()
        if fault is not None and fault.cut in {"handled", "request"}:
            raise Broken
        return reply

    def _ask(self) -> Ask:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        body = Body(self.rfile, int(headers.get("content-length", 0)), chunked)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Ask(self.command, unquote(parts.path), query, headers, body, self.path)

    def _send(self, reply: Reply, fault: Fault | None = None) -> None:
        content = reply.body
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json; charset=UTF-8", **reply.headers}
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = None if fault is None else fault.cut
        most = 0 if cut == "head" else fault.at if fault is not None and cut == "body" else size
        sent = 0
        for piece in _pieces(content):
            sent += self.wfile.write(piece[: most - sent])
            if sent >= most:
                break
        self.wfile.flush()
        self.server.stand_in.count_bytes(0, sent)
        if cut in {"head", "body", "end"}:
            raise Broken

    def _break(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> None:
        # Who has gone can be read of; who waits says nothing.
        self.close_connection = True
        while not self.server.stand_in.closing.is_set():
            if select.select([self.connection], [], [], 0.02)[0]:
                return

    def handle_expect_100(self) -> bool:
        went_on = super().handle_expect_100()
        self.wfile.flush()
        return went_on

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815  (the names http.server looks for)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
