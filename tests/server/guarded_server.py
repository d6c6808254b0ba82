"""A guarded server in a thread, over a small application, for tests that speak to its sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import h11
import uvicorn

from embatch.api.limits import Bounds
from embatch.server.http_protocol import guarded

LARGE_PIECES = 32
"""Of a megabyte each: more than any buffers between the two ends hold."""
BOUNDS = Bounds(
    header_bytes=4096,
    header_count=20,
    body_bytes=10_000,
    file_bytes=1_000_000,
    receive_seconds=0.4,
    hosts=frozenset({b"localhost", b"127.0.0.1"}),
)


class Application:
    """Answers the number of bytes it was sent.

    `/slow` reads only when it is let go, `/held` answers only then, `/early` does not read at all; `/large`
    answers many megabytes, `/broken` fails before its answer has begun and `/torn` after that.
    """

    def __init__(self) -> None:
        self.go = threading.Event()
        self.read = threading.Semaphore(0)
        """Released whenever a body has been read."""
        self.gone = threading.Event()
        """Set when a client has gone before its body was complete."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["path"].endswith("/early"):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["path"].endswith("/slow"):
            await asyncio.to_thread(self.go.wait)
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            size += len(message["body"])
            more = message["more_body"]
        self.read.release()
        if scope["path"] == "/broken":
            raise ZeroDivisionError
        if scope["path"].startswith("/held"):
            await asyncio.to_thread(self.go.wait)
        if scope["path"] in ("/large", "/torn"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(LARGE_PIECES):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
                if scope["path"] == "/torn":
                    return
            await send({"type": "http.response.body", "body": b""})
            self.gone.set()
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"%8d" % size})


class Running:
    """A guarded server in a thread."""

    def __init__(self, bounds: Bounds) -> None:
        self.application = Application()
        config = uvicorn.Config(
            self.application, http=guarded(bounds), lifespan="off", log_config=None, timeout_keep_alive=75
        )
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(self.listener.getsockname(), timeout=60)

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes on a connection of their own; return status and body of what comes back."""
        with self.connect() as stream:
            stream.sendall(data)
            return answer(stream)

    def stop(self) -> None:
        """End the server."""
        self.application.go.set()
        self.server.should_exit = True
        self.thread.join(10)


def answer(stream: socket.socket) -> tuple[int, bytes]:
    """Read one response; return status and body."""
    status, _, body = whole_answer(stream)
    return status, body


def whole_answer(stream: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    """Read one response; return status, headers and body."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    status, headers, body = 0, dict[bytes, bytes](), bytearray()
    while True:
        event = peer.next_event()
        if event is h11.NEED_DATA:
            peer.receive_data(stream.recv(1 << 20))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            return status, headers, bytes(body)


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    """Return a POST with a body of JSON type."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])
