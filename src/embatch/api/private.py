"""How long a private service lives: as long as a client is attached.

A client keeps `GET /private/attach` open and reads nothing from it; a client that dies drops its connection
with it. The service ends when nobody has been attached for a moment, or when nobody ever came.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

FIRST_SECONDS: Final = 60.0
"""How long the first client may take to attach: it is importing its libraries meanwhile."""
LINGER_SECONDS: Final = 2.0
"""How long the service waits for the next client after the last has gone: scripts follow one another."""


class Attached:
    """Counts the attached clients; calls `abandoned` once when none is left. Lives in one event loop."""

    def __init__(
        self,
        abandoned: Callable[[], None],
        *,
        first_seconds: float = FIRST_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._abandoned = abandoned
        self._first_seconds = first_seconds
        self._linger_seconds = linger_seconds
        self._count = 0
        self._leaving = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Start waiting for the first client; call once, in the running loop, when the service listens."""
        if self._count == 0:
            self._wait(self._first_seconds)

    def end(self) -> None:
        """Let all clients go: their streams end, so that they do not hold up the end of the service."""
        self._leaving.set()
        self._wait_no_more()

    @contextlib.contextmanager
    def _client(self) -> Iterator[None]:
        self._count += 1
        self._wait_no_more()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0 and not self._leaving.is_set():
                self._wait(self._linger_seconds)

    async def hold(self) -> AsyncGenerator[bytes, None]:
        """Yield a byte at once, and end with the one client; nothing else comes that has to be read."""
        with self._client():
            yield b"\n"
            await self._leaving.wait()

    def _wait(self, seconds: float) -> None:
        self._wait_no_more()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._abandoned)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def router(attached: Attached) -> APIRouter:
    """Return the one route of a private service."""
    routes = APIRouter()

    @routes.get("/private/attach", include_in_schema=False)
    async def attach() -> StreamingResponse:
        return StreamingResponse(attached.hold(), media_type="application/octet-stream")

    return routes
