"""Shards as Arrow files: durable when written, checked by SHA-256 whenever read.

A file appears under its name only whole: temporary file, fsync, rename, fsync of its folder (and of the folder's
parent where the folder is new). Arrow IPC has no checksum of its own, so the digest in the database decides.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from embatch.errors import DataLoss, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDERS = ("batches", "files", "uploads")


class Blobs:
    """The files below a data folder. Paths are relative to it, with `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ensure_layout(self) -> None:
        """Make the folders, private to the owner, durable on return. Repeating is safe."""
        for name in FOLDERS:
            _make_folder(self.root / name)

    def path(self, relative: str) -> Path:
        """Return where a blob stands."""
        return self.root / relative

    def write(self, relative: str, batch: pa.RecordBatch) -> str:
        """Write one shard, durable on return; return its SHA-256 in hex. Repeating replaces it whole.

        Raises:
            Unavailable: the disk is full (STORAGE_FULL) or failed (STORAGE_ERROR); nothing stands under the name.
        """
        target = self.root / relative
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = memoryview(sink.getvalue())
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            _make_folder(target.parent)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _unavailable(error) from error
        return hashlib.sha256(content).hexdigest()

    def read(self, relative: str, digest: str) -> pa.RecordBatch:
        """Return one shard.

        Raises:
            DataLoss: the file is missing, or its bytes are not the ones that were written.
        """
        try:
            content = (self.root / relative).read_bytes()
        except OSError as error:
            raise DataLoss(f"{relative} cannot be read") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataLoss(f"{relative} does not match its checksum")
        with pa.ipc.open_file(content) as reader:
            return reader.get_batch(0)

    def remove(self, relative: str) -> None:
        """Remove one file. Repeating is safe."""
        (self.root / relative).unlink(missing_ok=True)

    def remove_batch(self, batch_id: str) -> None:
        """Remove all files of a batch. Repeating is safe."""
        shutil.rmtree(self.root / "batches" / batch_id, ignore_errors=True)

    def batch_folders(self) -> Iterator[str]:
        """Yield the ids of batches that have a folder."""
        yield from (entry.name for entry in os.scandir(self.root / "batches") if entry.is_dir())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def _unavailable(error: OSError) -> Unavailable:
    import errno  # noqa: PLC0415  (only on the way out)

    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Unavailable(
            "the disk of the data folder is full: free some space", reason="STORAGE_FULL", retry_after=30.0
        )
    return Unavailable(
        f"the data folder cannot be written: {os.strerror(error.errno or 0)}",
        reason="STORAGE_ERROR",
        retry_after=5.0,
    )
