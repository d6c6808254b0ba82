"""The tables. What the database refuses derives from the transition table; times are microseconds since 1970.

No table has a row for each request: counts live on the shard. `waiting` on the batch counts its waiting
shards, so that the index a claim reads holds nothing but batches with something to claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from embatch.states import ACTIVE, State

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION: Final = "0006"
"""The newest migration. A test holds it, the migrations and these tables together."""
METADATA: Final = MetaData()


def one_of(column: str, words: Iterable[str]) -> str:
    """Return SQL that is true for rows whose column is one of these words, which are constants of ours."""
    listed = ", ".join(f"'{word}'" for word in sorted(words))
    return f"{column} IN ({listed})"


_ACTIVE: Final = one_of("state", ACTIVE)

BATCH: Final = Table(
    "batch",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model", Text, nullable=False),
    Column("display_name", Text),
    Column("priority", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("inline", Boolean, nullable=False),
    Column("input_file", Text),
    Column("planned", Boolean, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("body_digest", Text),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Column("expire_time", BigInteger, nullable=False),
    # Grows with every claim of any batch: the smallest is the batch whose turn is longest ago.
    Column("turn", BigInteger, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("error", Text),
    Column("notes", Text, nullable=False),
    # Whose end hands this batch's vectors to the cache.
    Column("run", Text),
    # What computed its first vectors, as a digest: no others are taken. NULL before there are any.
    Column("computed_by", Text),
    # The name its model was asked for by, where that is another one. NULL also for what older versions took.
    Column("asked_model", Text),
    CheckConstraint(one_of("state", State), name="known_state"),
    CheckConstraint(f"(end_time IS NULL) = ({_ACTIVE})", name="ended_exactly_when_final"),
    CheckConstraint("waiting >= 0", name="waiting_not_negative"),
    CheckConstraint(f"waiting = 0 OR {_ACTIVE}", name="nothing_waits_when_final"),
    CheckConstraint("inline = (input_file IS NULL)", name="inline_or_from_a_file"),
    CheckConstraint("planned OR NOT inline", name="inline_is_planned"),
    sqlite_with_rowid=False,
)
_CLAIM: Final = Index("batch_claim", BATCH.c.priority.desc(), BATCH.c.turn, BATCH.c.create_time, BATCH.c.id)
Index("batch_turn", BATCH.c.turn)
Index("batch_newest", BATCH.c.create_time.desc(), BATCH.c.id.desc())
# Active batches (no end) by when they expire, final ones by when they ended.
Index("batch_end", BATCH.c.end_time, BATCH.c.expire_time)

SHARD: Final = Table(
    "shard",
    METADATA,
    Column("batch_id", String(64), ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(8), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("request_count", Integer, nullable=False),
    Column("byte_count", BigInteger, nullable=False),
    Column("dimensions", Integer, nullable=False),
    Column("result_path", Text),
    Column("result_digest", String(64)),
    Column("successful_count", Integer, nullable=False),
    Column("failed_count", Integer, nullable=False),
    Column("token_count", BigInteger, nullable=False),
    Column("native_dimensions", Integer),
    Column("cached_count", Integer, nullable=False, server_default="0"),
    Column("cpu_micros", BigInteger, nullable=False, server_default="0"),
    # Claims among `attempt` that say nothing against the shard.
    Column("excused", Integer, nullable=False, server_default="0"),
    # What an attempt that was stopped had finished; nothing once the shard is done, for the file has gone.
    Column("kept_path", Text),
    Column("kept_digest", String(64)),
    CheckConstraint("state IN ('claimed', 'done', 'waiting')", name="known_shard_state"),
    CheckConstraint("attempt >= 0 AND (state = 'waiting' OR attempt > 0)", name="worked_only_when_claimed"),
    CheckConstraint("request_count > 0", name="no_empty_shard"),
    CheckConstraint(
        "(state = 'done') = (result_path IS NOT NULL)"
        " AND (state = 'done') = (result_digest IS NOT NULL)"
        " AND (state = 'done') = (native_dimensions IS NOT NULL)",
        name="result_exactly_when_done",
    ),
    CheckConstraint(
        "successful_count >= 0 AND failed_count >= 0 AND token_count >= 0"
        " AND successful_count + failed_count = CASE WHEN state = 'done' THEN request_count ELSE 0 END",
        name="every_request_counted_once",
    ),
    sqlite_with_rowid=False,
)
# What is left to do. It empties as work goes on: neither a claim nor the end of a batch reads what is done.
_OPEN: Final = Index("shard_open", SHARD.c.batch_id, SHARD.c.state, SHARD.c.number)
_KEPT: Final = Index("shard_kept", SHARD.c.batch_id)

FILE: Final = Table(
    "file",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("display_name", Text),
    Column("mime_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger),
    Column("source", String(16), nullable=False),
    Column("path", Text, nullable=False),
    CheckConstraint("size >= 0", name="size_not_negative"),
)
Index("file_newest", FILE.c.create_time.desc(), FILE.c.id.desc())
Index("file_path", FILE.c.path)

UPLOAD: Final = Table(
    "upload",
    METADATA,
    Column("token", String(64), primary_key=True),
    Column("file_id", String(64), nullable=False, unique=True),
    Column("display_name", Text),
    Column("mime_type", Text, nullable=False),
    Column("declared_size", BigInteger),
    Column("create_time", BigInteger, nullable=False),
)

IDENTITY: Final = Table("identity", METADATA, Column("id", String(32), primary_key=True))
"""One row, or none before anybody asked; see `identity`."""


def make_partial(dialect: str) -> None:
    """Give the partial indexes their condition for `sqlite` or `postgresql`; repeating is safe.

    Not where they are defined: naming a dialect there loads it, 0.2 s of Postgres for everybody.
    """
    conditions = ((_CLAIM, "waiting > 0"), (_OPEN, "state <> 'done'"), (_KEPT, "kept_path IS NOT NULL"))
    for index, condition in conditions:
        index.dialect_options[dialect]["where"] = text(condition)
