"""What both colours of the client share: the way to the service, and what a call is in httpx's words."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import httpx2

from embatch import network
from embatch.client import arguments
from embatch.client.calls import Environment
from embatch.client.local import default_data_folder
from embatch.client.receiving import ENCODINGS
from embatch.client.retry import NOT_SENT, Session
from embatch.client.targets import SOCKET_URL, resolve
from embatch.errors import ConnectionFailed, EmbatchError, InvalidArgument, printable

if TYPE_CHECKING:
    from embatch.client.calls import Call
    from embatch.client.connection import BaseConnection

CONNECT_SECONDS = 10.0
_SAID = 300
"""Most characters of what a library says of a broken connection."""
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_WRONG = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL)


class BaseClient:
    """A client without its colour: target, attachment to the local service, and translations."""

    _connection: BaseConnection

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
        self._model = model

    @property
    def ours(self) -> bool:
        """Whether the target is an embatch service, private or not; else it is Google's."""
        return self._session.target.ours

    @property
    def local(self) -> bool:
        """Whether the target is the private service of this machine, whose clock is then ours too."""
        return self._session.target.data is not None

    def __repr__(self) -> str:
        target = self._session.target
        return f"{type(self).__name__}({str(target.data or target.socket or target.url)!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: its connections are its own."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: share one among threads, "
            "and make one in each process"
        )

    def _request(self, call: Call) -> dict[str, Any]:
        """Return the call in httpx's words."""
        target = self._session.target
        url = target.at(call.path)
        attachment = self._connection.attachment
        place = attachment and attachment.place.url
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
        via = self._connection.via
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            via += network.trusting()
        said = printable(f"{type(error).__name__}: {error}".removesuffix(": "), _SAID)
        if isinstance(error, _UNSENT):
            return ConnectionFailed(f"cannot reach {target}{via} ({said})", reason=NOT_SENT)
        return ConnectionFailed(f"the connection to {target}{via} broke before an answer came ({said})")
