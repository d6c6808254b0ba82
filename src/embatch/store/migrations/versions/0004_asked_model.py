"""The name by which a batch's model was asked for, and files found by where they stand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the name that was asked for to batches, which for older ones nobody wrote down."""
    op.add_column("batch", sa.Column("asked_model", sa.Text))
    op.create_index("file_path", "file", ["path"])
