"""Files that come in: resumable uploads that survive a restart, and what is known of each file.

A chunk is on disk when it is acknowledged to the size, and on the platter when the upload is finished: a
file that was acknowledged survives a power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import string
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from embatch.errors import FailedPrecondition, InvalidArgument, NotFound, TooLarge
from embatch.store.blobs import sync_folder
from embatch.store.records import FileRecord, UploadRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.store import Store

_LETTERS: Final = string.ascii_lowercase + string.digits


def new_id(length: int) -> str:
    """Return a fresh id of lowercase letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class Uploads:
    """The uploads under way and the files they become."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store, self._blobs, self._settings, self._now = store, blobs, settings, now
        self._locks: dict[str, threading.Lock] = {}

    def begin(self, file_id: str | None, display_name: str | None, mime_type: str, size: int | None) -> str:
        """Begin an upload, durable on return; return the token that alone gives access to it.

        Raises:
            AlreadyExists: the file's name is taken.
        """
        token = secrets.token_urlsafe(32)
        record = UploadRecord(token, file_id or new_id(12), display_name, mime_type, size, self._now())
        self._store.begin_upload(record)
        descriptor = os.open(self._path(token), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(descriptor)
        return token

    def offset(self, token: str) -> int:
        """Return how many bytes have arrived. Raises NotFound."""
        self._store.upload(token)
        try:
            return self._path(token).stat().st_size
        except FileNotFoundError:
            raise NotFound("there is no such upload: begin it again") from None

    def append(self, token: str, offset: int, chunk: bytes) -> int:
        """Append bytes at the end; return how many there are then.

        Raises:
            NotFound: no such upload.
            InvalidArgument: the offset is not where the upload ends.
            TooLarge: more than was announced, or than a file may have.
        """
        record = self._store.upload(token)
        with self._lock(token):
            received = self.offset(token)
            if offset != received:
                raise InvalidArgument(
                    f"the upload has {received} bytes, this chunk begins at {offset}",
                    field="X-Goog-Upload-Offset",
                )
            most = self._settings.file_bytes if record.declared_size is None else record.declared_size
            if received + len(chunk) > most:
                raise TooLarge(f"the upload was to have at most {most} bytes", field="file.sizeBytes")
            if chunk:
                with self._path(token).open("ab") as file:
                    file.write(chunk)
            return received + len(chunk)

    def finish(self, token: str) -> FileRecord:
        """Make a file of an upload, durable on return.

        Raises:
            NotFound: no such upload.
            InvalidArgument: fewer bytes came than were announced.
        """
        record = self._store.upload(token)
        with self._lock(token):
            received = self.offset(token)
            if record.declared_size is not None and received != record.declared_size:
                raise InvalidArgument(
                    f"{record.declared_size} bytes were announced and {received} came", field="file.sizeBytes"
                )
            source = self._path(token)
            with source.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            now, path = self._now(), f"files/{record.file_id}"
            made = FileRecord(
                record.file_id,
                record.display_name,
                record.mime_type,
                received,
                digest,
                now,
                now,
                now + timedelta(seconds=self._settings.file_expiry),
                "UPLOADED",
                path,
            )
            # A link first and the row after it: a crash between leaves the upload as it was.
            target = self._blobs.path(path)
            target.unlink(missing_ok=True)
            os.link(source, target)
            sync_folder(target.parent)
            self._store.finish_upload(token, made)
            source.unlink(missing_ok=True)
        self._locks.pop(token, None)
        return made

    def drop(self, token: str) -> None:
        """Forget an upload and its bytes. Repeating is safe."""
        self._store.drop_upload(token)
        with contextlib.suppress(InvalidArgument):
            self._path(token).unlink(missing_ok=True)
        self._locks.pop(token, None)

    def delete(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            PermissionDenied: there is none.
            FailedPrecondition: a batch is still being planned from it.
        """
        self._store.delete_file(file_id)
        self._blobs.remove(f"files/{file_id}")

    def sweep(self) -> None:
        """Delete files and uploads whose time has passed."""
        now = self._now()
        for record in self._store.expired_files(now):
            with contextlib.suppress(FailedPrecondition):
                self.delete(record.id)
        for upload in self._store.uploads():
            if upload.create_time + timedelta(seconds=self._settings.file_expiry) < now:
                self.drop(upload.token)

    def collect_orphans(self) -> None:
        """Remove bytes that no row speaks of, as a crash may leave them."""
        known = {upload.token for upload in self._store.uploads()}
        for path in self._blobs.path("uploads").iterdir():
            if path.name not in known:
                path.unlink()

    def _path(self, token: str) -> Path:
        if not token or not all(letter.isalnum() or letter in "-_" for letter in token) or len(token) > 64:
            raise NotFound("there is no such upload: begin it again")
        return self._blobs.path(f"uploads/{token}")

    def _lock(self, token: str) -> threading.Lock:
        return self._locks.setdefault(token, threading.Lock())
