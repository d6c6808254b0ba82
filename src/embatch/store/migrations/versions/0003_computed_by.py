"""What computed a batch, and claims that say nothing against a shard."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what computed their vectors to batches, and a count of excused claims to shards."""
    op.add_column("batch", sa.Column("computed_by", sa.Text))
    op.add_column("shard", sa.Column("excused", sa.Integer, nullable=False, server_default="0"))
