"""Where the bytes of batches and files are. In a folder: shards are Arrow files, durable when written.

A file appears under its name only whole: temporary file, fsync, rename, fsync of its folder, and before that
of every folder above that is new. Whenever a shard is read its SHA-256 is compared: Arrow IPC has no checksum
of its own (a flipped bit reads back as another number), so the digest in the database decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import pyarrow as pa

from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss, NotFound
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


class Blobs(Protocol):
    """The bytes that rows of the database speak of, by paths with `/`. Safe to use from any thread."""

    def check_room(self, least: int) -> None:
        """Refuse where there are fewer bytes free. Raises Unavailable (STORAGE_LOW)."""
        ...

    def write(self, path: str, batch: pa.RecordBatch) -> str:
        """Write one shard, durable on return; return its SHA-256 in hex. Repeating replaces it whole.

        Raises:
            Unavailable: it is full (STORAGE_FULL) or failed (STORAGE_ERROR). Whatever stands under the name
                then belongs to nobody: no row of the database knows its digest.
        """
        ...

    def read(self, path: str, digest: str) -> pa.RecordBatch:
        """Return one shard, in memory of its own.

        Raises:
            DataLoss: it is missing, or its bytes are not the ones that were written.
            Unavailable: it cannot be read just now (too many open files, say); nothing is known to be lost.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open an uploaded file for reading; close it. Nobody compares its bytes with its digest here.

        Raises:
            NotFound: it is gone.
            Unavailable: as `read`.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove one shard or file. Repeating is safe."""
        ...

    def remove_batch(self, batch_id: str) -> None:
        """Remove all shards of a batch. Repeating is safe; what a crash leaves, `strays` finds."""
        ...

    def strays(self, older_than: float) -> Iterator[str]:
        """Yield what no row may speak of, `batches/{id}` or `files/{name}`: who has the rows can tell.

        Args:
            older_than: seconds since it was changed last; 0 for all there is. Bytes come before their row,
                so where others write too, what is young may be about to have one.
        """
        ...


class FolderBlobs:
    """The blobs below a folder of this machine. Paths are relative to it, with `/`."""

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
        """As `Blobs.check_room`, of the volume."""
        try:
            volume = os.statvfs(self.root)
        except OSError as error:
            raise unreadable(error) from error
        if volume.f_blocks and volume.f_bavail * volume.f_frsize < least:
            raise storage_low(least)

    def path(self, relative: str) -> Path:
        """Return where a blob stands. For those alone who work in this folder, as uploads that grow do.

        Raises:
            DataLoss: the path leads out of the data folder, which none that we stored does.
        """
        parts = PurePosixPath(relative).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise DataLoss("a stored path leads out of the data folder")
        return self.root.joinpath(*parts)

    def write(self, relative: str, batch: pa.RecordBatch) -> str:
        """As `Blobs.write`."""
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
        """As `Blobs.read`."""
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

    def open(self, relative: str) -> BinaryIO:
        """As `Blobs.open`."""
        try:
            return self.path(relative).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("the file is gone: upload it again") from None
        except OSError as error:
            raise unreadable(error) from error

    def remove(self, relative: str) -> None:
        """As `Blobs.remove`."""
        self.path(relative).unlink(missing_ok=True)

    def remove_batch(self, batch_id: str) -> None:
        """As `Blobs.remove_batch`."""
        folder = self.path(f"batches/{batch_id}")
        with self._lock:
            self._durable.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def strays(self, older_than: float) -> Iterator[str]:
        """As `Blobs.strays`; what nobody here named so is left out."""
        before = time.time() - older_than
        for entry in self._held():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                # A clock that was set back must not keep what a start is to find.
                if older_than <= 0 or entry.stat(follow_symlinks=False).st_mtime <= before:
                    yield str(PurePosixPath(entry.path).relative_to(self.root))

    def hold_anything(self) -> bool:
        """Return whether anything is stored, of which a database must know."""
        with os.scandir(self.root / "uploads") as entries:
            return any(map(_ours, entries)) or next(self._held(), None) is not None

    def _held(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.root / "batches") as entries:
            yield from (entry for entry in entries if _OURS.fullmatch(entry.name) and entry.is_dir())
        with os.scandir(self.root / "files") as entries:
            yield from filter(_ours, entries)

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


def _ours(entry: os.DirEntry[str]) -> bool:
    """Return whether a file has a name of ours."""
    return _OURS.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def _encoded(batch: pa.RecordBatch) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: Any = sink.getvalue()
    return memoryview(content)


__all__ = ["FOLDERS", "LARGEST", "Blobs", "FolderBlobs", "sync_folder"]
