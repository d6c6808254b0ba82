"""What survives a power cut: bytes that were synced, in a folder whose names were synced."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from embatch.ownership import open_own

if TYPE_CHECKING:
    from pathlib import Path

# On macOS fsync leaves the bytes in the drive's cache; this one does not.
FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)
# How a file system says that it does not know it. Whatever else it says is that the bytes are not safe.
_UNKNOWN: Final = frozenset({errno.ENOTSUP, errno.ENOTTY, errno.EINVAL})


def sync(descriptor: int) -> None:
    """Make the bytes of an open file or folder durable.

    Raises:
        OSError: the disk failed; what was written may be lost.
    """
    if FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, FULL_SYNC)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        else:
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file of the owner's alone (0600) in its place, whole or not at all; durable on return.

    Raises:
        OSError: it cannot be written, and what was there before still is.
        InvalidArgument: something else lies in its way.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)
