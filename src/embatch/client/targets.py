"""Where a client's calls go: the local service, a service by its address or socket, Google's own API.

All speak the same wire; a target says at which address and what it can do beyond Google's protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from embatch.client import arguments
from embatch.errors import InvalidArgument, Unauthenticated
from embatch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

GEMINI_URL: Final = "https://generativelanguage.googleapis.com"
GEMINI_MODEL: Final = "gemini-embedding-001"
KEY: Final = "EMBATCH_API_KEY"
"""Variable of the key for a service of one's own: Google's must not travel to somebody else's."""
SOCKET_URL: Final = "http://localhost"
"""The address put into requests that go through a socket; nobody resolves it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One place where batches run, and what it can do. The key is never shown in its `repr`."""

    url: str
    """Address with scheme, host and perhaps a path before `/v1`; no slash at its end."""
    version: str = "v1"
    socket: Path | None = None
    """Unix socket through which `url` is reached; `None` for TCP."""
    data: Path | None = None
    """Data folder of the local service, started or joined as needed; `None` for all other targets."""
    key: str | None = field(default=None, repr=False)
    ours: bool = True
    """Whether it is an embatch service: it then takes an idempotency key, answers polls without output
    (`view=BASIC`), reads Arrow files and gives results as an Arrow stream."""
    model: str | None = None
    """Model where the caller names none; `None` asks the service for its first one."""
    inline_bytes: int = Settings().inline_bytes
    """Largest body of a submit; more goes through a file."""
    inline_requests: int = 1_000
    """Most requests of a submit; more goes through a file: its Arrow costs a quarter of what JSON does."""
    interactive_requests: int = Settings().interactive_requests
    """Most texts of one `batch_embed_contents` call on the wire."""

    @property
    def headers(self) -> dict[str, str]:
        """What every call to the target's own address carries."""
        return {} if self.key is None else {"x-goog-api-key": self.key}

    def at(self, path: str) -> str:
        """Return the address of a path below the target; an absolute address stays as it is."""
        return path if "://" in path else self.url + path


def resolve(name: str, *, key: str | None, data: Path, environ: Mapping[str, str]) -> Target:
    """Return the target of a name: `local`, `http(s)://host`, `unix:/path`, `gemini`.

    Args:
        name: what the caller gave `Client`.
        key: the caller's key; `None` takes Google's variables for `gemini`, and `KEY` for a service by its
            address or socket.
        data: data folder of the local service.
        environ: where the variables are looked up; GOOGLE_API_KEY wins over GEMINI_API_KEY.

    Raises:
        InvalidArgument: no such target.
        Unauthenticated: `gemini` without a key.
    """
    key = arguments.key("api_key", key)
    if name == "local":
        return Target(SOCKET_URL, data=data.expanduser().absolute(), key=key)
    if name == "gemini":
        return _gemini(key or environ.get("GOOGLE_API_KEY") or environ.get("GEMINI_API_KEY"))
    key = key or arguments.key(KEY, environ.get(KEY)) or None
    try:
        parts = urlsplit(name)
        port = parts.port
    except ValueError:  # brackets that do not close, or a port that is none
        parts, port = urlsplit(""), None
    clear = name.isprintable() and " " not in parts.netloc
    web = parts.scheme in ("http", "https") and parts.hostname and port != 0 and clear
    if web and not parts.query and not parts.fragment:
        return Target(name.rstrip("/"), key=key)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc and "\0" not in name:
        return Target(SOCKET_URL, socket=Path(parts.path), key=key)
    raise InvalidArgument(
        "a target is `local`, `gemini`, a service's address such as http://host:8080, "
        "or its socket such as unix:/run/embatch.sock",
        field="target",
    )


def _gemini(key: str | None) -> Target:
    if not (key := arguments.key("api_key", key)):
        raise Unauthenticated(
            "the gemini target needs a key: set GOOGLE_API_KEY or GEMINI_API_KEY, or pass api_key=",
            field="api_key",
        )
    return Target(
        GEMINI_URL,
        version="v1beta",  # Google's v1 has batches but neither files nor uploads
        key=key,
        ours=False,
        model=GEMINI_MODEL,
        # Every poll of a finished inline batch carries all results, twice: above this a file is lighter.
        inline_requests=1_000,
        inline_bytes=19 << 20,  # "under 20 MB", the envelope included
    )
