"""Files and uploads in the store: what users handed over to be read by batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, literal, select, tuple_

from embatch.batch import FileRecord
from embatch.errors import AlreadyExists, FailedPrecondition, NoSuchFile, NotFound
from embatch.store.faults import reading
from embatch.store.records import UploadRecord
from embatch.store.schema import BATCH, FILE, UPLOAD
from embatch.store.times import micros, moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine, Row

    from embatch.store.writer import Writer


class FileRows:
    """The part of the store that knows files. Their bytes are the caller's."""

    def __init__(self, writer: Writer, readers: Engine) -> None:
        self._writer = writer
        self._readers = readers

    def begin_upload(self, upload: UploadRecord) -> None:
        """Remember an upload under way, durable on return.

        Raises:
            AlreadyExists: a file or an upload has the id.
        """

        def write(connection: Connection) -> None:
            for table, column in ((FILE, FILE.c.id), (UPLOAD, UPLOAD.c.file_id)):
                if connection.execute(select(table).where(column == upload.file_id)).first() is not None:
                    raise _taken(upload.file_id)
            connection.execute(
                insert(UPLOAD).values(
                    token=upload.token,
                    file_id=upload.file_id,
                    display_name=upload.display_name,
                    mime_type=upload.mime_type,
                    declared_size=upload.declared_size,
                    create_time=micros(upload.create_time),
                )
            )

        self._writer.run(write)

    def upload(self, token: str) -> UploadRecord:
        """Return an upload under way. Raises NotFound."""
        with reading(self._readers) as connection:
            row = connection.execute(select(UPLOAD).where(UPLOAD.c.token == token)).first()
        if row is None:
            raise NotFound("there is no such upload: begin it again")
        return _upload(row)

    def uploads(self) -> Sequence[UploadRecord]:
        """Return all uploads under way."""
        with reading(self._readers) as connection:
            return [_upload(row) for row in connection.execute(select(UPLOAD))]

    def finish_upload(self, token: str, file: FileRecord) -> None:
        """Turn an upload into a file, in one transaction.

        Raises:
            NotFound: no such upload.
            AlreadyExists: a file with this id appeared meanwhile.
        """

        def write(connection: Connection) -> None:
            if connection.execute(delete(UPLOAD).where(UPLOAD.c.token == token)).rowcount == 0:
                raise NotFound("there is no such upload: begin it again")
            if connection.execute(select(FILE.c.id).where(FILE.c.id == file.id)).first() is not None:
                raise _taken(file.id)
            connection.execute(
                insert(FILE).values(
                    id=file.id,
                    display_name=file.display_name,
                    mime_type=file.mime_type,
                    size=file.size,
                    sha256=file.sha256,
                    create_time=micros(file.create_time),
                    update_time=micros(file.update_time),
                    expire_time=None if file.expire_time is None else micros(file.expire_time),
                    source=file.source,
                    path=file.path,
                )
            )

        self._writer.run(write)

    def drop_upload(self, token: str) -> bool:
        """Forget an upload under way; return whether there was one. Repeating is safe."""
        forget = delete(UPLOAD).where(UPLOAD.c.token == token)
        return self._writer.run(lambda connection: connection.execute(forget).rowcount > 0, makes_room=True)

    def file(self, file_id: str) -> FileRecord:
        """Return a file.

        Raises:
            NoSuchFile: as it says.
        """
        with reading(self._readers) as connection:
            row = connection.execute(select(FILE).where(FILE.c.id == file_id)).first()
        if row is None:
            raise _missing(file_id)
        return _file(row)

    def file_at(self, path: str) -> FileRecord:
        """Return the file whose bytes stand there.

        Raises:
            NotFound: there is none.
        """
        with reading(self._readers) as connection:
            row = connection.execute(select(FILE).where(FILE.c.path == path)).first()
        if row is None:
            raise NotFound("there is no such upload: begin it again")
        return _file(row)

    def files(self, limit: int, after: tuple[int, str] | None) -> Sequence[FileRecord]:
        """Return up to `limit` files, newest first; `after` is the (create time, id) of the last one seen."""
        where = literal(value=True) if after is None else tuple_(FILE.c.create_time, FILE.c.id) < after
        query = select(FILE).where(where).order_by(FILE.c.create_time.desc(), FILE.c.id.desc()).limit(limit)
        with reading(self._readers) as connection:
            return [_file(row) for row in connection.execute(query)]

    def expired_files(self, now: datetime) -> Sequence[FileRecord]:
        """Return files whose time has passed and that no batch is still reading."""
        pinned = select(BATCH.c.input_file).where(_reading())
        query = select(FILE).where(FILE.c.expire_time <= micros(now), FILE.c.id.not_in(pinned))
        with reading(self._readers) as connection:
            return [_file(row) for row in connection.execute(query)]

    def delete_file(self, file_id: str, *, path: str | None = None) -> str:
        """Remove a file from the database; return where its bytes stand, which are the caller's.

        Args:
            file_id: its id.
            path: where they stand for the file that is meant: another one that has taken its name stays.
                `None` for whichever has the name.

        Raises:
            NoSuchFile: as it says.
            FailedPrecondition: a batch is still being planned from it.
        """
        meant = delete(FILE).where(
            FILE.c.id == file_id, literal(value=True) if path is None else FILE.c.path == path
        )

        def write(connection: Connection) -> str:
            reading = select(BATCH.c.id).where(_reading(), BATCH.c.input_file == file_id)
            if connection.execute(reading.limit(1)).first() is not None:
                raise FailedPrecondition(
                    "a batch is still reading this file: delete it once its requests are counted"
                )
            freed = connection.execute(meant.returning(FILE.c.path)).scalar()
            if freed is None:
                raise _missing(file_id)
            return str(freed)

        return self._writer.run(write, makes_room=True)


def _missing(file_id: str) -> NoSuchFile:
    return NoSuchFile(f"there is no file files/{file_id[:64]}", file_id=file_id, field="name")


def _taken(file_id: str) -> AlreadyExists:
    return AlreadyExists(f"there is a file files/{file_id} already: choose another name", field="file_id")


def _reading() -> Any:
    return BATCH.c.planned.is_(False) & BATCH.c.end_time.is_(None)


def _file(row: Row[Any]) -> FileRecord:
    return FileRecord(
        row.id,
        row.display_name,
        row.mime_type,
        row.size,
        row.sha256,
        moment(row.create_time),
        moment(row.update_time),
        None if row.expire_time is None else moment(row.expire_time),
        row.source,
        row.path,
    )


def _upload(row: Row[Any]) -> UploadRecord:
    return UploadRecord(
        row.token, row.file_id, row.display_name, row.mime_type, row.declared_size, moment(row.create_time)
    )
