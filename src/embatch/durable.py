"""What survives a power cut: bytes that were synced, in a folder whose names were synced."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

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
