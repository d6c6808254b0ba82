"""What attempts that were stopped had finished."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add to shards where what a stopped attempt finished stands, and an index of those that have it."""
    op.add_column("shard", sa.Column("kept_path", sa.Text))
    op.add_column("shard", sa.Column("kept_digest", sa.String(64)))
    kept = sa.text("kept_path IS NOT NULL")
    op.create_index("shard_kept", "shard", ["batch_id"], sqlite_where=kept, postgresql_where=kept)
