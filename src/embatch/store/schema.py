"""The tables. What the database refuses derives from the transition table; times are microseconds since 1970."""

from __future__ import annotations

from typing import Final

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

from embatch.states import ACTIVE, FINAL, State

VERSION: Final = "0001"
METADATA: Final = MetaData()


def _one_of(column: str, words: list[str]) -> str:
    return f"{column} IN ({', '.join(f'{word!r}' for word in sorted(words))})"


_ACTIVE = _one_of("state", [state.value for state in ACTIVE])

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
    Column("turn", BigInteger, nullable=False),
    Column("waiting", Integer, nullable=False),
    Column("error", Text),
    Column("notes", Text, nullable=False),
    CheckConstraint(_one_of("state", [state.value for state in State]), name="known_state"),
    CheckConstraint(f"(end_time IS NULL) = ({_ACTIVE})", name="ended_exactly_when_final"),
    CheckConstraint("waiting >= 0", name="waiting_not_negative"),
)
# The next batch to claim from: priority, then turn, then age. Only batches with a waiting shard stand in it.
Index(
    "batch_claim",
    BATCH.c.priority.desc(),
    BATCH.c.turn,
    BATCH.c.create_time,
    BATCH.c.id,
    sqlite_where=text(f"waiting > 0 AND {_ACTIVE}"),
    postgresql_where=text(f"waiting > 0 AND {_ACTIVE}"),
)
Index("batch_newest", BATCH.c.create_time.desc(), BATCH.c.id.desc())
Index("batch_end", BATCH.c.end_time)

SHARD_STATES: Final = ("waiting", "claimed", "done")
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
    CheckConstraint(_one_of("state", list(SHARD_STATES)), name="known_shard_state"),
    CheckConstraint("(state = 'done') = (result_path IS NOT NULL)", name="result_exactly_when_done"),
    CheckConstraint(
        "state <> 'done' OR successful_count + failed_count = request_count", name="every_request_ended"
    ),
)
Index("shard_state", SHARD.c.batch_id, SHARD.c.state, SHARD.c.number)

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
)
Index("file_newest", FILE.c.create_time.desc(), FILE.c.id.desc())

UPLOAD: Final = Table(
    "upload",
    METADATA,
    Column("token", String(64), primary_key=True),
    Column("file_id", String(64), nullable=False),
    Column("display_name", Text),
    Column("mime_type", Text, nullable=False),
    Column("declared_size", BigInteger),
    Column("create_time", BigInteger, nullable=False),
)

SEQUENCE: Final = Table(
    "turn_counter",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

assert FINAL  # noqa: S101  (the constraints above are drawn from the table of transitions)
