"""The store: what is durable about batches and their shards, as verbs of their life.

Every method is blocking and safe to call from any thread. A write is durable when it returns; repeating one
is safe where its docstring says so. A write about a shard is one statement guarded by the attempt and by the
batch still being active: no row updated means the claim is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import orjson
from sqlalchemy import case, delete, func, insert, literal, select, tuple_, update

from embatch.errors import AlreadyExists, FailedPrecondition, IllegalTransition, NotFound
from embatch.states import ACTIVE, FINAL, Event, State, advance, sources
from embatch.store.connect import connect, version
from embatch.store.files import Files
from embatch.store.records import (
    MIXED,
    BatchRecord,
    Claim,
    Committed,
    NewBatch,
    PayloadShard,
    ResultShard,
    ShardRecord,
)
from embatch.store.schema import BATCH, SEQUENCE, SHARD
from embatch.store.times import micros, moment
from embatch.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from threading import Event as Signal

    from sqlalchemy import Connection, Engine, Row


class _Unset:
    """Tells "leave it" from "make it empty"."""


UNSET: Final = _Unset()
_ACTIVE: Final = [state.value for state in ACTIVE]


class Store(Files):
    """Batches, shards and files of one data folder (SQLite) or one database (Postgres)."""

    def __init__(self, writer: Engine, readers: Engine) -> None:
        super().__init__(Writer(writer), readers)
        self._engines = (writer, readers)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database, making or migrating its tables.

        Raises:
            FailedPrecondition: the database was written by a newer version.
        """
        return cls(*connect(url))

    @property
    def broken(self) -> bool:
        """Whether a commit's fate is unknown: the service must exit, the next start finds out."""
        return self.broken_signal.is_set()

    @property
    def broken_signal(self) -> Signal:
        """Set when `broken` becomes true."""
        return self._writer.broken

    def version(self) -> str:
        """Return the database engine with its version, for health."""
        with self._readers.connect() as connection:
            return version(connection)

    def close(self) -> None:
        """Finish queued writes and close. Repeating is safe."""
        self._writer.close()
        for engine in self._engines:
            engine.dispose()

    # accept and plan

    def accept(self, new: NewBatch, shards: Sequence[PayloadShard]) -> tuple[BatchRecord, bool]:
        """Insert a batch with its shards in one transaction; return it, and whether it was there before.

        An inline batch is planned at once; one from a file gets its shards from `plan`. With an idempotency key
        repeating is safe: the first batch is returned.

        Raises:
            AlreadyExists: the key belongs to a batch with another body.
        """

        def write(connection: Connection) -> tuple[str, bool]:
            if new.idempotency_key is not None:
                found = connection.execute(
                    select(BATCH.c.id, BATCH.c.body_digest).where(
                        BATCH.c.idempotency_key == new.idempotency_key
                    )
                ).first()
                if found is not None:
                    if found.body_digest != new.body_digest:
                        raise AlreadyExists(
                            "this idempotency key was used for another batch: send a new key",
                            field="Idempotency-Key",
                            reason="IDEMPOTENCY_MISMATCH",
                        )
                    return str(found.id), True
            at = micros(new.create_time)
            connection.execute(
                insert(BATCH).values(
                    id=new.id,
                    model=new.model,
                    display_name=new.display_name,
                    priority=new.priority,
                    state=State.PENDING.value,
                    inline=new.inline,
                    input_file=new.input_file,
                    planned=new.inline,
                    idempotency_key=new.idempotency_key,
                    body_digest=new.body_digest,
                    create_time=at,
                    update_time=at,
                    expire_time=micros(new.expire_time),
                    turn=0,
                    waiting=len(shards),
                    notes=orjson.dumps(new.notes).decode(),
                )
            )
            _insert_shards(connection, new.id, shards)
            return new.id, False

        batch_id, existed = self._writer.run(write)
        return self.get(batch_id), existed

    def plan(self, batch_id: str, shards: Sequence[PayloadShard], *, complete: bool, now: datetime) -> bool:
        """Add shards to a batch from a file; `complete` ends the planning. `False`: it is final or gone."""

        def write(connection: Connection) -> bool:
            found = connection.execute(
                update(BATCH)
                .where(BATCH.c.id == batch_id, BATCH.c.state.in_(_ACTIVE), BATCH.c.planned.is_(False))
                .values(planned=complete, waiting=BATCH.c.waiting + len(shards), update_time=micros(now))
            )
            if found.rowcount == 0:
                return False
            _insert_shards(connection, batch_id, shards)
            if complete:
                _finish(connection, batch_id, now)
            return True

        return self._writer.run(write)

    def unplan(self, batch_id: str) -> None:
        """Drop the shards of a batch whose planning was cut short, so that it can be planned anew."""

        def write(connection: Connection) -> None:
            unplanned = select(BATCH.c.id).where(BATCH.c.id == batch_id, BATCH.c.planned.is_(False))
            connection.execute(delete(SHARD).where(SHARD.c.batch_id.in_(unplanned)))
            connection.execute(update(BATCH).where(BATCH.c.id.in_(unplanned)).values(waiting=0))

        self._writer.run(write)

    def note(self, batch_id: str, notes: tuple[str, ...]) -> None:
        """Replace a batch's notes. Repeating is safe."""
        words = orjson.dumps(notes).decode()
        self._writer.run(
            lambda connection: (
                connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(notes=words)).rowcount
            )
        )

    def unplanned(self) -> Sequence[BatchRecord]:
        """Return active batches whose input file is not planned to its end, oldest first."""
        return self._batches(
            BATCH.c.planned.is_(False) & BATCH.c.state.in_(_ACTIVE),
            BATCH.c.create_time.asc(),
            BATCH.c.id.asc(),
        )

    # claim and commit

    def claim(self, now: datetime) -> Claim | None:
        """Claim the next shard: highest priority, then the batch whose turn is longest ago, then the oldest.

        The attempt is raised, and PENDING becomes PROCESSING, before this returns. `None`: nothing waits.
        """
        return self._writer.run(lambda connection: self._claim(connection, now))

    def _claim(self, connection: Connection, now: datetime) -> Claim | None:
        batch = connection.execute(
            select(BATCH.c.id, BATCH.c.model, BATCH.c.state, BATCH.c.expire_time)
            .where(BATCH.c.waiting > 0, BATCH.c.state.in_(_ACTIVE))
            .order_by(BATCH.c.priority.desc(), BATCH.c.turn, BATCH.c.create_time, BATCH.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if batch is None:
            return None
        number = (
            select(func.min(SHARD.c.number))
            .where(SHARD.c.batch_id == batch.id, SHARD.c.state == "waiting")
            .scalar_subquery()
        )
        shard = connection.execute(
            update(SHARD)
            .where(SHARD.c.batch_id == batch.id, SHARD.c.number == number, SHARD.c.state == "waiting")
            .values(state="claimed", attempt=SHARD.c.attempt + 1)
            .returning(*SHARD.c)
        ).one()
        turn = connection.execute(
            update(SEQUENCE)
            .where(SEQUENCE.c.id == 1)
            .values(value=SEQUENCE.c.value + 1)
            .returning(SEQUENCE.c.value)
        ).scalar_one()
        state = State(batch.state)
        connection.execute(
            update(BATCH)
            .where(BATCH.c.id == batch.id)
            .values(
                turn=turn,
                waiting=BATCH.c.waiting - 1,
                state=(advance(state, Event.CLAIM) if state in sources(Event.CLAIM) else state).value,
                update_time=micros(now),
            )
        )
        return Claim(
            batch.id, batch.model, shard.number, shard.attempt, _payload(shard), moment(batch.expire_time)
        )

    def release(self, claim: Claim) -> bool:
        """Let a claimed shard wait again. `False`: the claim was lost. Repeating is safe."""

        def write(connection: Connection) -> bool:
            found = connection.execute(_claimed(claim).values(state="waiting"))
            if found.rowcount:
                connection.execute(
                    update(BATCH).where(BATCH.c.id == claim.batch_id).values(waiting=BATCH.c.waiting + 1)
                )
            return bool(found.rowcount)

        return self._writer.run(write)

    def release_all(self) -> int:
        """Let every claimed shard wait again, as after the death of the service; return how many."""

        def write(connection: Connection) -> int:
            found = connection.execute(
                update(SHARD).where(SHARD.c.state == "claimed").values(state="waiting")
            )
            waiting = (
                select(func.count())
                .where(SHARD.c.batch_id == BATCH.c.id, SHARD.c.state == "waiting")
                .scalar_subquery()
            )
            connection.execute(update(BATCH).where(BATCH.c.state.in_(_ACTIVE)).values(waiting=waiting))
            return found.rowcount

        return self._writer.run(write)

    def commit(self, claim: Claim, result: ResultShard, now: datetime) -> Committed:
        """Store the counts and digest of a worked shard, if the claim still holds and the batch is active.

        With the last shard of a planned batch the batch becomes COMPLETED in the same transaction.
        """

        def write(connection: Connection) -> Committed:
            found = connection.execute(
                _claimed(claim).values(
                    state="done",
                    result_path=result.path,
                    result_digest=result.digest,
                    successful_count=result.successful_count,
                    failed_count=result.failed_count,
                    token_count=result.token_count,
                    native_dimensions=result.dimensions,
                )
            )
            if found.rowcount:
                connection.execute(
                    update(BATCH).where(BATCH.c.id == claim.batch_id).values(update_time=micros(now))
                )
                _finish(connection, claim.batch_id, now)
            state = connection.execute(select(BATCH.c.state).where(BATCH.c.id == claim.batch_id)).scalar()
            return Committed(bool(found.rowcount), None if state is None else State(state))

        return self._writer.run(write)

    # the ends of a batch

    def cancel(self, batch_id: str, now: datetime) -> BatchRecord:
        """Cancel an active batch; final on return.

        Raises:
            NotFound: no such batch.
            IllegalTransition: it is final already.
        """
        return self._end(batch_id, Event.CANCEL, None, now)

    def fail(self, batch_id: str, message: str, now: datetime) -> BatchRecord:
        """End an active batch as FAILED with a reason. Raises as `cancel`."""
        return self._end(batch_id, Event.FAIL, message, now)

    def _end(self, batch_id: str, event: Event, message: str | None, now: datetime) -> BatchRecord:
        def write(connection: Connection) -> int:
            return connection.execute(_ending(event, message, now).where(BATCH.c.id == batch_id)).rowcount

        if self._writer.run(write) == 0:
            state = self.get(batch_id).state
            raise IllegalTransition(f"a {state} batch cannot {event}")
        return self.get(batch_id)

    def expire(self, now: datetime) -> Sequence[str]:
        """End every active batch whose time has passed as EXPIRED; return their ids."""

        def write(connection: Connection) -> list[str]:
            due = _ending(Event.EXPIRE, None, now).where(BATCH.c.expire_time <= micros(now))
            return [str(row.id) for row in connection.execute(due.returning(BATCH.c.id))]

        return self._writer.run(write)

    def update(
        self,
        batch_id: str,
        *,
        display_name: str | _Unset | None = UNSET,
        priority: int | None = None,
        now: datetime,
    ) -> BatchRecord:
        """Change display name or priority; `UNSET` and `None` leave them. Repeating is safe. Raises NotFound."""
        values: dict[str, Any] = {"update_time": micros(now)}
        if not isinstance(display_name, _Unset):
            values["display_name"] = display_name
        if priority is not None:
            values["priority"] = priority
        self._writer.run(
            lambda connection: (
                connection.execute(update(BATCH).where(BATCH.c.id == batch_id).values(**values)).rowcount
            )
        )
        return self.get(batch_id)

    def delete(self, batch_id: str) -> None:
        """Remove a final batch and its shards from the database; its files are the caller's.

        Raises:
            NotFound: no such batch.
            FailedPrecondition: it is not final: cancel it first.
        """

        def write(connection: Connection) -> int:
            found = connection.execute(
                delete(BATCH).where(
                    BATCH.c.id == batch_id, BATCH.c.state.in_([state.value for state in FINAL])
                )
            )
            return found.rowcount

        if self._writer.run(write) == 0:
            state = self.get(batch_id).state
            raise FailedPrecondition(f"a {state} batch cannot be deleted: cancel it first")

    # reading

    def get(self, batch_id: str) -> BatchRecord:
        """Return a batch with its counts. Raises NotFound."""
        found = self._batches(BATCH.c.id == batch_id)
        if not found:
            raise NotFound(f"there is no batch batches/{batch_id[:64]}")
        return found[0]

    def list(self, limit: int, after: tuple[int, str] | None) -> Sequence[BatchRecord]:
        """Return up to `limit` batches, newest first; `after` is the (create time, id) of the last one seen."""
        where = literal(value=True) if after is None else tuple_(BATCH.c.create_time, BATCH.c.id) < after
        return self._batches(where, BATCH.c.create_time.desc(), BATCH.c.id.desc(), limit=limit)

    def shards(self, batch_id: str) -> Sequence[ShardRecord]:
        """Return the shards of a batch by number."""
        query = select(SHARD).where(SHARD.c.batch_id == batch_id).order_by(SHARD.c.number)
        with self._readers.connect() as connection:
            return [_shard(row) for row in connection.execute(query)]

    def prunable(self, before: datetime, limit: int) -> Sequence[str]:
        """Return ids of batches that were final before a time, oldest first."""
        query = (
            select(BATCH.c.id)
            .where(BATCH.c.end_time < micros(before))
            .order_by(BATCH.c.end_time)
            .limit(limit)
        )
        with self._readers.connect() as connection:
            return list(connection.execute(query).scalars())

    def ids_of_batches(self) -> set[str]:
        """Return the ids of all batches, to tell orphaned folders."""
        with self._readers.connect() as connection:
            return set(connection.execute(select(BATCH.c.id)).scalars())

    def _batches(self, where: Any, *order: Any, limit: int | None = None) -> Sequence[BatchRecord]:
        chosen = select(BATCH).where(where).order_by(*order)
        if limit is not None:
            chosen = chosen.limit(limit)
        batch = chosen.subquery("chosen")
        sums = (
            select(
                SHARD.c.batch_id,
                func.sum(SHARD.c.request_count).label("requests"),
                func.sum(SHARD.c.successful_count).label("successful"),
                func.sum(SHARD.c.failed_count).label("failed"),
                func.sum(SHARD.c.token_count).label("tokens"),
                func.max(SHARD.c.native_dimensions).label("native"),
                case(
                    (
                        func.min(SHARD.c.dimensions) == func.max(SHARD.c.dimensions),
                        func.min(SHARD.c.dimensions),
                    ),
                    else_=MIXED,
                ).label("asked"),
            )
            .where(SHARD.c.batch_id.in_(select(batch.c.id)))
            .group_by(SHARD.c.batch_id)
            .subquery("sums")
        )
        query = select(batch, sums).outerjoin(sums, sums.c.batch_id == batch.c.id)
        with self._readers.connect() as connection:
            rows = {row.id: _batch(row) for row in connection.execute(query)}
            ids = (
                connection.execute(select(chosen.subquery("ordered").c.id)).scalars()
                if len(rows) > 1
                else rows
            )
            return [rows[id_] for id_ in ids if id_ in rows]


def _insert_shards(connection: Connection, batch_id: str, shards: Sequence[PayloadShard]) -> None:
    if not shards:
        return
    connection.execute(
        insert(SHARD),
        [
            {
                "batch_id": batch_id,
                "number": shard.number,
                "state": "waiting",
                "attempt": 0,
                "path": shard.path,
                "digest": shard.digest,
                "request_count": shard.request_count,
                "byte_count": shard.byte_count,
                "dimensions": shard.dimensions,
                "successful_count": 0,
                "failed_count": 0,
                "token_count": 0,
            }
            for shard in shards
        ],
    )


def _claimed(claim: Claim) -> Any:
    """Return the guard of every write about a claimed shard, in one statement."""
    return update(SHARD).where(
        SHARD.c.batch_id == claim.batch_id,
        SHARD.c.number == claim.number,
        SHARD.c.attempt == claim.attempt,
        SHARD.c.state == "claimed",
        select(BATCH.c.id).where(BATCH.c.id == claim.batch_id, BATCH.c.state.in_(_ACTIVE)).exists(),
    )


def _finish(connection: Connection, batch_id: str, now: datetime) -> None:
    """Complete a planned batch if its last shard is done."""
    open_shards = select(SHARD.c.number).where(SHARD.c.batch_id == batch_id, SHARD.c.state != "done").exists()
    connection.execute(
        _ending(Event.FINISH, None, now).where(
            BATCH.c.id == batch_id, BATCH.c.planned.is_(True), ~open_shards
        )
    )


def _ending(event: Event, message: str | None, now: datetime) -> Any:
    """Return the statement that ends batches by an event of the transition table."""
    allowed = sources(event)
    (target,) = {advance(state, event) for state in allowed}
    at = micros(now)
    return (
        update(BATCH)
        .where(BATCH.c.state.in_([state.value for state in allowed]))
        .values(state=target.value, end_time=at, update_time=at, error=message, waiting=0)
    )


def _payload(row: Row[Any]) -> PayloadShard:
    return PayloadShard(row.number, row.path, row.digest, row.request_count, row.byte_count, row.dimensions)


def _shard(row: Row[Any]) -> ShardRecord:
    result = None
    if row.result_path is not None:
        result = ResultShard(
            row.result_path,
            row.result_digest,
            row.successful_count,
            row.failed_count,
            row.token_count,
            row.native_dimensions,
        )
    return ShardRecord(row.number, _payload(row), row.attempt, row.state, result)


def _batch(row: Row[Any]) -> BatchRecord:
    return BatchRecord(
        row.id,
        row.model,
        row.display_name,
        row.priority,
        State(row.state),
        bool(row.inline),
        row.input_file,
        bool(row.planned),
        int(row.asked or 0),
        row.native,
        moment(row.create_time),
        moment(row.update_time),
        None if row.end_time is None else moment(row.end_time),
        moment(row.expire_time),
        row.error,
        tuple(orjson.loads(row.notes)),
        int(row.requests or 0),
        int(row.successful or 0),
        int(row.failed or 0),
        int(row.tokens or 0),
    )
