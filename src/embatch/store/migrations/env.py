"""Alembic's way in: the connection is handed over by `store.connect`."""

from __future__ import annotations

from alembic import context

from embatch.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
)
context.run_migrations()
