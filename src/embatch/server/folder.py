"""The data folder as the running service holds it: its lock, its socket, and the note of where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch import ownership, wire
from embatch.errors import FailedPrecondition, InvalidArgument, Unavailable
from embatch.settings import digest, installation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NOTE: Final = "service.json"
_TRIES: Final = 50
_BETWEEN_TRIES: Final = 0.01
_SOCKET_BYTES: Final = 100
"""Longest path of a Unix socket that every platform takes (Linux 108, macOS 104, both with a zero byte)."""


class FolderTaken(ownership.Taken):
    """Another service holds the data folder; the message names it."""


@contextlib.contextmanager
def locked(folder: Path, *, wait: Callable[[float], object] = time.sleep) -> Iterator[None]:
    """Make the data folder if needed (0700) and hold it: one service at a time.

    The lock is the kernel's (flock on a file of its own, not inherited by child processes), so it ends with
    this process however that ends. What a dead service noted is removed. `wait` passes the seconds between
    two tries.

    Raises:
        FolderTaken: another service holds it.
        InvalidArgument: there is no such folder and none can be made, or it is not this user's alone.
    """
    try:
        ownership.make_folder(folder)
        lock = ownership.open_own(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InvalidArgument(
            f"the data folder {folder} cannot be used: {error.strerror}", field="--data"
        ) from error
    try:
        if not _taken(lock, wait):
            raise FolderTaken(_holder(folder, lock))
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        (folder / NOTE).unlink(missing_ok=True)
        yield
    finally:
        os.close(lock)


def _taken(lock: int, wait: Callable[[float], object]) -> bool:
    """Take the lock. A client that looks whether somebody has it may hold it for an instant."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        wait(_BETWEEN_TRIES)
    return False


def _holder(folder: Path, lock: int) -> str:
    pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
    place = ""
    with contextlib.suppress(OSError, ValueError, KeyError):
        about = json.loads((folder / NOTE).read_text())
        if str(about["pid"]) == pid:
            place = f", which listens at {about['url'] or about['socket']}"
    return f"the data folder {folder} is in use by the service with process id {pid}{place}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket that does not listen yet, and how to reach it."""

    stream: socket.socket
    url: str | None
    """`http://host:port`; `None` for a Unix socket."""
    path: Path | None
    """Path of the Unix socket; `None` for TCP."""
    node: int = 0
    """Inode of the socket's path, not used again while the socket is open: a folder that was deleted and made
    anew under a running service holds another one."""

    @property
    def address(self) -> str:
        """The address in words for people."""
        return self.url or f"unix:{self.path}"

    def remove(self) -> None:
        """Remove what a Unix socket leaves behind. Repeating is safe."""
        if self.path is not None and _inode(self.path) == self.node:
            self.path.unlink(missing_ok=True)


def bind_tcp(host: str, port: int) -> Listener:
    """Bind a TCP address; port 0 takes any free one.

    Raises:
        InvalidArgument: this machine has no such address, or no address such a port.
        Unavailable: the port is taken.
    """
    if not 0 <= port < 1 << 16:  # some systems would take its last 16 bits
        raise InvalidArgument("a port is from 1 to 65535, or 0 for any free one", field="--port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        stream = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidArgument(f"cannot listen on {host}: {error.strerror}", field="--host") from error
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.bind(place)
    except OSError as error:
        stream.close()
        raise Unavailable(f"cannot listen on {host} port {port}: {error.strerror}") from error
    shown = f"[{host}]" if ":" in host else host
    return Listener(stream, f"http://{shown}:{stream.getsockname()[1]}", None)


def bind_unix(path: Path) -> Listener:
    """Bind a Unix socket that only this user can reach (0600), replacing one that nobody listens on.

    Raises:
        InvalidArgument: the path cannot hold a socket.
        Unavailable: somebody listens there.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream.bind(str(path))  # 0600 by the umask, so there is no moment in which it is open to others
        path.chmod(0o600)
    except OSError as error:
        stream.close()
        # A path that is too long has no number in Python, and so no text of the system's.
        why = error.strerror or f"a socket's path can have {_SOCKET_BYTES} bytes"
        raise InvalidArgument(f"cannot listen on {path}: {why}", field="--socket") from error
    except Unavailable:
        stream.close()
        raise
    return Listener(stream, None, path, _inode(path))


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _clear(path: Path) -> None:
    """Remove the socket of a service that is no more."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return  # anything else in the way is the user's: bind refuses it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(ConnectionError):
        probe.connect(str(path))
        raise Unavailable(f"another service listens on {path}")
    path.unlink(missing_ok=True)


def own_socket(folder: Path) -> Path:
    """Return where the private service of a data folder has its socket.

    In the folder itself; for a folder with a long path in the temporary folder, under a name derived from it,
    and where that has a long path too, in /tmp.

    Raises:
        FailedPrecondition: the place in the temporary folder belongs to somebody else.
    """
    path = folder / "embatch.sock"
    if len(os.fsencode(path)) < _SOCKET_BYTES:
        return path
    name = f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.sock"
    place = Path(tempfile.gettempdir()) / f"embatch-{os.getuid()}"
    if len(os.fsencode(place / name)) >= _SOCKET_BYTES:
        place = Path("/tmp") / place.name  # noqa: S108  (looked at below)
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise FailedPrecondition(f"{place} must be a folder that only you can enter: remove it")
    return place / name


@dataclass(frozen=True, slots=True)
class About:
    """What a service says of itself, by which clients know it and whether they may share it."""

    instance: str
    """Its random name."""
    private: bool
    vectors: Mapping[str, str] | None
    """Settings that change vectors; `None`: clients take what there is."""


def _words(listener: Listener, about: About) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "socket": None if listener.path is None else str(listener.path),
        "url": listener.url,
        "instance": about.instance,
        "private": about.private,
        "wire": wire.VERSION,
        "installation": installation(),
        "vectors": None if about.vectors is None else digest(about.vectors),
        "settings": about.vectors,
    }


@contextlib.contextmanager
def noted(folder: Path, listener: Listener, about: About) -> Iterator[None]:
    """Say in the data folder where the service listens and how it is known, for as long as it does."""
    note = folder / NOTE
    fresh = folder / f"{NOTE}.{os.getpid()}"
    said = (json.dumps(_words(listener, about)) + "\n").encode()
    fresh.unlink(missing_ok=True)
    with os.fdopen(ownership.open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(said)
    fresh.replace(note)
    try:
        yield
    finally:
        # The folder may have been deleted, and made again by the next service, whose note this is then.
        with contextlib.suppress(OSError):
            if note.read_bytes() == said:
                note.unlink()
        listener.remove()
