"""Two SQLAlchemy engines over one database: a writer with one connection, and readers that cannot write.

SQLite runs in WAL mode with synchronous=FULL: with NORMAL, cutting the power loses acknowledged rows. Every
write transaction begins IMMEDIATE, for one that reads first and writes later fails at once under load. Only
the writer checkpoints, which keeps clear of the WAL-reset race of older SQLite versions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.pool import QueuePool, StaticPool

from embatch.errors import FailedPrecondition

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MILLISECONDS = 30_000


def connect(url: str) -> tuple[Engine, Engine]:
    """Return (writer, readers) for a database whose tables are made or brought up to date.

    Raises:
        FailedPrecondition: a newer version of embatch wrote it.
    """
    if make_url(url).get_backend_name() == "sqlite":
        writer, readers = _sqlite(url)
    else:
        writer = create_engine(url, pool_size=1, max_overflow=0)
        readers = create_engine(url, pool_size=8, max_overflow=8)
    _migrate(writer)
    return writer, readers


def version(connection: Connection) -> str:
    """Return the database engine with its version."""
    name = connection.dialect.name
    asked = "select sqlite_version()" if name == "sqlite" else "show server_version"
    return f"{name} {connection.execute(text(asked)).scalar_one()}"


def _sqlite(url: str) -> tuple[Engine, Engine]:
    path = make_url(url).database
    arguments = {"check_same_thread": False}
    writer = create_engine(url, poolclass=StaticPool, connect_args=arguments)
    readers = create_engine(url, poolclass=QueuePool, pool_size=8, max_overflow=24, connect_args=arguments)

    @event.listens_for(writer, "connect")
    def _open_writer(connection: Any, _: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={_BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "wal_autocheckpoint=1000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(writer, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(readers, "connect")
    def _open_reader(connection: Any, _: object) -> None:
        connection.isolation_level = None
        for pragma in (f"busy_timeout={_BUSY_MILLISECONDS}", "query_only=ON", "wal_autocheckpoint=0"):
            connection.execute(f"PRAGMA {pragma}")

    # SQLite makes files readable by the umask's leave; this one holds names and keys.
    if path and path != ":memory:":
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return writer, readers


def _migrate(writer: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with writer.begin() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found not in known:
            raise FailedPrecondition(
                f"the database is of a newer version (schema {found}): start that version of embatch",
                field="data",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
