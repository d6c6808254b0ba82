"""Where the service of a data folder listens: the note it leaves, who holds the folder, and a call by hand.

The note is `service.json`. It counts while who wrote it holds the folder's lock: a service that was killed
leaves it behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch import ownership, wire

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service of a data folder listens and what it says of itself, as in `service.json`.

    Whatever an earlier version does not say is `None`.
    """

    pid: int
    socket: Path | None
    url: str | None
    """Set instead of `socket` when somebody runs `embatch serve --data` here on a port."""
    instance: str | None
    """What the service's answers name it in a header."""
    private: bool | None
    """Whether clients started it, and it ends with them."""
    wire: int | None
    """Version of what clients and it say to each other."""
    installation: str | None
    """Which copy of embatch it runs from."""
    vectors: str | None
    """Digest of the settings that its vectors depend on; `None` too where clients take what there is."""
    settings: Mapping[str, str]
    """Those settings."""

    def answered(self, reply: http.client.HTTPResponse) -> bool:
        """Return whether an answer is this service's."""
        return self.instance is None or reply.getheader(wire.INSTANCE) == self.instance


def read(data: Path) -> Place | None:
    """Return where the service of this folder listens, or listened before it was killed."""
    try:
        with os.fdopen(ownership.open_own(data / "service.json", os.O_RDONLY), "rb") as note:
            found = json.loads(note.read(_NOTE_BYTES))
        named, settings = found.get("socket"), found.get("settings")
        return Place(
            pid=int(found["pid"]),
            socket=Path(named) if named else None,
            url=found.get("url"),
            instance=found.get("instance"),
            private=found.get("private"),
            wire=found.get("wire"),
            installation=found.get("installation"),
            vectors=found.get("vectors"),
            settings=settings if isinstance(settings, dict) else {},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def holder(data: Path) -> int | None:
    """Return the process id of the service that holds the data folder, `None` if none does."""
    try:
        lock = ownership.open_own(data / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # At once: a service that starts is trying to take it. Closing alone would leave it to a forked child.
        fcntl.flock(lock, fcntl.LOCK_UN)
    except BlockingIOError:
        said = os.pread(lock, 32, 0).strip()
        return int(said) if said.isdigit() else None
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def ask(place: Place, method: str, path: str) -> tuple[socket.socket, http.client.HTTPResponse] | None:
    """Ask the service at a socket by hand; return the connection, to be closed, and the head of its answer.

    `None`: nobody listens there any more, or a stranger does.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(10.0)
        line.connect(str(place.socket))
        speaker = http.client.HTTPConnection("localhost")
        speaker.sock = line
        speaker.request(method, path)
        reply = http.client.HTTPResponse(line, method=method)
        reply.begin()
    except (OSError, http.client.HTTPException):
        line.close()
        return None
    if not place.answered(reply):
        line.close()
        return None
    return line, reply


def told(place: Place, method: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """Ask as `ask` does; return the status and, where the answer is one, the JSON object."""
    found = ask(place, method, path)
    if found is None:
        return None
    line, reply = found
    with line:
        said: Any = None
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            said = json.loads(reply.read(_NOTE_BYTES))
        return reply.status, said if isinstance(said, dict) else {}
