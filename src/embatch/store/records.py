"""What the store takes and gives: frozen rows. Times are aware UTC datetimes; paths are relative to the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from embatch.states import State

MIXED = -1
"""Dimensions of a shard or batch whose requests ask for different numbers."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be accepted."""

    id: str
    model: str
    display_name: str | None
    priority: int
    inline: bool
    input_file: str | None
    idempotency_key: str | None
    body_digest: str | None
    create_time: datetime
    expire_time: datetime
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PayloadShard:
    """A payload file that is already durable."""

    number: int
    path: str
    digest: str
    request_count: int
    byte_count: int
    dimensions: int
    """What its requests ask for: 0 native for all, n for all, or `MIXED`."""


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


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as stored; counts are sums over its shards, so pending = request - successful - failed."""

    id: str
    model: str
    display_name: str | None
    priority: int
    state: State
    inline: bool
    input_file: str | None
    planned: bool
    dimensions: int
    native_dimensions: int | None
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    expire_time: datetime
    error: str | None
    notes: tuple[str, ...]
    request_count: int
    successful_count: int
    failed_count: int
    token_count: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard as stored."""

    number: int
    payload: PayloadShard
    attempt: int
    state: str
    result: ResultShard | None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work one shard, fenced by its attempt."""

    batch_id: str
    model: str
    number: int
    attempt: int
    payload: PayloadShard
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a commit."""

    accepted: bool
    """`False`: the claim was lost (a newer attempt, or the batch was stopped): drop the result."""
    state: State | None
    """The batch's state afterwards; `None` if the batch is gone."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a user."""

    id: str
    display_name: str | None
    mime_type: str
    size: int
    sha256: str
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    source: str
    path: str


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A resumable upload under way."""

    token: str
    file_id: str
    display_name: str | None
    mime_type: str
    declared_size: int | None
    create_time: datetime
