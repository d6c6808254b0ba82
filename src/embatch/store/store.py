"""The store: what is durable about batches, as verbs of their life.

Every method blocks and is safe to call from any thread. What a writing one returned is durable; repeating one
is safe where its docstring says so. A write about a claimed shard is one statement guarded by the attempt and
by the batch being active: no row updated means the claim is lost.

All of them raise Unavailable when nothing could be written: STORAGE_FULL and STORAGE_BUSY changed nothing;
after STORAGE_ERROR the fate of the write is unknown and the service must exit (`broken_signal`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import orjson
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from embatch.errors import AlreadyExists, FailedPrecondition, IllegalTransition, Internal
from embatch.states import Event, State
from embatch.store import statements
from embatch.store.ballast import Ballast
from embatch.store.batches import BatchRows, accepted, shard_rows
from embatch.store.connect import connect
from embatch.store.faults import reading
from embatch.store.files import FileRows
from embatch.store.identity import identity_of
from embatch.store.schema import BATCH
from embatch.store.shards import ShardRows
from embatch.store.times import micros
from embatch.store.writer import Writer

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from embatch.store.connect import Database
    from embatch.store.records import BatchRecord, NewBatch, PayloadShard


class _Unset:
    """Tells "leave it" from "make it empty"."""


UNSET: Final = _Unset()


class Store(BatchRows, FileRows, ShardRows):
    """Batches, shards and files of one data folder (SQLite) or one database (Postgres)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        ballast = None
        if database.path is not None:
            ballast = Ballast(database.path.with_name("ballast"))
            ballast.fill()
        self._writer = Writer(database.writer, ballast=ballast, between=database.tend)
        BatchRows.__init__(self, database.readers)
        FileRows.__init__(self, self._writer, database.readers)
        ShardRows.__init__(self, self._writer, database.readers)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database, making or migrating its tables: `sqlite:////path/embatch.db`, `postgresql+psycopg://…`.

        Raises:
            FailedPrecondition: the database was written by a newer version.
            DataLoss: it is damaged.
            Unavailable: it cannot be opened.
        """
        return cls(connect(url))

    @property
    def broken(self) -> bool:
        """Whether a commit's fate is unknown: the service must exit, the next start finds out."""
        return self.broken_signal.is_set()

    @property
    def broken_signal(self) -> threading.Event:
        """Set when `broken` becomes true."""
        return self._writer.broken

    def give_up(self) -> None:
        """Take no more writes, as when `broken`: the database may be somebody else's by now."""
        self.broken_signal.set()

    def identity(self) -> str:
        """Return what tells this database from all others, durable on return. Repeating is safe."""
        return self._writer.run(identity_of)

    def version(self) -> str:
        """Return the database engine with its version, for health."""
        with reading(self._readers) as connection:
            return self._database.version(connection)

    def wal_bytes(self) -> int:
        """Return the size of SQLite's write-ahead log, bounded unless a reader never ends; 0 on Postgres."""
        return self._database.wal_bytes()

    def close(self) -> None:
        """Finish queued writes and close. Repeating is safe."""
        self._writer.close()
        self._database.close()

    # accept and plan

    def accept(self, new: NewBatch, shards: Sequence[PayloadShard]) -> tuple[BatchRecord, bool]:
        """Insert a batch with its shards in one transaction; return it, and whether it was there before.

        An inline batch is planned at once; one from a file gets its shards from `plan`. With an idempotency
        key repeating is safe, also at the same time: the first batch is returned.

        Raises:
            AlreadyExists: the key belongs to a batch with another body (IDEMPOTENCY_MISMATCH).
        """
        values = {
            "id": new.id,
            "model": new.model,
            "display_name": new.display_name,
            "priority": new.priority,
            "state": State.PENDING.value,
            "inline": new.inline,
            "input_file": new.input_file,
            "planned": new.inline,
            "idempotency_key": new.idempotency_key,
            "body_digest": new.body_digest,
            "run": new.run,
            "asked_model": new.asked_model,
            "create_time": micros(new.create_time),
            "update_time": micros(new.create_time),
            "expire_time": micros(new.expire_time),
            "waiting": len(shards),
            "notes": orjson.dumps(new.notes).decode(),
        }
        rows = shard_rows(new.id, shards)

        def write(connection: Connection) -> None:
            connection.execute(statements.ACCEPT, values)
            if rows:
                connection.execute(statements.ADD_SHARDS, rows)

        try:
            self._writer.run(write)
        except IntegrityError as error:
            # Asking for the key first would cost every submit what only a repeated one needs.
            found = None if new.idempotency_key is None else self._of_key(new)
            if found is None:
                raise Internal("the batch was refused by the database: this is a bug") from error
            return found, True
        return accepted(new, shards), False

    def accept_of_file(self, new: NewBatch) -> BatchRecord:
        """As `accept`, of a batch whose input file must be there; that of a repeated one may be gone.

        Raises:
            AlreadyExists: as `accept`.
            NoSuchFile: as it says.
        """
        if new.idempotency_key is not None and (found := self._of_key(new)) is not None:
            return found
        self.file(new.input_file or "")
        return self.accept(new, [])[0]

    def _of_key(self, new: NewBatch) -> BatchRecord | None:
        with reading(self._readers) as connection:
            found = connection.execute(statements.BY_KEY, {"key": new.idempotency_key}).first()
        if found is None:
            return None
        if found.body_digest != new.body_digest:
            raise AlreadyExists(
                "this idempotency key was used for another batch: send a new key",
                field="idempotency_key",
                reason="IDEMPOTENCY_MISMATCH",
            )
        return self.get(found.id)

    def plan(self, batch_id: str, shards: Sequence[PayloadShard], *, complete: bool, now: datetime) -> bool:
        """Add shards to a batch from a file; `complete` ends the planning. `False`: it is final or gone.

        Shards can be claimed at once. If all are done when planning ends, the batch is COMPLETED with it.
        """
        rows = shard_rows(batch_id, shards)
        moved = {"owner": batch_id, "complete": complete, "added": len(rows), "now": micros(now)}

        def write(connection: Connection) -> bool:
            if connection.execute(statements.PLAN, moved).rowcount == 0:
                return False
            if rows:
                connection.execute(statements.ADD_SHARDS, rows)
            if complete:
                connection.execute(statements.FINISH, {"owner": batch_id, "now": micros(now)})
            return True

        return self._writer.run(write)

    def note(self, batch_id: str, notes: tuple[str, ...]) -> None:
        """Replace a batch's notes. Repeating is safe."""
        words = orjson.dumps(notes).decode()
        self._write(statements.NOTE, owner=batch_id, words=words)

    # the ends of a batch

    def cancel(self, batch_id: str, now: datetime) -> BatchRecord:
        """Cancel an active batch; final on return: no later commit is accepted.

        Raises:
            NotFound: no such batch.
            IllegalTransition: it is final already.
        """
        return self._end(Event.CANCEL, batch_id, now)

    def fail(self, batch_id: str, message: str, now: datetime) -> BatchRecord:
        """End an active batch as FAILED with a reason. Raises as `cancel`."""
        return self._end(Event.FAIL, batch_id, now, message)

    def _end(self, event: Event, batch_id: str, now: datetime, message: str | None = None) -> BatchRecord:
        ended = self._write(statements.END[event], owner=batch_id, now=micros(now), message=message)
        record = self.get(batch_id)
        if not ended:
            raise IllegalTransition(f"a {record.state} batch cannot {event}")
        return record

    def expire(self, now: datetime, *, due: datetime | None = None) -> Sequence[str]:
        """End every active batch whose time has passed as EXPIRED; return their ids. Repeating is safe.

        `due` is the time that counts where it is not what the clock shows; `None`: `now`.
        """
        times = {"now": micros(now), "due": micros(due or now), "message": None}
        return self._writer.run(
            lambda connection: connection.execute(statements.EXPIRE, times).scalars().all(), makes_room=True
        )

    def delete(self, batch_id: str) -> None:
        """Remove a final batch and its shards from the database; its files are the caller's.

        Raises:
            NotFound: no such batch.
            FailedPrecondition: it is not final: cancel it first.
        """
        if not self._write(statements.DELETE, owner=batch_id):
            state = self.get(batch_id).state
            raise FailedPrecondition(f"a {state} batch cannot be deleted: cancel it first")

    def update(
        self,
        batch_id: str,
        *,
        display_name: str | _Unset | None = UNSET,
        priority: int | None = None,
        now: datetime,
    ) -> BatchRecord:
        """Change display name or priority; `UNSET` and `None` leave them. Repeating is safe.

        Raises:
            NotFound: no such batch.
        """
        values: dict[str, object] = {"update_time": micros(now)}
        if not isinstance(display_name, _Unset):
            values["display_name"] = display_name
        if priority is not None:
            values["priority"] = priority
        self._write(update(BATCH).where(BATCH.c.id == batch_id).values(**values))
        return self.get(batch_id)

    def _write(self, statement: Any, **parameters: object) -> int:
        """Run one statement that changes or ends something; return how many rows it met."""
        return self._writer.run(
            lambda connection: connection.execute(statement, parameters).rowcount, makes_room=True
        )
