"""The local target: a private service in the data folder, started when needed, shared by all its clients.

A client that starts it runs `python -m embatch.server` in a session of its own and finds it through
`service.json`. That note counts while who wrote it holds the folder's lock and answers by the name in it: a
service that was killed leaves it behind, and anybody may get its port. While it lives, a client keeps one
connection to `/private/attach` open and never uses it: the service counts these and ends when none is left. A
client that dies, however, drops its connection with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import platformdirs

from embatch import ownership
from embatch.errors import EmbatchError, FailedPrecondition, InvalidArgument, Unavailable, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

START_SECONDS: Final = 120.0
"""A service that does not listen by then is given up; it loads no model before it listens."""
_FOLDER_TAKEN: Final = 75
_INSTANCE: Final = "Embatch-Instance"
_NEEDED: Final = ("fastapi", "uvicorn", "sqlalchemy", "alembic")
_LOG_BYTES: Final = 8 << 20
_SAID_BYTES: Final = 16 << 10
"""Of the log, from its end, where it has to say why a service did not come up."""
_NOTE_BYTES: Final = 64 << 10


def default_data_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the data folder of the local service: EMBATCH_DATA, else the platform's place for user data."""
    named = (os.environ if environ is None else environ).get("EMBATCH_DATA")
    return Path(named) if named else platformdirs.user_data_path("embatch")


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


class _Child(subprocess.Popen[bytes]):
    """The service's process. It outlives this object on purpose, so its end is not warned about."""

    def __del__(self) -> None:
        pass


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
        _reap()


_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_children: list[_Child] = []
_begun: dict[Path, _Child] = {}
"""Services that were started and not attached to yet, by data folder."""


def _let_go_after_fork() -> None:
    # A forked child that kept the connection would keep the service alive in its parent's name.
    for attachment in list(_attachments):
        if attachment._connection is not None:  # noqa: SLF001  (this module's own)
            attachment._connection.close()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


def attach(data: Path, seconds: float = START_SECONDS) -> Attachment:
    """Join the service that holds the data folder, or start one; return once it answers.

    Args:
        data: the data folder, absolute; made if it is not there.
        seconds: how long to wait for the service to listen.

    Raises:
        InvalidArgument: the folder cannot be used, or is not this user's alone: nothing of it was believed.
        FailedPrecondition: no service runs here and the `local` extra is not installed.
        Unavailable: the service does not come up; the message names its log.
    """
    ownership.check_folder(data)
    deadline = time.monotonic() + seconds
    child = _begun.pop(data, None)
    pause = 0.01
    while True:
        if (place := _read(data)) and _holder(data) == place.pid and (attachment := _try(place)):
            return attachment
        if child is None:
            child = _start(data)
        elif (code := child.poll()) is not None:
            if code != _FOLDER_TAKEN:
                raise Unavailable(_why(data, f"the local service ended with code {code}"))
            child = None  # another one holds the folder: it is starting, or just ending
        if time.monotonic() > deadline:
            raise Unavailable(_why(data, f"the local service did not answer within {seconds:.0f} s"))
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def begin(data: Path) -> None:
    """Start the service of a data folder, if none is noted there, without waiting: `attach` does.

    What the caller does meanwhile costs no time. What goes wrong shows in `attach`.
    """
    data = data.expanduser().absolute()
    with contextlib.suppress(EmbatchError):
        ownership.check_folder(data)
        if data not in _begun and _read(data) is None:
            _begun[data] = _start(data)


def _read(data: Path) -> Place | None:
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


def _holder(data: Path) -> int | None:
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


def _try(place: Place) -> Attachment | None:
    """Attach to a service; `None` if nobody listens there any more, or a stranger does."""
    if place.socket is None:
        return Attachment(place, None) if _answers(place) else None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(10.0)
        line.connect(str(place.socket))
        speaker = http.client.HTTPConnection("localhost")
        speaker.sock = line
        speaker.request("GET", "/private/attach")
        status = http.client.HTTPResponse(line, method="GET")
        status.begin()
    except (OSError, http.client.HTTPException):
        line.close()
        return None
    if not place.answered(status):
        line.close()
        return None
    if status.status == 404:  # a service on a socket that somebody runs for good
        line.close()
        return Attachment(place, None)
    if status.status != 200:
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


def _start(data: Path) -> _Child:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f'the local service needs {", ".join(missing)}: pip install "embatch[local]", '
            "or name a service's address as the target",
            field="target",
        )
    if not sys.executable:
        raise FailedPrecondition(
            "this Python does not know its own path, so it cannot start the local service: run "
            "`embatch serve` and name its address as the target",
            field="target",
        )
    try:
        ownership.make_folder(data)
        log = ownership.open_own(_log(data), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise InvalidArgument(f"the data folder cannot be used: {error}", field="data") from None
    try:
        if os.fstat(log).st_size > _LOG_BYTES:
            os.ftruncate(log, 0)
        child = _Child(
            [sys.executable, "-m", "embatch.server", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # The folder a user happens to work in must not shadow the service's modules.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    finally:
        os.close(log)
    _reap()
    _children.append(child)
    return child


def _reap() -> None:
    """Take leave of services that we started and that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def _log(data: Path) -> Path:
    return data / "service.log"


def _why(data: Path, what: str) -> str:
    lines: list[str] = []
    with contextlib.suppress(OSError), os.fdopen(ownership.open_own(_log(data), os.O_RDONLY), "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _SAID_BYTES))
        lines = log.read().decode(errors="replace").splitlines()[-5:]
    said = "".join(f"\n  {printable(line, 300)}" for line in lines)
    return f"{what}; its log is {_log(data)}{':' if said else ''}{said}"


def service_cpu_seconds(attachment: Attachment) -> float | None:
    """Return the CPU seconds that a service with its engine processes has spent so far.

    `None` where the system does not tell (Linux does).
    """
    spent: dict[int, tuple[int, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            numbers = (entry / "stat").read_text().rpartition(")")[2].split()
            # After the name: state, parent, …; 11 to 14 are user and system time, own and of ended children.
            spent[int(entry.name)] = (int(numbers[1]), sum(map(int, numbers[11:15])) / tick)
    root = attachment.place.pid
    if root not in spent:
        return None
    family, total = [root], 0.0
    for pid in family:
        total += spent[pid][1]
        family += [child for child, (parent, _) in spent.items() if parent == pid]
    return total
