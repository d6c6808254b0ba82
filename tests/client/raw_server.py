"""A server that answers what a test tells it to: bytes on a real socket, well formed or not."""

from __future__ import annotations

import contextlib
import http.server
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass
class Told:
    """What the server answers to everything, and what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Request lines."""
    said: list[Mapping[str, str]] = field(default_factory=list)
    """Headers of the requests."""
    url: str = ""


@contextlib.contextmanager
def answering(told: Told) -> Iterator[Told]:
    """Run the server; its address stands in `url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.asked.append(self.requestline)
            told.said.append(dict(self.headers))
            with contextlib.suppress(OSError):  # whoever asked has had enough
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

        # The names that http.server looks for.
        do_GET = do_POST = do_PATCH = do_DELETE = do_CONNECT = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        told.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
