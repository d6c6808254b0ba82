"""A file that only takes up room, so that a full disk has some left to give back.

On a full disk even a one-row update fails, so nobody could cancel or delete what fills it. Freeing the
ballast lets such writes through; it is filled again once there is room.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

BYTES: Final = 2 << 20
_ROOM: Final = 8 * BYTES
"""Free bytes before the ballast is filled again: it must not be what fills the disk."""


class Ballast:
    """The ballast of one data folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.missing = True
        """Whether there is nothing to free: then only writes that make room are let through."""

    def fill(self) -> None:
        """Take the room up if it is not taken and the disk has plenty; else change nothing."""
        try:
            with contextlib.suppress(FileNotFoundError):
                found = self._path.lstat()
                if stat.S_ISREG(found.st_mode) and found.st_size == BYTES:
                    self.missing = False
                    return
            volume = os.statvfs(self._path.parent)
            if volume.f_blocks and volume.f_bavail * volume.f_frsize < _ROOM:
                return
            # Written out, not left sparse: only blocks that are really there can be given back.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
                file.write(bytes(BYTES))
                file.flush()
                os.fsync(file.fileno())
            self.missing = False
        except OSError:
            self.free()

    def free(self) -> bool:
        """Give the room back. `False`: there was none."""
        was_there = not self.missing
        self.missing = True
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        return was_there
