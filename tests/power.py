"""A volume whose power can be cut: ext4 in a file, mounted in a loop, shut down without flushing its journal.

Needs root and loop devices; `volume` skips the test where there are none. What was fsynced before the cut is
there afterwards, what was not may be missing or torn, exactly as after a real power failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_WITHOUT_FLUSH = 2


class Volume:
    """A mounted ext4 volume in an image file."""

    def __init__(self, folder: Path, mebibytes: int = 512) -> None:
        self.image = folder / "volume.img"
        self.root = folder / "volume"
        """Where it is mounted."""
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mebibytes << 20)
        _run("mkfs.ext4", "-qF", str(self.image))
        self.mount()

    def mount(self) -> None:
        """Mount; after a cut the journal is replayed."""
        _run("mount", "-o", "loop", str(self.image), str(self.root))

    def cut(self) -> None:
        """Cut the power: nothing more reaches the volume, and unflushed writes are lost."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """Bring the power back; whoever had files open on the volume must be gone."""
        _run("umount", str(self.root))
        self.mount()


@contextlib.contextmanager
def volume(folder: Path) -> Iterator[Volume]:
    """Provide a volume; skip the test where the machine does not allow one."""
    try:
        made = Volume(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop-mounted volume here: {error}")
    try:
        yield made
    finally:
        _run("umount", "-l", str(made.root))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
