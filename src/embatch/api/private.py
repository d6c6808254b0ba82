"""How long a private service lives: as long as a client is attached, and a while longer.

A client keeps `GET /private/attach` open and reads nothing from it; a client that dies drops its connection
with it. When nobody is attached any more the service lingers: it begins nothing, keeps its engines loaded for
the next client, and ends when none has come. It ends too when nobody ever came, and when it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import orjson
from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from embatch import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

FIRST_SECONDS: Final = 60.0
"""How long the first client may take to attach: it is importing its libraries meanwhile."""


class Attached:
    """Counts the attached clients; calls `abandoned` once when none is left. Lives in one event loop.

    Args:
        abandoned: ends the service.
        attended: told `False` when the last client has gone, and `True` when the next one has come.
        working: whether work of the last client is still under way.
        linger_seconds: how long to wait for the next client after the last has gone.
        first_seconds: how long to wait for the first one.
    """

    def __init__(
        self,
        abandoned: Callable[[], None],
        attended: Callable[[bool], None],
        working: Callable[[], bool],
        *,
        linger_seconds: float,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        self._abandoned, self._attended, self._working = abandoned, attended, working
        self._first_seconds, self._linger_seconds = first_seconds, linger_seconds
        self._expected = True
        self._leaving = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0
        """How many clients are attached."""

    def begin(self) -> None:
        """Start waiting for the first client; call once, in the running loop, when the service listens."""
        if self.count == 0:
            self._wait(self._first_seconds)

    def end(self) -> None:
        """Let all clients go: their streams end, so that they do not hold up the end of the service."""
        self._leaving.set()
        self._wait_no_more()

    def stop(self, *, lingering: bool = False) -> bool:
        """End the service; with `lingering` only if it does nothing else. Return whether it ends."""
        if lingering and not self._leaving.is_set() and (self.count or self._expected or self._working()):
            return False
        self._abandoned()
        return True

    @property
    def expected(self) -> bool:
        """Whether the service was started for a client that is still to come."""
        return self._expected

    @property
    def leaving(self) -> bool:
        """Whether the service ends."""
        return self._leaving.is_set()

    @contextlib.contextmanager
    def _client(self) -> Iterator[None]:
        self.count += 1
        self._wait_no_more()
        if self.count == 1 and not self._expected:
            self._attended(True)  # noqa: FBT003  (a callback has no names)
        self._expected = False
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0 and not self._leaving.is_set():
                self._attended(False)  # noqa: FBT003  (as above)
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
    """Return the routes of a private service."""
    routes = APIRouter()

    @routes.get(wire.ATTACH, include_in_schema=False)
    async def attach() -> Response:
        if attached.leaving:  # whoever comes now starts the next one
            return Response(status_code=503)
        return StreamingResponse(attached.hold(), media_type="application/octet-stream")

    @routes.post(wire.STOP, include_in_schema=False)
    async def stop(*, lingering: bool = False) -> Response:
        said = orjson.dumps({"clients": attached.count, "expected": attached.expected})
        ends = attached.stop(lingering=lingering)
        return Response(said, status_code=202 if ends else 409, media_type="application/json")

    return routes
