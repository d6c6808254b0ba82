"""Whose a data folder is: everything in it is believed, so nobody else may have made or be able to change it.

A service truncates its lock, a client sends its texts to where the folder says the service is. So before
anything in it is touched, the folder must belong to the user who runs this and be closed to others; what lies
in it under a name of ours must be a file, folder or socket of the same user, and no link; and nobody may be
able to put another folder in its place. Nor may anybody else read or change a file of secrets.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from embatch.errors import InvalidArgument, printable

FIELD: Final = "data"
NAMES: Final = (
    *("lock", "service.json", "service.log", "embatch.sock", "ballast", "cache", "runs"),
    *("embatch.db", "embatch.db-wal", "embatch.db-shm", "embatch.db-journal"),
    *("batches", "files", "uploads", "database.id", "models.json", "alignment"),
)
"""What a data folder holds, by name."""
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_SECRET: Final = stat.S_IRUSR | stat.S_IWUSR
_LINKS: Final = 40
"""Most links on the way to a folder, as systems have it."""
_UNKNOWN_USER: Final = 65534
"""Who owns what belongs to nobody that a container knows; such a folder lies outside of it."""


class Taken(Exception):
    """Another service has the data folder or the database; the message names it."""


def make_folder(folder: Path) -> None:
    """Make a data folder (0700) if there is none, and refuse one that is not this user's alone.

    Args:
        folder: absolute.

    Raises:
        InvalidArgument: as `check_folder`.
        OSError: it cannot be made.
    """
    check_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(folder)  # somebody may have been faster


def check_folder(folder: Path) -> None:
    """Refuse a data folder that is not this user's alone; one that is not there is checked as far as it is.

    One that only others' reading is wrong with, or that is empty, is closed to them (0700), unless it holds
    more than what is ours.

    Args:
        folder: absolute.

    Raises:
        InvalidArgument: naming the path at fault and the remedy.
    """
    place = _resolved(folder)
    for parent in reversed(place.parents):
        _check_parent(parent, folder)
    try:
        about = place.lstat()
        held = set(os.listdir(place)) if stat.S_ISDIR(about.st_mode) else set()  # noqa: PTH208  (names alone)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise _refused(folder, f"{place} cannot be looked at ({why})") from None
    if not stat.S_ISDIR(about.st_mode):
        raise _refused(folder, f"{place} is no folder")
    if about.st_uid != os.geteuid():
        raise _refused(folder, f"{place} belongs to {_name(about.st_uid)} and not to {_me()}")
    if about.st_mode & _OTHERS and held:
        raise _refused(
            folder, f"others can write in {place}: see that all in it is yours, then chmod 700 {place}"
        )
    if about.st_mode & 0o077 and held <= set(NAMES):
        place.chmod(0o700)
    for name in NAMES:
        if name in held:
            check_entry(place / name)


def check_entry(path: Path) -> None:
    """Refuse what lies under a name of ours if it is a link, somebody else's, or open to others' writing.

    Raises:
        InvalidArgument: naming the path and the remedy.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _check(path, path.lstat())


def open_own(path: Path, flags: int) -> int:
    """Open a file in the data folder by its name and return its descriptor, which children do not inherit.

    Args:
        path: the file; no link is followed. One that is made is the owner's alone (0600).
        flags: as of `os.open`. Do not truncate with them: the check comes after.

    Raises:
        InvalidArgument: it is a link, somebody else's, open to others' writing, or no file.
        OSError: it cannot be opened.
    """
    check_entry(path)
    # Not blocking, in case that it is a pipe.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        _check(path, os.fstat(descriptor), file=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_secret(path: Path, most: int) -> bytes:
    """Return the bytes of a file of secrets anywhere, which must be this user's alone (0600 or less).

    Args:
        path: the file; no link is followed.
        most: bytes that it may have.

    Raises:
        InvalidArgument: it cannot be read, is a link, somebody else's, open to others, no file, or larger;
            the message names path and remedy and nothing of what stands in it.
    """
    try:
        _check_secret(path, path.lstat())
        # Not blocking, in case that it became a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_secret(path, os.fstat(descriptor))
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # the latter for a path that none can be
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise InvalidArgument(printable(f"{path} cannot be read: {why}")) from None
    if len(data) > most:
        raise InvalidArgument(printable(f"{path} has more than {most:,} bytes"))
    return data


def _check_secret(path: Path, about: os.stat_result) -> None:
    if fault := _fault(about, file=True):
        raise InvalidArgument(printable(f"{path} {fault}: name a file of your own"))
    mode = stat.S_IMODE(about.st_mode)
    if mode & ~_SECRET:
        raise InvalidArgument(printable(f"{path} is open to others (mode {mode:04o}): chmod 600 {path}"))


def _check(path: Path, about: os.stat_result, *, file: bool = False) -> None:
    if fault := _fault(about, file=file):
        raise _unfit(path, fault)
    if about.st_mode & _OTHERS and not stat.S_ISSOCK(about.st_mode):
        raise _unfit(path, "can be written by others")


def _fault(about: os.stat_result, *, file: bool) -> str | None:
    """Return why what lies at a path is not simply this user's own, in words after the path."""
    if stat.S_ISLNK(about.st_mode):
        return "is a link"
    if about.st_uid != os.geteuid():
        return f"belongs to {_name(about.st_uid)} and not to {_me()}"
    if file and not stat.S_ISREG(about.st_mode):
        return "is no file"
    if stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
        return "has another name elsewhere (a hard link)"
    return None


def _check_parent(parent: Path, folder: Path) -> None:
    try:
        about = parent.stat()
    except OSError:  # it is not there yet, or cannot be looked at: making the folder tells
        return
    sticky = about.st_mode & stat.S_ISVTX
    if about.st_mode & stat.S_IWOTH and not sticky:
        raise _refused(
            folder, f"everybody may write in {parent} and put another folder in its place: chmod o-w {parent}"
        )
    if about.st_uid not in _trusted():
        owner = _name(about.st_uid)
        raise _refused(
            folder, f"{parent}, in which it lies, belongs to {owner}, who can put another folder in its place"
        )


def _resolved(folder: Path) -> Path:
    """Return the folder without links, of which none on the way may be another user's."""
    place, rest, links = Path(folder.anchor), list(reversed(folder.parts[1:])), 0
    while rest:
        part = rest.pop()
        if part == "..":
            place = place.parent
            continue
        step = place / part
        try:
            about = step.lstat()
            target = step.readlink() if stat.S_ISLNK(about.st_mode) else None
        except (OSError, ValueError):  # the latter for a path that none can be
            target = None
        if target is None:
            place = step
            continue
        links += 1
        if links > _LINKS:
            raise _refused(folder, f"{step} leads round in a circle")
        if about.st_uid not in _trusted():
            raise _refused(folder, f"{step} is a link that belongs to {_name(about.st_uid)}")
        if target.is_absolute():
            place = Path(target.anchor)
        rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return place


def _trusted() -> set[int]:
    """Return who may own what lies above: this user, root, and whoever root is outside of a container."""
    return {0, os.geteuid(), _UNKNOWN_USER, Path("/").stat().st_uid}


def _me() -> str:
    return _name(os.geteuid())


def _name(user: int) -> str:
    import pwd  # noqa: PLC0415  (only an error asks)

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _refused(folder: Path, why: str) -> InvalidArgument:
    return InvalidArgument(
        printable(f"the data folder {folder} is not yours alone: {why}; or name another one with --data"),
        field=FIELD,
    )


def _unfit(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument(
        printable(f"{path} in the data folder {why}: remove it, or name another folder with --data"),
        field=FIELD,
    )
