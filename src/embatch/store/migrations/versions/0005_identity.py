"""What tells a database from all others, by which the folder of its blobs knows it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; who asks first gives the name."""
    op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
