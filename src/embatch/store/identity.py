"""What tells a database from all others: a name of chance that it keeps, through dumps and moves as well."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from embatch.store.schema import IDENTITY

if TYPE_CHECKING:
    from sqlalchemy import Connection


def identity_of(connection: Connection) -> str:
    """Return the name of the database; it is made where there is none yet."""
    found: str | None = connection.execute(select(IDENTITY.c.id)).scalar()
    if found is None:
        found = secrets.token_hex(16)
        connection.execute(insert(IDENTITY), {"id": found})
    return found
