"""The right to work shards: taken, given back, and ended by what they came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.states import State
from embatch.store import statements
from embatch.store.batches import payload
from embatch.store.faults import reading
from embatch.store.records import Claim, Committed, KeptShard, ResultShard
from embatch.store.times import micros, moment

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from embatch.store.writer import Writer

_HIGHEST: Final = 2**63 - 1
_LOWEST: Final = -(2**63)


class _LostError(Exception):
    """The claim is lost; raised inside a write to undo what it began."""


class _ForeignError(Exception):
    """Something else computed the batch so far; raised as `_LostError` is."""


class ShardRows:
    """The part of the store that claims shards. Every method raises Unavailable if it cannot."""

    def __init__(self, writer: Writer, readers: Engine) -> None:
        self._writer, self._readers = writer, readers

    def claim(
        self,
        now: datetime,
        *,
        without: Collection[str] = (),
        resting: Collection[str] = (),
        least: int | None = None,
        beside: Collection[str] = (),
        first: Collection[str] = (),
    ) -> Claim | None:
        """Claim the next shard: highest priority, then the batch whose turn is longest ago, then the oldest.

        At equal priority those come first whose model is one of `first`. The attempt is raised, and PENDING
        becomes PROCESSING, before this returns. `None`: nothing waits, the models of `without`, the batches
        of `resting`, and priorities below `least` left out, but for models of `beside`.
        """
        if least is not None and least > _HIGHEST:
            return None
        chosen: dict[str, object] = {"now": micros(now)}
        among = {"without": list(without), "resting": list(resting), "beside": list(beside), **chosen}
        among |= {"least": _LOWEST if least is None else least, "first": list(first)}
        left_out = without or resting or least is not None

        def write(connection: Connection) -> Claim | None:
            batch = connection.execute(statements.CLAIM_BATCH_FIRST, among).first() if first else None
            if batch is None and left_out:
                batch = connection.execute(statements.CLAIM_BATCH_OF_OTHERS, among).first()
            elif batch is None:
                batch = connection.execute(statements.CLAIM_BATCH, chosen).first()
            if batch is None:
                return None
            shard = connection.execute(statements.CLAIM_SHARD, {"owner": batch.id}).one()
            return Claim(
                batch.id,
                batch.model,
                shard.number,
                shard.attempt,
                payload(shard),
                moment(batch.expire_time),
                shard.excused,
                batch.computed_by,
                batch.priority,
                None if shard.kept_path is None else KeptShard(shard.kept_path, shard.kept_digest),
            )

        return self._writer.run(write)

    def release(self, claim: Claim, *, excused: bool = False, kept: KeptShard | None = None) -> bool:
        """Let a claimed shard wait again. `False`: the claim was lost. Repeating is safe.

        `excused`: that it was claimed and not worked says nothing against it. `kept` is what the next attempt
        finds; `None` leaves it what this one found.
        """
        left = (None, None) if kept is None else (kept.path, kept.digest)
        given_back = {**_held(claim), "forgiven": int(excused), "kept": left[0], "kept_sha256": left[1]}

        def write(connection: Connection) -> None:
            if connection.execute(statements.RELEASE, given_back).rowcount == 0:
                raise _LostError
            if connection.execute(statements.WAIT_AGAIN, {"owner": claim.batch_id}).rowcount == 0:
                raise _LostError

        try:
            self._writer.run(write, makes_room=True)
        except _LostError:
            return False
        return True

    def release_all(self) -> int:
        """Let every claimed shard of an active batch wait again; return how many. Repeating is safe.

        For the start of a service, when all claims are of a dead one.
        """

        def write(connection: Connection) -> int:
            released = connection.execute(statements.RELEASE_ALL).rowcount
            connection.execute(statements.RECOUNT_WAITING)
            return released

        return self._writer.run(write, makes_room=True)

    def claimed(self) -> Sequence[tuple[str, int, int]]:
        """Return batch, number and attempt of every claimed shard."""
        with reading(self._readers) as connection:
            return [(row.batch_id, row.number, row.attempt) for row in connection.execute(statements.CLAIMED)]

    def kept_for_nobody(self) -> Sequence[str]:
        """Return the paths that `release` was given for shards that nobody will work again."""
        with reading(self._readers) as connection:
            return list(connection.execute(statements.KEPT_FOR_NOBODY).scalars())

    def forget_kept(self) -> None:
        """Forget the paths that `kept_for_nobody` returns. Repeating is safe."""
        self._writer.run(lambda connection: connection.execute(statements.FORGET_KEPT))

    def commit(self, claim: Claim, result: ResultShard, now: datetime) -> Committed:
        """Store the counts and digest of a worked shard, if the claim still holds and the batch is active.

        With the last shard of a planned batch the batch becomes COMPLETED in the same transaction. What
        computed the first vectors of a batch computes all of it: a result of something else is refused.
        """
        worked = {
            **_held(claim),
            "result": result.path,
            "sha256": result.digest,
            "successful": result.successful_count,
            "failed": result.failed_count,
            "tokens": result.token_count,
            "cpu": result.cpu_micros,
            "native": result.dimensions,
        }
        this = {"owner": claim.batch_id, "now": micros(now)}
        computed = {"owner": claim.batch_id, "engine": result.computed_by}

        def write(connection: Connection) -> State:
            if connection.execute(statements.COMMIT, worked).rowcount == 0:
                raise _LostError
            if result.computed_by and connection.execute(statements.COMPUTED_BY, computed).rowcount == 0:
                raise _ForeignError
            state = connection.execute(statements.FINISH, this).scalar()
            if state is None:  # another service stopped the batch between the two statements
                raise _LostError
            return State(state)

        try:
            return Committed(accepted=True, state=self._writer.run(write, makes_room=True))
        except (_LostError, _ForeignError) as refused:
            with reading(self._readers) as connection:
                state = connection.execute(statements.STATE, {"owner": claim.batch_id}).scalar()
            foreign = isinstance(refused, _ForeignError)
            return Committed(accepted=False, state=None if state is None else State(state), foreign=foreign)


def _held(claim: Claim) -> dict[str, object]:
    return {"owner": claim.batch_id, "at": claim.number, "claimed_attempt": claim.attempt}
