"""Looking at batches: one statement for each look, so that state and counts are of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from embatch.errors import NotFound
from embatch.states import State
from embatch.store import statements
from embatch.store.faults import damaged, reading
from embatch.store.records import MIXED, BatchRecord, NewBatch, PayloadShard, ResultShard, ShardRecord
from embatch.store.times import micros, moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Engine, Row


class BatchRows:
    """The part of the store that looks at batches. Every method raises Unavailable if it cannot look."""

    def __init__(self, readers: Engine) -> None:
        self._readers = readers

    def get(self, batch_id: str) -> BatchRecord:
        """Return a batch with its counts.

        Raises:
            NotFound: no such batch.
        """
        found = self._records(statements.RECORD, owner=batch_id)
        if not found:
            raise NotFound(f"there is no batch batches/{batch_id[:64]}")
        return found[0]

    def list(self, limit: int, after: tuple[int, str] | None) -> Sequence[BatchRecord]:
        """Return up to `limit` batches, newest first; `after` is the (create time, id) of the last one seen.

        Times as `times.micros` gives them. Pages neither repeat nor miss a batch, whatever arrives meanwhile.
        """
        if after is None:
            return self._records(statements.FIRST_PAGE, most=limit)
        return self._records(statements.NEXT_PAGE, most=limit, seen_time=after[0], seen_id=after[1])

    def unplanned(self) -> Sequence[BatchRecord]:
        """Return active batches whose input file is not planned to its end, oldest first."""
        return self._records(statements.UNPLANNED)

    def shards(self, batch_id: str) -> Sequence[ShardRecord]:
        """Return the shards of a batch by number; none if there is no such batch."""
        with reading(self._readers) as connection:
            return [_shard(row) for row in connection.execute(statements.SHARDS, {"owner": batch_id})]

    def prunable(self, before: datetime, limit: int) -> Sequence[str]:
        """Return ids of up to `limit` batches that were final before a time, the oldest end first."""
        with reading(self._readers) as connection:
            found = connection.execute(statements.PRUNABLE, {"before": micros(before), "most": limit})
            return found.scalars().all()

    def ids_of_batches(self) -> set[str]:
        """Return the ids of all batches, to tell orphaned folders."""
        with reading(self._readers) as connection:
            return set(connection.execute(statements.IDS).scalars())

    def models_of_batches(self) -> set[str]:
        """Return the models that any batch has, final ones included."""
        with reading(self._readers) as connection:
            return set(connection.execute(statements.MODELS).scalars())

    def _records(self, statement: Any, **parameters: object) -> Sequence[BatchRecord]:
        with reading(self._readers) as connection:
            rows = connection.execute(statement, parameters).all()
        try:
            return [_batch(row) for row in rows]
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged() from error  # a state, a time or a note that we cannot have written


def payload(row: Row[Any]) -> PayloadShard:
    """Return the payload columns of a shard."""
    return PayloadShard(
        row.number, row.path, row.digest, row.request_count, row.byte_count, row.dimensions, row.cached_count
    )


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
            row.cpu_micros,
        )
    return ShardRecord(row.number, payload(row), row.attempt, row.state, result)


def _batch(row: Row[Any]) -> BatchRecord:
    return BatchRecord(
        id=row.id,
        model=row.model,
        display_name=row.display_name,
        priority=row.priority,
        state=State(row.state),
        inline=row.inline,
        input_file=row.input_file,
        planned=row.planned,
        dimensions=0 if row.requests is None else row.asked,
        native_dimensions=row.native,
        create_time=moment(row.create_time),
        update_time=moment(row.update_time),
        end_time=None if row.end_time is None else moment(row.end_time),
        expire_time=moment(row.expire_time),
        error=row.error,
        notes=tuple(orjson.loads(row.notes)),
        # An outer join without a shard sums to nothing, and Postgres sums large integers to decimals.
        request_count=int(row.requests or 0),
        successful_count=int(row.successful or 0),
        failed_count=int(row.failed or 0),
        token_count=int(row.tokens or 0),
        cached_count=int(row.cached or 0),
        cpu_micros=int(row.cpu or 0),
        run=row.run,
        asked_model=row.asked_model,
    )


def accepted(new: NewBatch, shards: Sequence[PayloadShard]) -> BatchRecord:
    """Return the record of a batch just inserted; reading it back would cost more than inserting it."""
    asked = {shard.dimensions for shard in shards} or {0}
    return BatchRecord(
        id=new.id,
        model=new.model,
        display_name=new.display_name,
        priority=new.priority,
        state=State.PENDING,
        inline=new.inline,
        input_file=new.input_file,
        planned=new.inline,
        dimensions=asked.pop() if len(asked) == 1 else MIXED,
        native_dimensions=None,
        create_time=new.create_time,
        update_time=new.create_time,
        end_time=None,
        expire_time=new.expire_time,
        error=None,
        notes=new.notes,
        request_count=sum(shard.request_count for shard in shards),
        successful_count=0,
        failed_count=0,
        token_count=0,
        cached_count=sum(shard.cached_count for shard in shards),
        run=new.run,
        asked_model=new.asked_model,
    )


def shard_rows(batch_id: str, shards: Sequence[PayloadShard]) -> list[dict[str, object]]:
    """Return the rows of payload shards that are about to be inserted."""
    return [
        {
            "batch_id": batch_id,
            "number": shard.number,
            "path": shard.path,
            "digest": shard.digest,
            "request_count": shard.request_count,
            "byte_count": shard.byte_count,
            "dimensions": shard.dimensions,
            "cached_count": shard.cached_count,
        }
        for shard in shards
    ]
