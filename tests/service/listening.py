"""A rig's service behind the real connection, on a socket of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn
from service_rig import WITHIN

from embatch.api.app import create_app
from embatch.api.limits import Bounds
from embatch.server.http_protocol import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service_rig import Rig

    from embatch.api.auth import Access


class Server(uvicorn.Server):
    """A server in a thread, which says when it listens."""

    listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def listening(rig: Rig, access: Access | None = None) -> Iterator[str]:
    """Serve a rig's service on a socket; yield the address of its first version."""
    http = guarded(Bounds.of(rig.settings, None), access)
    app = create_app(rig.service, rig.settings)
    server = Server(uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None))
    server.listening = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as stream:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [stream]})
        thread.start()
        try:
            assert server.listening.wait(WITHIN)
            yield f"http://127.0.0.1:{stream.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
