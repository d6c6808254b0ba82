"""What the store takes and gives: frozen rows.

Times are aware UTC datetimes, paths are relative to the data folder, digests are SHA-256 in hex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from embatch.states import State

MIXED: Final = -1
"""Dimensions of a shard or batch whose requests ask for different numbers."""

ShardState = Literal["waiting", "claimed", "done"]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be accepted."""

    id: str
    model: str
    display_name: str | None
    priority: int
    inline: bool
    input_file: str | None
    """Id of the file the requests stand in; `None` exactly for an inline batch."""
    idempotency_key: str | None
    """Unique among the batches that exist; `None` for a submit that may double."""
    body_digest: str | None
    """What tells a repeated submit from another one under the same key."""
    create_time: datetime
    expire_time: datetime
    notes: tuple[str, ...] = ()
    run: str | None = None
    """The run it belongs to, whose end hands its vectors to the cache; `None`: nobody's."""
    asked_model: str | None = None
    """The name by which its model was asked for, without `models/`; `None`: its own."""


@dataclass(frozen=True, slots=True)
class PayloadShard:
    """A payload file that is already durable."""

    number: int
    """Position in the batch, from 0."""
    path: str
    digest: str
    request_count: int
    byte_count: int
    dimensions: int
    """What its requests ask for: 0 native for all, n for all, or `MIXED`."""
    cached_count: int = 0
    """Requests that come with their vector."""


@dataclass(frozen=True, slots=True)
class ResultShard:
    """A result file that is already durable."""

    path: str
    digest: str
    successful_count: int
    failed_count: int
    token_count: int
    dimensions: int
    """Native dimensions of its vectors."""
    cpu_micros: int = 0
    """CPU time of the engine for it, in microseconds."""
    computed_by: str | None = None
    """Digest of what computed its vectors; `None`: it has none, or nobody says. Kept with the batch alone."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as stored. Counts are sums over its shards, so pending = request - successful - failed."""

    id: str
    model: str
    display_name: str | None
    priority: int
    state: State
    inline: bool
    input_file: str | None
    planned: bool
    """Whether all its shards are known; `False` only while an input file is being read."""
    dimensions: int
    """What its requests ask for: 0 native for all (also while nothing is planned), n for all, or `MIXED`."""
    native_dimensions: int | None
    """Dimensions of the stored vectors; `None` before the first shard is done."""
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    """When it reached its final state; `None` before."""
    expire_time: datetime
    error: str | None
    """Why it FAILED; `None` in every other state."""
    notes: tuple[str, ...]
    request_count: int
    successful_count: int
    failed_count: int
    token_count: int
    cached_count: int = 0
    cpu_micros: int = 0
    run: str | None = None
    asked_model: str | None = None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard as stored."""

    number: int
    payload: PayloadShard
    attempt: int
    """Claims so far: 0 before the first, then 1-based."""
    state: ShardState
    result: ResultShard | None
    """`None` until it is done."""


@dataclass(frozen=True, slots=True)
class KeptShard:
    """A file that is already durable, of what an attempt finished of a shard that it did not."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work one shard, fenced by its attempt: a later claim of the shard ends it."""

    batch_id: str
    model: str
    number: int
    attempt: int
    payload: PayloadShard
    expire_time: datetime
    excused: int = 0
    """Earlier claims among `attempt` that say nothing against the shard."""
    computed_by: str | None = None
    """Digest of what computed the batch's vectors so far; `None` before there are any."""
    priority: int = 0
    """The batch's, at that time."""
    kept: KeptShard | None = None
    """What an earlier attempt left; `None`: nothing."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a commit."""

    accepted: bool
    """`False`: the claim was lost (a newer attempt, or the batch was stopped): drop the result."""
    state: State | None
    """The batch's state afterwards; `None` if the batch is gone."""
    foreign: bool = False
    """Whether it was refused only because something else computed the batch so far: the claim still holds."""


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A resumable upload under way."""

    token: str
    file_id: str
    display_name: str | None
    mime_type: str
    declared_size: int | None
    """Bytes announced; `None` if the size is not known before the end."""
    create_time: datetime
