"""What both colours of the client share: the way to the service, and what a call is in httpx's words."""

from __future__ import annotations

import importlib
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import httpx2

from embatch import network
from embatch.client import arguments
from embatch.client.calls import Environment
from embatch.client.local import Attachment, attach, default_data_folder
from embatch.client.receiving import ENCODINGS
from embatch.client.retry import NOT_SENT, Session
from embatch.client.targets import SOCKET_URL, resolve
from embatch.errors import ConnectionFailed, EmbatchError, InvalidArgument, printable

if TYPE_CHECKING:
    from embatch.client.calls import Call
    from embatch.client.providers.provider import Target

CONNECT_SECONDS = 10.0
_SAID = 300
"""Most characters of what a library says of a broken connection."""
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_WRONG = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL)


class BaseClient:
    """A client without its colour: target, attachment to the local service, and translations."""

    _transport: httpx2.BaseTransport | httpx2.AsyncBaseTransport | None

    def __init__(
        self, target: str, api_key: str | None, data: str | os.PathLike[str] | None, model: str | None
    ) -> None:
        arguments.optional_text("api_key", api_key)
        arguments.name_of_model(model)
        if data is not None and not isinstance(data, str | os.PathLike):
            arguments.refuse("data", "a path", data)
        folder = default_data_folder() if data is None else Path(data)
        found = resolve(arguments.text("target", target), key=api_key, data=folder, environ=os.environ)
        self._session = Session(found, Environment(time.monotonic, random.random))
        self._attachment: Attachment | None = None
        self._owner = os.getpid()
        self._closed = False
        self._model = model
        self._via = ""

    def __repr__(self) -> str:
        target = self._session.target
        return f"{type(self).__name__}({str(target.data or target.socket or target.url)!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: its connections are its own."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: share one among threads, "
            "and make one in each process"
        )

    def _fresh(self) -> bool:
        """Whether connections made so far can be used: not after a fork, nor once the service is gone."""
        if self._forked:
            return False
        return self._attachment is None or self._attachment.alive

    @property
    def _forked(self) -> bool:
        """Whether this is the copy in a forked child: its connections belong to the parent."""
        return self._owner != os.getpid()

    def _join(self) -> None:
        """Find the way to the service; blocks while the local one starts."""
        if self._closed:
            raise InvalidArgument("the client is closed: make another", field="client")
        self._owner = os.getpid()
        self._session.known.clear()
        if self._session.target.data is not None and self._transport is None:
            self._leave()
            importlib.import_module("httpcore2")  # what httpx2 would import once the service is there
            self._attachment = attach(self._session.target.data)

    def _leave(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None

    def _way(self) -> dict[str, Any]:
        """Return what httpx's transport takes: the socket, or the proxy and certificates of the address.

        Raises:
            InvalidArgument: a variable of the environment names a proxy or certificates that cannot be.
        """
        place = self._attachment and self._attachment.place
        socket = (place and place.socket) or self._session.target.socket
        self._via = ""
        if socket is not None or self._transport is not None:
            return {"uds": socket and str(socket), "verify": network.nobody(), "trust_env": False}
        found = network.route((place and place.url) or self._session.target.url)
        self._via = found.hint
        return {"proxy": found.proxy, "verify": found.verify, "trust_env": False}

    def _request(self, call: Call) -> dict[str, Any]:
        """Return the call in httpx's words."""
        target = self._session.target
        url = target.at(call.path)
        place = self._attachment and self._attachment.place.url
        if place and url.startswith(SOCKET_URL):
            url = place.rstrip("/") + url.removeprefix(SOCKET_URL)
        # An absolute address is its own credential and may lie elsewhere: the key stays at home.
        key = {} if url == call.path else target.headers
        return {
            "method": call.method,
            "url": url,
            "params": dict(call.query) or None,
            "headers": {"Accept-Encoding": ENCODINGS, **key, **call.headers},
            "content": call.body or None,
            "timeout": httpx2.Timeout(call.patience, connect=CONNECT_SECONDS),
        }

    def _translated(self, error: Exception) -> EmbatchError:
        """Return our error for one of httpx's. Never quotes headers: they hold the key."""
        target = self._session.target.url
        if isinstance(error, _WRONG):
            return InvalidArgument(
                f"{target}: no such call can be made ({type(error).__name__})", field="target"
            )
        via = self._via
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            via += network.trusting()
        said = printable(f"{type(error).__name__}: {error}".removesuffix(": "), _SAID)
        if isinstance(error, _UNSENT):
            return ConnectionFailed(f"cannot reach {target}{via} ({said})", reason=NOT_SENT)
        return ConnectionFailed(f"the connection to {target}{via} broke before an answer came ({said})")


def target_of(client: BaseClient) -> Target:
    """Return where a client's calls go, for runs and commands that ask what its provider can do."""
    return client._session.target  # noqa: SLF001  (the same module)
