"""Where a client's calls go, by name: the local service, a service by its address or socket, a hosted API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from embatch.client import arguments
from embatch.client.providers import gemini
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY: Final = "EMBATCH_API_KEY"
"""Variable of the key for a service of one's own: a provider's must not travel to somebody else's."""
SOCKET_URL: Final = "http://localhost"
"""The address put into requests that go through a socket; nobody resolves it."""
HOSTED: Final[dict[str, Callable[[str | None, Mapping[str, str]], Target]]] = {"gemini": gemini.target}
"""Targets that are named and not addressed: each from the caller's key and the environment's variables."""


def resolve(name: str, *, key: str | None, data: Path, environ: Mapping[str, str]) -> Target:
    """Return the target of a name: `local`, `http(s)://host`, `unix:/path`, or one of `HOSTED`.

    Args:
        name: what the caller gave `Client`.
        key: the caller's key; `None` takes a hosted provider's own variables, and `KEY` for a service by its
            address or socket.
        data: data folder of the local service.
        environ: where the variables are looked up.

    Raises:
        InvalidArgument: no such target.
        Unauthenticated: a hosted one without a key.
    """
    key = arguments.key("api_key", key)
    if name == "local":
        return Target(SOCKET_URL, EMBATCH, data=data.expanduser().absolute(), key=key)
    if name in HOSTED:
        return HOSTED[name](key, environ)
    key = key or arguments.key(KEY, environ.get(KEY)) or None
    try:
        parts = urlsplit(name)
        port = parts.port
    except ValueError:  # brackets that do not close, or a port that is none
        parts, port = urlsplit(""), None
    clear = name.isprintable() and " " not in parts.netloc
    web = parts.scheme in ("http", "https") and parts.hostname and port != 0 and clear
    if web and not parts.query and not parts.fragment:
        return Target(name.rstrip("/"), EMBATCH, key=key)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc and "\0" not in name:
        return Target(SOCKET_URL, EMBATCH, socket=Path(parts.path), key=key)
    named = ", ".join(f"`{one}`" for one in ("local", *HOSTED))
    raise InvalidArgument(
        f"a target is {named}, a service's address such as http://host:8080, "
        "or its socket such as unix:/run/embatch.sock",
        field="target",
    )
