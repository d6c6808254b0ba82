"""Two SQLAlchemy engines over one database: a writer with one connection, and readers that cannot write.

SQLite runs in WAL mode with synchronous=FULL: with NORMAL, cutting the power loses acknowledged rows. Every
write transaction begins IMMEDIATE, for one that reads first and writes later fails at once under load. Only
the writer checkpoints, which keeps clear of the WAL-reset race of older SQLite versions.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, MetaData, String, Table, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from embatch.durable import sync_folder
from embatch.errors import FailedPrecondition
from embatch.store.faults import damaged, disk, trouble
from embatch.store.schema import METADATA, VERSION, make_partial

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_STAMP: Final = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Where alembic keeps the version, as it makes the table itself."""
_BUSY_MILLISECONDS: Final = 30_000
_PAGES_BETWEEN_CHECKPOINTS: Final = 1000


@dataclass(slots=True)
class Database:
    """An open database whose tables are up to date."""

    writer: Engine
    readers: Engine
    path: Path | None
    """The file of an SQLite database; `None` on Postgres."""
    log_bytes: int = 16 << 20
    """Size at which the write-ahead log is emptied. Without readers in its way it stays at a quarter."""
    reset_milliseconds: int = 1_000
    """Longest wait for readers when the log is to be emptied: writes stand still meanwhile."""
    _grown: int = field(default=0, init=False)
    """What the log had when a reader last kept it from being emptied."""

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log; 0 on Postgres, which looks after its own."""
        if self.path is None:
            return 0
        try:
            # By name: opening and closing a file of the database would drop the locks SQLite holds on it.
            return Path(f"{self.path}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def tend(self) -> None:
        """Empty the write-ahead log if readers let it grow. For the writer's thread, outside a transaction.

        A reader that stays longer than a second is left alone until the log has grown by as much again.
        """
        size = self.wal_bytes()
        if size < self._grown + self.log_bytes:
            return
        with self.writer.connect() as connection:
            # Past SQLAlchemy, which would begin a transaction, and inside one nothing can be checkpointed.
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA busy_timeout={self.reset_milliseconds}")
            try:
                (stopped, _, _) = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                    raise
                stopped = True
            finally:
                driver.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        self._grown = size if stopped else 0

    def version(self, connection: Connection) -> str:
        """Return the database engine with its version."""
        name = connection.dialect.name
        asked = "select sqlite_version()" if name == "sqlite" else "show server_version"
        return f"{name} {connection.execute(text(asked)).scalar_one()}"

    def close(self) -> None:
        """Close all connections; the writer's last, for the last one to close checkpoints."""
        self.readers.dispose()
        self.writer.dispose()


def connect(url: str) -> Database:
    """Open a database and make its tables or bring them up to date.

    Raises:
        FailedPrecondition: a newer version of embatch wrote it.
        DataLoss: it is damaged.
        Unavailable: it cannot be opened.
    """
    database = _sqlite(url) if make_url(url).get_backend_name() == "sqlite" else _postgres(url)
    try:
        with database.writer.begin() as connection:
            if database.path is not None:
                _check(connection)
            _migrate(connection)
        if database.path is not None:
            # SQLite ignores a folder that cannot be synced; here it is an error. The log exists by now, too.
            sync_folder(database.path.parent)
    except DBAPIError as error:
        database.close()
        kind = trouble(error)
        if kind is None:
            raise
        raise kind.error from error
    except OSError as error:
        database.close()
        raise disk(error) from error
    except BaseException:
        database.close()
        raise
    return database


def _postgres(url: str) -> Database:
    # A link that is lost without a word must not hold a write for ever.
    arguments = {
        "connect_timeout": 10,
        "tcp_user_timeout": 10_000,
        "options": options_of(
            make_url(url), "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=30000"
        ),
    }
    options: dict[str, Any] = {"connect_args": arguments, "hide_parameters": True, "pool_pre_ping": True}
    writer = create_engine(url, pool_size=1, max_overflow=0, **options)
    return Database(writer, create_engine(url, pool_size=8, max_overflow=8, **options), None)


def options_of(url: URL, ours: str) -> str:
    """Return what a Postgres server is told at the start of a session: ours, and what the address says."""
    asked = url.query.get("options", ())
    return " ".join([ours, *([asked] if isinstance(asked, str) else asked)])


def _sqlite(url: str) -> Database:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise FailedPrecondition("the store needs a database file", field="data")
    # Names and keys stand in here. Never opened if it exists: see `Database.wal_bytes`.
    try:
        Path(path).touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        pass
    except OSError as error:
        raise disk(error) from error
    options: dict[str, Any] = {"connect_args": {"check_same_thread": False}, "hide_parameters": True}
    writer = create_engine(url, poolclass=StaticPool, **options)
    readers = create_engine(url, poolclass=QueuePool, pool_size=8, max_overflow=56, **options)

    @event.listens_for(writer, "connect")
    def _open_writer(connection: Any, _: object) -> None:
        _set(
            connection,
            "journal_mode=WAL",
            "synchronous=FULL",
            "fullfsync=ON",  # macOS: fsync alone does not reach the platter there
            "checkpoint_fullfsync=ON",
            "foreign_keys=ON",
            f"wal_autocheckpoint={_PAGES_BETWEEN_CHECKPOINTS}",
        )

    @event.listens_for(writer, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(readers, "connect")
    def _open_reader(connection: Any, _: object) -> None:
        _set(connection, "query_only=ON", "wal_autocheckpoint=0")

    return Database(writer, readers, Path(path))


def _set(connection: Any, *pragmas: str) -> None:
    connection.isolation_level = None  # no BEGIN but ours
    for pragma in (f"busy_timeout={_BUSY_MILLISECONDS}", *pragmas):
        connection.execute(f"PRAGMA {pragma}")


def _check(connection: Connection) -> None:
    """Refuse a damaged database. It has no row for each request, so this takes milliseconds."""
    found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
    if found != "ok":
        raise damaged()


def _migrate(connection: Connection) -> None:
    if not inspect(connection).get_table_names():
        make_partial(connection.dialect.name)
        METADATA.create_all(connection)
        _STAMP.create(connection)
        connection.execute(_STAMP.insert(), {"version_num": VERSION})
        return
    found = None
    if inspect(connection).has_table(_STAMP.name):
        found = connection.execute(select(_STAMP.c.version_num)).scalar()
    if found != VERSION:
        upgrade(connection, found)


def upgrade(connection: Connection, found: str | None) -> None:
    """Run the migrations that a database of version `found` lacks; `None`: all of them.

    Raises:
        FailedPrecondition: a newer version of embatch wrote it.
    """
    # Loading alembic takes half a second: only an upgrade pays for it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise FailedPrecondition(
            f"the database is of a newer version (schema {found}): start that version of embatch",
            field="data",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
