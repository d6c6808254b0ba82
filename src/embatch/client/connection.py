"""The way to a target: the hold on the local service, and the HTTP client that calls go through.

A client has one and shares it with what is made of it. Nothing is connected before it is needed; what a fork
or the service's end made useless is made anew.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import httpx2

from embatch import network
from embatch.client import arguments
from embatch.client.local import Attachment, attach
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from embatch.client.retry import Session

_GIVEN = "http_client"


class BaseConnection:
    """A connection without its colour.

    Args:
        session: where to, and what the service said of itself, which is forgotten when another may answer.
        given: what the caller brought for requests to travel by; `None` takes the network.

    Attributes:
        attachment: the hold on the local service; `None` for other targets, and before the first call.
        via: what an error has to say of the way; empty for the straight one.
    """

    def __init__(self, session: Session, given: object | None) -> None:
        self.attachment: Attachment | None = None
        self.via = ""
        self._target, self._known = session.target, session.known
        self._own_way = given is not None
        self._owner = os.getpid()
        self._closed = False

    def _fresh(self) -> bool:
        """Whether connections made so far can be used: not after a fork, nor once the service is gone."""
        if self._forked:
            return False
        return self.attachment is None or self.attachment.alive

    @property
    def _forked(self) -> bool:
        """Whether this is the copy in a forked child: its connections belong to the parent."""
        return self._owner != os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument("the client is closed: make another", field="client")

    def _check_given(self, *, closed: bool) -> None:
        """Refuse the caller's HTTP client where it cannot be used; no other can be made in its place."""
        self._check_open()
        if closed:
            raise InvalidArgument("http_client is closed: make another, and a client with it", field=_GIVEN)
        if self._forked:
            raise InvalidArgument(
                "http_client was made in another process: make one, and a client, in each", field=_GIVEN
            )

    def _check_kind(self, given: object, kind: type) -> None:
        """Refuse what is no HTTP client of this colour, and one that could not reach the target."""
        if not isinstance(given, kind):
            arguments.refuse(_GIVEN, f"an httpx2.{kind.__name__}", given)
        if self._target.data is not None or self._target.socket is not None:
            raise InvalidArgument(
                "http_client goes with an address or with `gemini`: the way to the local service, or to a "
                "socket, is the client's own",
                field=_GIVEN,
            )

    def _join(self) -> None:
        """Find the way to the service; blocks while the local one starts."""
        self._check_open()
        self._owner = os.getpid()
        self._known.clear()
        if self._target.data is not None and not self._own_way:
            self._leave()
            importlib.import_module("httpcore2")  # what httpx2 would import once the service is there
            self.attachment = attach(self._target.data, preload=self._target.preload)

    def _leave(self) -> None:
        if self.attachment is not None:
            self.attachment.close()
            self.attachment = None

    def _way(self) -> dict[str, Any]:
        """Return what httpx's transport takes: the socket, or the proxy and certificates of the address.

        Raises:
            InvalidArgument: a variable of the environment names a proxy or certificates that cannot be.
        """
        place = self.attachment and self.attachment.place
        socket = (place and place.socket) or self._target.socket
        self.via = ""
        if socket is not None or self._own_way:
            return {"uds": socket and str(socket), "verify": network.nobody(), "trust_env": False}
        found = network.route((place and place.url) or self._target.url)
        self.via = found.hint
        return _taken(found)

    def _other_ways(self) -> dict[str, dict[str, Any]]:
        """Return the same for each other address that calls go to: it may have a proxy of its own."""
        return {} if self._own_way else {url: _taken(network.route(url)) for url in self._target.others}


def _taken(found: network.NetworkRoute) -> dict[str, Any]:
    return {"proxy": found.proxy, "verify": found.verify, "trust_env": False}


def _check_one_way(given: object | None, transport: object | None) -> None:
    """Refuse two ways at once, and say what takes the place of the older one."""
    if transport is None:
        return
    if given is not None:
        raise InvalidArgument("give http_client or transport, not both", field=_GIVEN)
    warnings.warn(
        "transport= goes with the next release: give http_client=httpx2.Client(transport=…), or an "
        "httpx2.AsyncClient to AsyncClient, and close it yourself",
        DeprecationWarning,
        stacklevel=4,
    )


class Connection(BaseConnection):
    """The connection of the blocking client; threads may share it."""

    def __init__(
        self, session: Session, given: httpx2.Client | None, transport: httpx2.BaseTransport | None
    ) -> None:
        _check_one_way(given, transport)
        super().__init__(session, given or transport)
        if given is not None:
            self._check_kind(given, httpx2.Client)
        self._given, self._transport = given, transport
        self._http: httpx2.Client | None = None
        self._lock = threading.Lock()

    def http(self) -> httpx2.Client:
        """Return what to send through, connected as far as that is needed. Raises EmbatchError."""
        if self._given is not None:
            self._check_given(closed=self._given.is_closed)
            return self._given
        with self._lock:
            if self._http is None or not self._fresh():
                if self._http is not None and not self._forked:
                    self._http.close()
                self._join()
                way = self._way()
                mounts = {url: httpx2.HTTPTransport(**other) for url, other in self._other_ways().items()}
                transport = self._transport or httpx2.HTTPTransport(**way)
                self._http = httpx2.Client(transport=transport, mounts=mounts, trust_env=False)
            return self._http

    def close(self) -> None:
        """Close what was opened here, for good. Repeating is safe."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None and not self._forked:
            http.close()
        self._leave()


class AsyncConnection(BaseConnection):
    """The connection of the client for asyncio."""

    def __init__(
        self, session: Session, given: httpx2.AsyncClient | None, transport: httpx2.AsyncBaseTransport | None
    ) -> None:
        _check_one_way(given, transport)
        super().__init__(session, given or transport)
        if given is not None:
            self._check_kind(given, httpx2.AsyncClient)
        self._given, self._transport = given, transport
        self._http: httpx2.AsyncClient | None = None
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def http(self) -> httpx2.AsyncClient:
        """As `Connection.http`."""
        if self._given is not None:
            self._check_given(closed=self._given.is_closed)
            return self._given
        if self._loop is not asyncio.get_running_loop():
            # A second `asyncio.run`: connections and locks belong to the loop they were made in.
            self._loop, self._lock, self._http = asyncio.get_running_loop(), asyncio.Lock(), None
        async with self._lock:
            if self._http is None or not self._fresh():
                if self._http is not None and not self._forked:
                    await self._http.aclose()
                await asyncio.to_thread(self._join)
                way = await asyncio.to_thread(self._way)
                others = await asyncio.to_thread(self._other_ways)
                mounts = {url: httpx2.AsyncHTTPTransport(**other) for url, other in others.items()}
                transport = self._transport or httpx2.AsyncHTTPTransport(**way)
                self._http = httpx2.AsyncClient(transport=transport, mounts=mounts, trust_env=False)
            return self._http

    async def close(self) -> None:
        """As `Connection.close`."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None and not self._forked and self._loop is asyncio.get_running_loop():
            await http.aclose()
        self._leave()
