"""Where a client's calls go, by name: the local service, a service by its address or socket, a hosted API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from embatch.client import arguments
from embatch.client.providers import gemini, vertex_staging, vertex_target
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY: Final = "EMBATCH_API_KEY"
"""Variable of the key for a service of one's own: a provider's must not travel to somebody else's."""
SOCKET_URL: Final = "http://localhost"
"""The address put into requests that go through a socket; nobody resolves it."""
HOSTED: Final[dict[str, Callable[[str | None, Mapping[str, str]], Target]]] = {
    "gemini": gemini.target,
    "vertex": vertex_target.target,
}
"""Targets that are named and not addressed: each from the caller's key and the environment's variables."""


class _Unsaid(str):
    """The target of a caller who named none: it is `local`, and contradicts no `auth`."""

    __slots__ = ()


UNSAID: Final = _Unsaid("local")
AUTH: Final = {"gemini": "gemini", "vertex_ai": "vertex"}
"""The guide's word for whose keys are used, and the target that it means."""


def named(target: str, auth: str | None) -> str:
    """Return the name of the target that a caller means.

    Raises:
        InvalidArgument: there is no such `auth`, or it means another target than the one that is named.
    """
    if auth is None:
        return target
    if auth not in AUTH:
        words = " or ".join(f"`{one}`" for one in AUTH)
        raise InvalidArgument(f"auth is {words}, or left out", field="auth")
    if not isinstance(target, _Unsaid) and target != AUTH[auth]:
        raise InvalidArgument(
            f"auth={auth!r} means the target `{AUTH[auth]}`, and another one is named: leave one of them out",
            field="auth",
        )
    return AUTH[auth]


PLACES: Final = {
    "project": vertex_target.PROJECT,
    "location": vertex_target.LOCATION,
    "staging": vertex_staging.STAGING,
}
"""What says where batches run on `vertex`: arguments, and the variables that they come before."""


def placed(name: str, given: Mapping[str, str | None], environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment's variables with what a caller gave in their place.

    Args:
        name: of the target.
        given: by the names of `PLACES`; `None` for what was not given.
        environ: the variables.

    Raises:
        InvalidArgument: something was given for a target that has no such place.
    """
    said = {
        argument: arguments.text(argument, value) for argument, value in given.items() if value is not None
    }
    if said and name != "vertex":
        argument = next(iter(said))
        raise InvalidArgument(f"{argument} goes with `vertex`, and with no other target", field=argument)
    return {**environ, **{PLACES[argument]: value for argument, value in said.items()}}


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
    if (url := arguments.web_address(name)) is not None:
        return Target(url, EMBATCH, key=key)
    if (socket := _socket(name)) is not None:
        return Target(SOCKET_URL, EMBATCH, socket=socket, key=key)
    names = ", ".join(f"`{one}`" for one in ("local", *HOSTED))
    raise InvalidArgument(
        f"a target is {names}, a service's address such as http://host:8080, "
        "or its socket such as unix:/run/embatch.sock",
        field="target",
    )


def _socket(name: str) -> Path | None:
    try:
        parts = urlsplit(name)
    except ValueError:  # brackets that do not close
        return None
    clear = parts.path.startswith("/") and not parts.netloc and "\0" not in name
    return Path(parts.path) if parts.scheme == "unix" and clear else None
