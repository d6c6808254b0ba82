"""Files that come in: resumable uploads that survive a restart, and what is known of each file.

The size on disk is what is acknowledged of an upload under way, and a broken chunk leaves nothing behind. A
file is durable when its upload is finished. Its bytes stand under the token of its upload: its name may be
taken again while the bytes of the file that had it are being removed. In an older data folder they stand by
name; a file's row says where.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import string
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from embatch.batch import FileRecord
from embatch.durable import sync, sync_folder
from embatch.errors import (
    EmbatchError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TooLarge,
)
from embatch.store.faults import disk
from embatch.store.records import UploadRecord
from embatch.store.times import micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.store import Store

RESULTS: Final = "batch-"
"""How the ids of results files begin; no uploaded file may be named so."""
_LETTERS: Final = string.ascii_lowercase + string.digits
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_NAME: Final = re.compile(rf"files/({RESULTS}[a-z0-9]{{1,64}}|{_ID.pattern})")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id(length: int) -> str:
    """Return a fresh id of lowercase letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def file_id(name: str, field: str) -> str:
    """Return the id in `files/{id}`.

    Raises:
        PermissionDenied: the name cannot be one; Google answers a missing file so.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise PermissionDenied(
            "You do not have permission to access the File or it may not exist: a file is named files/{id}.",
            field=field,
        )
    return found[1]


class Uploads:
    """The uploads under way and the files they become."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store, self._blobs, self._settings, self._now = store, blobs, settings, now
        self._locks: dict[str, threading.Lock] = {}

    def begin(self, file_id: str | None, display_name: str | None, mime_type: str, size: int | None) -> str:
        """Begin an upload, durable on return; return the token that alone gives access to it.

        Args:
            file_id: the name it shall have, without `files/`; `None` for any.
            display_name: what it is called in lists.
            mime_type: tells JSONL from Arrow when a batch reads it.
            size: bytes that will come; `None` where only the end tells.

        Raises:
            InvalidArgument: a file cannot be named so.
            TooLarge: a file may not have so many bytes.
            AlreadyExists: the name is taken.
            Unavailable: the disk is full (STORAGE_FULL, or nearly: STORAGE_LOW) or failed.
        """
        if file_id is not None and (_ID.fullmatch(file_id) is None or file_id.startswith(RESULTS)):
            raise InvalidArgument("a file cannot be named so", field="file.name")
        if size is not None and size > self._settings.file_bytes:
            raise TooLarge(f"a file may have {self._settings.file_bytes} bytes", field="file.sizeBytes")
        self._blobs.check_room(self._settings.free_bytes)
        token = secrets.token_urlsafe(32)
        record = UploadRecord(token, file_id or new_id(12), display_name, mime_type, size, self._now())
        place = self._path(token)
        with _on_disk():
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            self._store.begin_upload(record)
        except EmbatchError:
            place.unlink(missing_ok=True)
            raise
        return token

    def offset(self, token: str) -> int:
        """Return how many bytes have arrived. Raises NotFound."""
        self._store.upload(token)
        with _on_disk():
            return self._path(token).stat().st_size

    def append(self, token: str, offset: int, chunk: bytes) -> int:
        """Append bytes at the end; return how many there are then.

        Repeating is safe, also once the file is finished: bytes that are there already are not appended.

        Raises:
            NotFound: no such upload.
            InvalidArgument: the offset is not where the upload ends, nor are the bytes there what came.
            TooLarge: more than was announced, or than a file may have.
            Unavailable: the disk is full or failed; nothing was appended.
        """
        try:
            record = self._store.upload(token)
        except NotFound:
            made = self._store.file_at(_place(token))
            if offset + len(chunk) <= made.size and self._holds(self._blobs.path(made.path), offset, chunk):
                return made.size
            raise
        with self._lock(token):
            received = self.offset(token)
            known = received - offset
            if known < 0 or not self._holds(self._path(token), offset, chunk[:known]):
                raise InvalidArgument(
                    f"the upload has {received} bytes, this chunk begins at {offset}",
                    field="X-Goog-Upload-Offset",
                )
            chunk = chunk[known:]
            most = self._settings.file_bytes if record.declared_size is None else record.declared_size
            if received + len(chunk) > most:
                raise TooLarge(f"the upload was to have at most {most} bytes", field="file.sizeBytes")
            if chunk:
                self._extend(self._path(token), received, chunk)
            return received + len(chunk)

    def _holds(self, place: Path, offset: int, chunk: bytes) -> bool:
        """Return whether these bytes stand there, as they do when their acknowledgement was lost."""
        if not chunk:
            return True
        with _on_disk(), place.open("rb") as file:
            file.seek(offset)
            return file.read(len(chunk)) == chunk

    def _extend(self, place: Path, received: int, chunk: bytes) -> None:
        """Append all of a chunk or nothing."""
        with _on_disk(), place.open("ab", buffering=0) as file:
            left = memoryview(chunk)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(received)
                raise

    def finish(self, token: str) -> FileRecord:
        """Make a file of an upload, durable on return. Repeating is safe: the file is returned again.

        Raises:
            NotFound: no such upload, or its file was deleted.
            InvalidArgument: fewer bytes came than were announced.
            Unavailable: the disk is full or failed; the upload is as it was.
        """
        place = _place(token)
        try:
            self._store.upload(token)
            with self._lock(token), _on_disk():
                made = self._made(self._store.upload(token), place)
        except NotFound:
            return self._store.file_at(place)
        self._locks.pop(token, None)
        return made

    def _made(self, upload: UploadRecord, place: str) -> FileRecord:
        received = self.offset(upload.token)
        if upload.declared_size is not None and received != upload.declared_size:
            raise InvalidArgument(
                f"{upload.declared_size} bytes were announced and {received} came", field="file.sizeBytes"
            )
        source, target = self._path(upload.token), self._blobs.path(place)
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            sync(file.fileno())
        now = self._now()
        made = FileRecord(
            upload.file_id,
            upload.display_name,
            upload.mime_type,
            received,
            digest,
            now,
            now,
            now + timedelta(seconds=self._settings.file_expiry),
            "UPLOADED",
            place,
        )
        # A link first and the row after it: a crash between leaves the upload as it was.
        with contextlib.suppress(FileExistsError):  # an earlier attempt came so far
            os.link(source, target)
        sync_folder(target.parent)
        self._store.finish_upload(upload.token, made)
        source.unlink(missing_ok=True)
        return made

    def cancel(self, token: str) -> FileRecord | None:
        """Forget an upload under way, and its bytes; one that is a file by now stays, and is returned.

        Repeating is safe: `None` also for an upload that is not there any more.
        """
        self.drop(token)
        with contextlib.suppress(NotFound):
            return self._store.file_at(_place(token))
        return None

    def drop(self, token: str) -> None:
        """Forget an upload under way, and its bytes. Repeating is safe."""
        if _TOKEN.fullmatch(token) is None:
            return
        with self._lock(token):
            if self._store.drop_upload(token):
                self._blobs.remove(_place(token))  # where a `finish` that failed may have put them
            self._path(token).unlink(missing_ok=True)
        self._locks.pop(token, None)

    def delete(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            PermissionDenied: there is none.
            FailedPrecondition: a batch is still being planned from it.
        """
        self._blobs.remove(self._store.delete_file(file_id))

    def sweep(self, now: datetime | None = None) -> None:
        """Delete files and uploads whose time has passed. Repeating is safe.

        `now` is the time that counts where it is not what the clock shows.
        """
        now = now or self._now()
        for record in self._store.expired_files(now):
            # A batch, or its user, may have been quicker; the name may be another file's by now.
            with contextlib.suppress(FailedPrecondition, PermissionDenied):
                self._blobs.remove(self._store.delete_file(record.id, path=record.path))
        for upload in self._store.uploads():
            if upload.create_time + timedelta(seconds=self._settings.file_expiry) <= now:
                self.drop(upload.token)

    def collect_orphans(self) -> None:
        """Remove bytes that no row speaks of, as a crash may leave them. Only before uploads are taken."""
        known = {f"uploads/{upload.token}" for upload in self._store.uploads()} | set(self._file_paths())
        for folder in ("uploads", "files"):
            for path in self._blobs.stored(folder):
                if path not in known:
                    with contextlib.suppress(OSError):  # it only takes room: the next start tries again
                        self._blobs.remove(path)

    def _file_paths(self) -> Iterator[str]:
        after = None
        while page := self._store.files(1000, after):
            yield from (record.path for record in page)
            after = (micros(page[-1].create_time), page[-1].id)

    def _path(self, token: str) -> Path:
        return self._blobs.path(f"uploads/{_checked(token)}")

    def _lock(self, token: str) -> threading.Lock:
        return self._locks.setdefault(token, threading.Lock())


def _checked(token: str) -> str:
    if _TOKEN.fullmatch(token) is None:
        raise NotFound("there is no such upload: begin it again")
    return token


def _place(token: str) -> str:
    """Return where the bytes of an upload stand once it is finished: nobody else's ever stand there."""
    return f"files/{_checked(token)}"


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    """Say what an error of the disk means."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("there is no such upload: begin it again") from None
    except OSError as error:
        raise disk(error) from error
