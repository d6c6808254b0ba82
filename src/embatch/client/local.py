"""The local target: a private service in the data folder, started when needed, shared by all its clients.

A client that starts it runs `python -m embatch.server` in a session of its own and finds it through
`service.json`. That note counts while who wrote it holds the folder's lock and answers by the name in it: a
service that was killed leaves it behind, and anybody may get its port. While it lives, a client keeps one
connection to `/private/attach` open and never uses it: the service counts these, works nothing while there
is none, and ends when none has come for a while. A client that dies, however, drops its connection with it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import platformdirs

from embatch import ownership, wire
from embatch.client.ending import may_join
from embatch.client.place import ask, holder, read
from embatch.client.starting import FOLDER_TAKEN, reap, start, why
from embatch.errors import EmbatchError, Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from embatch.client.place import Place
    from embatch.client.starting import Child

START_SECONDS: Final = 120.0
"""A service that does not listen by then is given up; it loads no model before it listens."""

_TOLD_TO_END: Final = 0


def default_data_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the data folder of the local service: EMBATCH_DATA, else the platform's place for user data."""
    named = (os.environ if environ is None else environ).get("EMBATCH_DATA")
    return Path(named) if named else platformdirs.user_data_path("embatch")


class Attachment:
    """One client's hold on the service of a data folder.

    Attributes:
        place: where the service listens.
    """

    def __init__(self, place: Place, connection: socket.socket | None) -> None:
        self.place = place
        self._connection = connection
        self._owner = os.getpid()
        _attachments.add(self)

    @property
    def alive(self) -> bool:
        """Whether the service still holds its end, and this is still the process that attached."""
        if self._owner != os.getpid():
            return False
        if self._connection is None:
            return True  # a service that lives without us: its own errors tell
        try:
            # The service sends a byte now and then; what has come is read away so that it never blocks.
            while self._connection.recv(4096):
                pass
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Let go of the service. Repeating is safe."""
        if self._connection is not None:
            self._connection.close()
        reap()


_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_begun: dict[Path, Child] = {}
"""Services that were started and not attached to yet, by data folder."""


def _let_go_after_fork() -> None:
    # A forked child that kept the connection would keep the service alive in its parent's name.
    for attachment in list(_attachments):
        if attachment._connection is not None:  # noqa: SLF001  (this module's own)
            attachment._connection.close()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


def attach(data: Path, seconds: float = START_SECONDS, *, preload: bool = True) -> Attachment:
    """Join the service that holds the data folder, or start one; return once it answers.

    Args:
        data: the data folder, absolute; made if it is not there.
        seconds: how long to wait for the service to listen.
        preload: as for `start`.

    Raises:
        InvalidArgument: the folder cannot be used, or is not this user's alone: nothing of it was believed.
        FailedPrecondition: no service runs here and the `local` extra is not installed.
        Unavailable: the service does not come up; the message names its log.
        FailedPrecondition: a service with other settings has work or clients here; see `may_join`.
    """
    ownership.check_folder(data)
    deadline = time.monotonic() + seconds
    child = _begun.pop(data, None)
    pause = 0.01
    while True:
        ending = False
        if (place := read(data)) and holder(data) == place.pid:
            ending = not may_join(data, place, os.environ)
            if not ending and (attachment := _try(place)):
                return attachment
        if ending and child is None:
            pass  # one that we started now would find the folder taken
        elif child is None:
            child = start(data, preload=preload)
        elif (code := child.poll()) is not None:
            if code not in (_TOLD_TO_END, FOLDER_TAKEN):
                raise Unavailable(why(data, f"the local service ended with code {code}"))
            child = None  # it ended before we came, or another one that holds the folder starts or ends
        if time.monotonic() > deadline:
            raise Unavailable(why(data, f"the local service did not answer within {seconds:.0f} s"))
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def begin(data: Path, *, preload: bool = True) -> None:
    """Start the service of a data folder, if none is noted there, without waiting: `attach` does.

    What the caller does meanwhile costs no time; `preload` is as for `start`. What goes wrong shows in
    `attach`.
    """
    data = data.expanduser().absolute()
    with contextlib.suppress(EmbatchError):
        ownership.check_folder(data)
        if data not in _begun and read(data) is None:
            _begun[data] = start(data, preload=preload)


def _try(place: Place) -> Attachment | None:
    """Attach to a service; `None` if nobody listens there any more, it ends, or a stranger answers."""
    if place.socket is None:
        return Attachment(place, None) if _answers(place) else None
    found = ask(place, "GET", wire.ATTACH)
    if found is None:
        return None
    line, reply = found
    if reply.status == 404:  # a service on a socket that somebody runs for good
        line.close()
        return Attachment(place, None)
    if reply.status != 200:
        line.close()
        return None
    line.settimeout(0.0)  # never blocks again
    return Attachment(place, line)


def _answers(place: Place) -> bool:
    """Ask for nothing but health, and see who answers."""
    speaker = None
    try:
        found = urlsplit(place.url or "")
        speaker = http.client.HTTPConnection(found.hostname or "", found.port, timeout=5.0)
        speaker.request("GET", "/healthz")
        return place.answered(speaker.getresponse())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        if speaker is not None:
            speaker.close()
