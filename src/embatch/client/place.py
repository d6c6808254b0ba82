"""Where the service of a data folder listens: the note it leaves, and who holds the folder.

The note is `service.json`. It counts while who wrote it holds the folder's lock: a service that was killed
leaves it behind.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch import ownership

if TYPE_CHECKING:
    import http.client

_INSTANCE: Final = "Embatch-Instance"
_NOTE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service of a data folder listens, as `service.json` says."""

    pid: int
    socket: Path | None
    url: str | None
    """Set instead of `socket` when somebody runs `embatch serve --data` here on a port."""
    instance: str | None
    """What the service's answers name it in a header; `None` for an earlier version, which has no name."""

    def answered(self, reply: http.client.HTTPResponse) -> bool:
        """Return whether an answer is this service's."""
        return self.instance is None or reply.getheader(_INSTANCE) == self.instance


def read(data: Path) -> Place | None:
    """Return where the service of this folder listens, or listened before it was killed."""
    try:
        with os.fdopen(ownership.open_own(data / "service.json", os.O_RDONLY), "rb") as note:
            found = json.loads(note.read(_NOTE_BYTES))
        named = found.get("socket")
        return Place(
            int(found["pid"]), Path(named) if named else None, found.get("url"), found.get("instance")
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
