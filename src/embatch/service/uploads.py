"""Files that come in: resumable uploads that survive a restart, and what is known of each file.

A file is durable when its upload is finished. Its bytes stand under the token of its upload: its name may be
taken again while the bytes of the file that had it are being removed. In an older data folder they stand by
name; a file's row says where.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import string
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from embatch.batch import FILE_ID, RESULTS, FileRecord, check_file_id
from embatch.errors import EmbatchError, FailedPrecondition, InvalidArgument, NoSuchFile, NotFound, TooLarge
from embatch.store.records import UploadRecord
from embatch.store.spool import finished_path, is_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from embatch.settings import Settings
    from embatch.store.blobs import Blobs
    from embatch.store.spool import Spool
    from embatch.store.store import Store

_LETTERS: Final = string.ascii_lowercase + string.digits
_NAME: Final = re.compile(rf"files/({RESULTS}[a-z0-9]{{1,64}}|{FILE_ID.pattern})")


def new_id(length: int) -> str:
    """Return a fresh id of lowercase letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def file_id(name: str, field: str) -> str:
    """Return the id in `files/{id}`.

    Raises:
        NoSuchFile: the name cannot be one.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise NoSuchFile("there is no such file: a file is named files/{id}", field=field)
    return found[1]


class Uploads:
    """The uploads under way and the files they become."""

    def __init__(
        self, store: Store, blobs: Blobs, spool: Spool, settings: Settings, now: Callable[[], datetime]
    ) -> None:
        self._store, self._blobs, self._spool = store, blobs, spool
        self._settings, self._now = settings, now
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
        if file_id is not None:
            check_file_id(file_id, "file_id")
        if size is not None and size > self._settings.file_bytes:
            raise TooLarge(f"a file may have {self._settings.file_bytes} bytes", field="size")
        self._blobs.check_room(self._settings.free_bytes)
        token = secrets.token_urlsafe(32)
        record = UploadRecord(token, file_id or new_id(12), display_name, mime_type, size, self._now())
        self._spool.begin(token)
        try:
            self._store.begin_upload(record)
        except EmbatchError:
            self._spool.drop(token)
            raise
        return token

    def offset(self, token: str) -> int:
        """Return how many bytes have arrived. Raises NotFound."""
        self._store.upload(token)
        return self._spool.size(token)

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
            made = self._store.file_at(finished_path(token))
            if offset + len(chunk) <= made.size and self._spool.held(made.path, offset, chunk):
                return made.size
            raise
        with self._lock(token):
            received = self.offset(token)
            known = received - offset
            if known < 0 or not self._spool.holds(token, offset, chunk[:known]):
                raise InvalidArgument(
                    f"the upload has {received} bytes, this chunk begins at {offset}", field="offset"
                )
            chunk = chunk[known:]
            most = self._settings.file_bytes if record.declared_size is None else record.declared_size
            if received + len(chunk) > most:
                raise TooLarge(f"the upload was to have at most {most} bytes", field="size")
            if chunk:
                self._spool.append(token, received, chunk)
            return received + len(chunk)

    def finish(self, token: str) -> FileRecord:
        """Make a file of an upload, durable on return. Repeating is safe: the file is returned again.

        Raises:
            NotFound: no such upload, or its file was deleted.
            InvalidArgument: fewer bytes came than were announced.
            Unavailable: the disk is full or failed; the upload is as it was.
        """
        place = finished_path(token)
        try:
            self._store.upload(token)
            with self._lock(token):
                made = self._made(self._store.upload(token), place)
        except NotFound:
            return self._store.file_at(place)
        self._locks.pop(token, None)
        return made

    def _made(self, upload: UploadRecord, place: str) -> FileRecord:
        received = self.offset(upload.token)
        if upload.declared_size is not None and received != upload.declared_size:
            raise InvalidArgument(
                f"{upload.declared_size} bytes were announced and {received} came", field="size"
            )
        digest, now = self._spool.digest(upload.token), self._now()
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
        # The bytes first and the row after them: a crash between leaves the upload as it was.
        self._spool.publish(upload.token)
        self._store.finish_upload(upload.token, made)
        self._spool.drop(upload.token)
        return made

    def cancel(self, token: str) -> FileRecord | None:
        """Forget an upload under way, and its bytes; one that is a file by now stays, and is returned.

        Repeating is safe: `None` also for an upload that is not there any more.
        """
        self.drop(token)
        with contextlib.suppress(NotFound):
            return self._store.file_at(finished_path(token))
        return None

    def drop(self, token: str) -> None:
        """Forget an upload under way, and its bytes. Repeating is safe."""
        if not is_token(token):
            return
        with self._lock(token):
            if self._store.drop_upload(token):
                self._blobs.remove(finished_path(token))  # where a `finish` that failed may have put them
            self._spool.drop(token)
        self._locks.pop(token, None)

    def delete(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            NoSuchFile: as it says.
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
            with contextlib.suppress(FailedPrecondition, NoSuchFile):
                self._blobs.remove(self._store.delete_file(record.id, path=record.path))
        for upload in self._store.uploads():
            if upload.create_time + timedelta(seconds=self._settings.file_expiry) <= now:
                self.drop(upload.token)

    def _lock(self, token: str) -> threading.Lock:
        return self._locks.setdefault(token, threading.Lock())
