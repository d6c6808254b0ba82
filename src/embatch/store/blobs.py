"""Shards as Arrow files: durable when written, checked by SHA-256 whenever read.

A file appears under its name only whole: temporary file, fsync, rename, fsync of its folder, and before that
of every folder above that is new. Arrow IPC has no checksum of its own (a flipped bit reads back as another
number), so the digest in the database decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss
from embatch.store.faults import disk, storage_low, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS: Final = ("batches", "files", "uploads")
LARGEST: Final = 1 << 30
"""Bytes. No shard comes near it; a file that has become larger is damaged and is not read into memory."""
_REMEMBERED: Final = 10_000
_OURS: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names of batches, files and uploads. Others are of a volume (`lost+found`) or of whoever looked in here."""


class Blobs:
    """The files below a data folder. Paths are relative to it, with `/`. Safe to use from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._durable: set[Path] = set()
        """Folders whose own names are known to be durable. That a folder exists does not say so."""

    def ensure_layout(self) -> None:
        """Make the folders, private to the owner, durable on return. Repeating is safe.

        Raises:
            Unavailable: as `write`.
        """
        try:
            for name in FOLDERS:
                self._ensure(self.root / name)
        except OSError as error:
            raise disk(error) from error

    def check_room(self, least: int) -> None:
        """Refuse where the volume has fewer bytes free. Raises Unavailable (STORAGE_LOW)."""
        try:
            volume = os.statvfs(self.root)
        except OSError as error:
            raise unreadable(error) from error
        if volume.f_blocks and volume.f_bavail * volume.f_frsize < least:
            raise storage_low(least)

    def path(self, relative: str) -> Path:
        """Return where a blob stands.

        Raises:
            DataLoss: the path leads out of the data folder, which none that we stored does.
        """
        parts = PurePosixPath(relative).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise DataLoss("a stored path leads out of the data folder")
        return self.root.joinpath(*parts)

    def write(self, relative: str, batch: pa.RecordBatch) -> str:
        """Write one shard, durable on return; return its SHA-256 in hex. Repeating replaces it whole.

        Raises:
            Unavailable: the disk is full (STORAGE_FULL) or failed (STORAGE_ERROR). Whatever stands under the
                name then belongs to nobody: no row of the database knows its digest.
        """
        target = self.path(relative)
        content = _encoded(batch)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            self._ensure(target.parent)
            try:
                with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                    file.flush()
                    sync(file.fileno())
                partial.replace(target)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)
        except OSError as error:
            raise disk(error) from error
        return hashlib.sha256(content).hexdigest()

    def read(self, relative: str, digest: str) -> pa.RecordBatch:
        """Return one shard, in memory of its own.

        Raises:
            DataLoss: the file is missing, or its bytes are not the ones that were written.
            Unavailable: it cannot be read just now (too many open files, say); nothing is known to be lost.
        """
        try:
            with self.path(relative).open("rb") as file:
                if os.fstat(file.fileno()).st_size > LARGEST:
                    raise DataLoss(f"{relative} is larger than any shard")
                content = file.read(LARGEST)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataLoss(f"{relative} cannot be read: it is gone") from error
        except OSError as error:
            raise unreadable(error) from error
        # What was hashed is what is decoded: the file is not looked at again.
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataLoss(f"{relative} does not match its checksum")
        with pa.ipc.open_file(content) as reader:
            return reader.get_batch(0)

    def remove(self, relative: str) -> None:
        """Remove one file. Repeating is safe."""
        self.path(relative).unlink(missing_ok=True)

    def remove_batch(self, batch_id: str) -> None:
        """Remove all files of a batch. Repeating is safe; what a crash leaves, the next start collects."""
        folder = self.path(f"batches/{batch_id}")
        with self._lock:
            self._durable.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def batch_folders(self) -> Iterator[str]:
        """Yield the ids of batches that have a folder; what nobody here named so is left out."""
        with os.scandir(self.root / "batches") as entries:
            yield from (entry.name for entry in entries if _OURS.fullmatch(entry.name) and entry.is_dir())

    def stored(self, folder: str) -> Iterator[str]:
        """Yield the paths of the files in `files` or `uploads`; what nobody here made is left out."""
        with os.scandir(self.path(folder)) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield f"{folder}/{entry.name}"

    def hold_anything(self) -> bool:
        """Return whether anything is stored, of which a database must know."""
        held = (self.batch_folders(), self.stored("files"), self.stored("uploads"))
        return any(next(one, None) is not None for one in held)

    def _ensure(self, folder: Path) -> None:
        """Make a folder below the data folder, and its name durable, once for each."""
        if folder == self.root:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return
        with self._lock:
            known = folder in self._durable
        if known and folder.is_dir():
            return
        self._ensure(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
        with self._lock:
            if len(self._durable) >= _REMEMBERED:
                self._durable.clear()
            self._durable.add(folder)


def _encoded(batch: pa.RecordBatch) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: Any = sink.getvalue()
    return memoryview(content)


__all__ = ["FOLDERS", "LARGEST", "Blobs", "sync_folder"]
