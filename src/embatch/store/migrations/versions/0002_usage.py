"""What batches took, and which run they belong to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add counts of cached requests and CPU time to shards, and the run to batches."""
    op.add_column("shard", sa.Column("cached_count", sa.Integer, nullable=False, server_default="0"))
    op.add_column("shard", sa.Column("cpu_micros", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("batch", sa.Column("run", sa.Text))
