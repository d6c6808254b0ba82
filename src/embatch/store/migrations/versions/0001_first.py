"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ACTIVE = "state IN ('PENDING', 'PROCESSING')"
_STATES = "state IN ('CANCELLED', 'COMPLETED', 'EXPIRED', 'FAILED', 'PENDING', 'PROCESSING')"


def upgrade() -> None:
    """Make the tables of batches, shards, files and uploads."""
    op.create_table(
        "batch",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("inline", sa.Boolean, nullable=False),
        sa.Column("input_file", sa.Text),
        sa.Column("planned", sa.Boolean, nullable=False),
        sa.Column("idempotency_key", sa.Text, unique=True),
        sa.Column("body_digest", sa.Text),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("notes", sa.Text, nullable=False),
        sa.CheckConstraint(_STATES, name="known_state"),
        sa.CheckConstraint(f"(end_time IS NULL) = ({_ACTIVE})", name="ended_exactly_when_final"),
        sa.CheckConstraint("waiting >= 0", name="waiting_not_negative"),
        sa.CheckConstraint(f"waiting = 0 OR {_ACTIVE}", name="nothing_waits_when_final"),
        sa.CheckConstraint("inline = (input_file IS NULL)", name="inline_or_from_a_file"),
        sa.CheckConstraint("planned OR NOT inline", name="inline_is_planned"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "batch_claim",
        "batch",
        [sa.text("priority DESC"), "turn", "create_time", "id"],
        sqlite_where=sa.text("waiting > 0"),
        postgresql_where=sa.text("waiting > 0"),
    )
    op.create_index("batch_turn", "batch", ["turn"])
    op.create_index("batch_newest", "batch", [sa.text("create_time DESC"), sa.text("id DESC")])
    op.create_index("batch_end", "batch", ["end_time", "expire_time"])
    op.create_table(
        "shard",
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("request_count", sa.Integer, nullable=False),
        sa.Column("byte_count", sa.BigInteger, nullable=False),
        sa.Column("dimensions", sa.Integer, nullable=False),
        sa.Column("result_path", sa.Text),
        sa.Column("result_digest", sa.String(64)),
        sa.Column("successful_count", sa.Integer, nullable=False),
        sa.Column("failed_count", sa.Integer, nullable=False),
        sa.Column("token_count", sa.BigInteger, nullable=False),
        sa.Column("native_dimensions", sa.Integer),
        sa.CheckConstraint("state IN ('claimed', 'done', 'waiting')", name="known_shard_state"),
        sa.CheckConstraint(
            "attempt >= 0 AND (state = 'waiting' OR attempt > 0)", name="worked_only_when_claimed"
        ),
        sa.CheckConstraint("request_count > 0", name="no_empty_shard"),
        sa.CheckConstraint(
            "(state = 'done') = (result_path IS NOT NULL)"
            " AND (state = 'done') = (result_digest IS NOT NULL)"
            " AND (state = 'done') = (native_dimensions IS NOT NULL)",
            name="result_exactly_when_done",
        ),
        sa.CheckConstraint(
            "successful_count >= 0 AND failed_count >= 0 AND token_count >= 0"
            " AND successful_count + failed_count = CASE WHEN state = 'done' THEN request_count ELSE 0 END",
            name="every_request_counted_once",
        ),
        sqlite_with_rowid=False,
    )
    unfinished = sa.text("state <> 'done'")
    op.create_index(
        "shard_open",
        "shard",
        ["batch_id", "state", "number"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    op.create_table(
        "file",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("display_name", sa.Text),
        sa.Column("mime_type", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.CheckConstraint("size >= 0", name="size_not_negative"),
    )
    op.create_index("file_newest", "file", [sa.text("create_time DESC"), sa.text("id DESC")])
    op.create_table(
        "upload",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("file_id", sa.String(64), nullable=False, unique=True),
        sa.Column("display_name", sa.Text),
        sa.Column("mime_type", sa.Text, nullable=False),
        sa.Column("declared_size", sa.BigInteger),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
