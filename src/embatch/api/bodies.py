"""Bodies on their way in: that of a query is read where it is needed, larger ones in threads of their own.

Reading a body of many megabytes takes half a second of a core. Nobody who polls, cancels or asks for health
waits behind it, nor does a query; and a body whose sender has gone is not read to its end. There are few such
threads, for each of them takes Python's lock from all others for some milliseconds at a time.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from anyio import CancelScope
from starlette.requests import ClientDisconnect

from embatch.api.limits import SMALL_BYTES
from embatch.api.waiting import WaitingLines
from embatch.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request
    from starlette.types import Receive

T = TypeVar("T")

QUERY_BYTES: Final = 4 << 10
"""A body up to this size is read within a millisecond."""
THREADS: Final = 1
"""Bodies read at once, of those up to `SMALL_BYTES` and of larger ones: more would only take turns."""


class BodyThreads:
    """Reads bodies that are larger than those of queries, apart from all other calls."""

    def __init__(self, threads: int = THREADS) -> None:
        self._lines = WaitingLines(threads, refusal="too many bodies wait to be read: come back later")

    async def read(
        self, request: Request, size: int, call: Callable[[Callable[[], None]], T]
    ) -> Callable[[], T]:
        """Return what gives the content of a body: it has been read, but that of a query is read then.

        Args:
            request: whose body it is; it has arrived.
            size: bytes of it.
            call: reads it, and calls what it is given every now and then.

        Raises:
            ClientDisconnect: its sender has gone.
            Unavailable: too many bodies of its size wait.
        """
        if size <= QUERY_BYTES:
            return partial(call, _go_on)
        gone = threading.Event()

        def pulse() -> None:
            if gone.is_set():
                raise ClientDisconnect

        with CancelScope() as waiting:
            watch = asyncio.create_task(_watch(request.receive, gone, waiting))
            try:
                content = await self._lines.run("small" if size <= SMALL_BYTES else "large", call, pulse)
            finally:
                watch.cancel()
            return lambda: content
        raise ClientDisconnect


async def _watch(receive: Receive, gone: threading.Event, waiting: CancelScope) -> None:
    """Tell whoever reads a body, or waits to, that its sender has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()
    waiting.cancel()


def _go_on() -> None:
    pass


async def large_body(request: Request, what: str = "the body", most: int | None = None) -> bytearray:
    """Return a body as it has arrived. To join its pieces at the end would hold everybody up.

    Args:
        request: whose body it is.
        what: it is, for the error.
        most: bytes it may have; `None`: the connection has seen to that.

    Raises:
        TooLarge: it has more.
    """
    body = bytearray()
    async for data in request.stream():
        body += data
        if most is not None and len(body) > most:
            raise TooLarge(f"{what} may have {most} bytes", field="body")
    return body


async def small_body(request: Request, what: str, most: int = SMALL_BYTES) -> bytes:
    """Return a body that says a few words. Raises TooLarge, naming `what` it is."""
    return bytes(await large_body(request, what, most))
