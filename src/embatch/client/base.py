"""What both colours of the client share: how it is set up, and what a call is in httpx's words."""

from __future__ import annotations

import inspect
import os
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import httpx2

from embatch import network
from embatch.backoff import POLL, SUBMIT
from embatch.client import arguments, rate
from embatch.client.calls import NOT_SENT, Environment
from embatch.client.journal import Journal
from embatch.client.local import default_data_folder
from embatch.client.rate import Budget
from embatch.client.receiving import ENCODINGS
from embatch.client.retry import Session
from embatch.client.targets import HOSTED, SOCKET_URL, named, placed, resolve
from embatch.errors import ConnectionFailed, EmbatchError, InvalidArgument, printable

if TYPE_CHECKING:
    from embatch.client.calls import Await, Call
    from embatch.client.connection import BaseConnection
    from embatch.client.providers.provider import Target

CONNECT_SECONDS = 10.0
_SAID = 300
"""Most characters of what a library says of a broken connection."""
_FOREVER = 1e9
"""Seconds: a socket takes no time-out that is much longer."""
_RETRIES = range(1_000_001)
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_WRONG = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client is set up, as its caller said it."""

    target: str
    base_url: str | None
    api_key: str | None = field(repr=False)
    data: str | os.PathLike[str] | None
    model: str | None
    timeout: float | None
    max_retries: int | None
    auth: str | None = None
    project: str | None = None
    location: str | None = None
    staging: str | None = None
    rate: int | tuple[int, int] | None = None
    journal: bool = True

    @property
    def folder(self) -> Path:
        """The data folder, named or not."""
        return default_data_folder() if self.data is None else Path(self.data)

    def resolved(self) -> Target:
        """Return the target. Raises InvalidArgument naming the argument, and Unauthenticated."""
        arguments.optional_text("api_key", self.api_key)
        if self.data is not None and not isinstance(self.data, str | os.PathLike):
            arguments.refuse("data", "a path", self.data)
        data = self.folder
        name = named(arguments.text("target", self.target), arguments.optional_text("auth", self.auth))
        base = arguments.optional_text("base_url", self.base_url)
        given = {"project": self.project, "location": self.location, "staging": self.staging}
        environ = placed(name, given, os.environ)
        if base is None:
            found = resolve(name, key=self.api_key, data=data, environ=environ)
            return replace(found, preload=self.model is None)
        if name != "local" and name not in HOSTED:
            hosted = " or ".join(f"`{one}`" for one in HOSTED)
            raise InvalidArgument(
                f"base_url goes with {hosted}, or alone: the address of a service is its target",
                field="base_url",
            )
        if not base.lower().startswith(("http://", "https://")):
            raise InvalidArgument(_ADDRESS, field="base_url")
        try:
            place = resolve(base, key=self.api_key, data=data, environ=os.environ)
        except InvalidArgument as error:
            if error.field != "target":
                raise
            raise InvalidArgument(_ADDRESS, field="base_url") from None
        if name == "local" and self.data is not None:
            raise InvalidArgument(
                "base_url is a service's address, and data the folder of one here: give one of them",
                field="data",
            )
        if name == "local":
            return place
        return replace(resolve(name, key=self.api_key, data=data, environ=environ), url=place.url)


_ADDRESS = "base_url must be an address such as https://host:8080"


class BaseClient:
    """What `Client` and `AsyncClient` have in common."""

    _connection: BaseConnection

    def __init__(self, options: ClientOptions) -> None:
        arguments.name_of_model(options.model)
        target, self._folder = options.resolved(), options.folder
        journal = Journal(self._folder) if arguments.flag("journal", options.journal) else None
        budget, outside = Budget(rate.checked(options.rate)), Environment(time.monotonic, random.random)
        self._session = Session(target, outside, budget=budget, journal=journal)
        self._model = options.model
        self._timeout: float | None = None
        self._is_copy = False
        self._set(options.timeout, options.max_retries)

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """Return a copy with other options, for one call or some; it shares the connections.

            client.with_options(timeout=5, max_retries=0).embed_content("who waits?")

        The copy need not be closed; it can be used until the client that it was made of is.

        Args:
            timeout: as of the client; `None` keeps its own.
            max_retries: as of the client; `None` keeps its own.

        Raises:
            InvalidArgument: an option cannot be so.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._is_copy = True
        copy._set(timeout, max_retries)
        return copy

    def _journalled(self, journal: bool | None) -> Session:  # noqa: FBT001  (as its caller has it)
        """Return the session of one submit, with or without a journal; `None` for as the client has it."""
        if journal is None:
            return self._session
        kept = Journal(self._folder) if arguments.flag("journal", journal) else None
        return replace(self._session, journal=kept)

    def _set(self, timeout: float | None, max_retries: int | None) -> None:
        """Take over the options that are given."""
        seconds = arguments.seconds("timeout", timeout)
        if seconds == 0:
            raise InvalidArgument("timeout must be more than 0 seconds", field="timeout")
        self._timeout = self._timeout if seconds is None else seconds
        retries = arguments.optional_whole("max_retries", max_retries, _RETRIES)
        if retries is not None:
            submit, poll = replace(SUBMIT, attempts=retries + 1), replace(POLL, attempts=retries + 1)
            self._session = replace(self._session, submit=submit, poll=poll)

    def __repr__(self) -> str:
        target = self._session.target
        return f"{type(self).__name__}({str(target.data or target.socket or target.url)!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: its connections are its own."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: share one among threads, "
            "and make one in each process"
        )

    def _asynchronous(self, step: Await) -> InvalidArgument:
        """Return the blocking client's error for what only asyncio can await."""
        if inspect.iscoroutine(step.what):
            step.what.close()
        return InvalidArgument(
            f"{step.argument} is asynchronous, which AsyncClient takes", field=step.argument
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
        key = target.headers if call.signed or url != call.path else {}
        return {
            "method": call.method,
            "url": url,
            "params": dict(call.query) or None,
            "headers": {"Accept-Encoding": ENCODINGS, **key, **call.headers},
            "content": call.body or None,
            "timeout": self._timeouts(call.patience),
            # Another host would be sent the key, whatever the caller's own HTTP client is set to.
            "follow_redirects": False,
        }

    def _timeouts(self, patience: float) -> httpx2.Timeout:
        if self._timeout is None:
            return httpx2.Timeout(patience, connect=CONNECT_SECONDS)
        return httpx2.Timeout(self._timeout if self._timeout < _FOREVER else None)

    def _translated(self, error: Exception, call: Call) -> EmbatchError:
        """Return our error for one of httpx's. Never quotes headers: they hold the key."""
        target = self._session.target.place_of(call)
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


def target_of(client: BaseClient) -> Target:
    """Return where a client's calls go, for runs and commands that ask what its provider can do."""
    return client._session.target  # noqa: SLF001  (the same module)


def budget_of(client: BaseClient) -> Budget:
    """Return how fast a client's texts are embedded at once, for whoever asks beside it."""
    return client._session.budget  # noqa: SLF001  (the same module)


def set_environment(client: BaseClient, environment: Environment) -> None:
    """Have a client take time and chance from elsewhere, as a test does that waits for nothing."""
    client._session = replace(client._session, outside=environment)  # noqa: SLF001  (the same module)
