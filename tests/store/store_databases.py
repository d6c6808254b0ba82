"""Fixtures: an empty store on SQLite and on Postgres, so that one suite says what both must do."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from embatch.store.schema import METADATA, VERSION
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine


pytest_plugins = ("postgres_server",)


@pytest.fixture(scope="session")
def new_postgres(postgres: str) -> Callable[[], str]:
    """Each call makes an empty database with tables on a Postgres server of this run."""
    home = make_url(postgres).set(drivername="postgresql+psycopg")
    engine = create_engine(home, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    numbers = itertools.count()

    def run(statement: str) -> None:
        with engine.connect() as connection:
            connection.execute(text(statement))

    def new() -> str:
        name = f"embatch_{next(numbers)}"
        run(f"CREATE DATABASE {name}")
        url = home.set(database=name).render_as_string(hide_password=False)
        Store.open(url).close()
        return url

    # Durability is not what these tests show, and the machine's disk may be slow.
    run("ALTER SYSTEM SET fsync = off")
    run("SELECT pg_reload_conf()")
    return new


@pytest.fixture(scope="session")
def shared_postgres(new_postgres: Callable[[], str]) -> str:
    """One database for all tests: emptying it is faster than making another."""
    return new_postgres()


def _emptied(url: str) -> str:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        names = ", ".join(table.name for table in METADATA.sorted_tables)
        connection.execute(text(f"TRUNCATE {names}"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{VERSION}'"))  # noqa: S608  (our constant)
    return url


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place: waiting for a disk shows nothing here."""
    memory = Path("/dev/shm")  # noqa: S108  (only its speed is wanted)
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with up-to-date tables that nobody has open: copying it is faster than migrating."""
    path = tmp_path_factory.mktemp("sqlite") / "embatch.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, fast_folder: Path) -> str:
    """The address of an empty database with up-to-date tables, on each in turn."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        shutil.copy(template, fast_folder / "embatch.db")
        return f"sqlite:///{fast_folder / 'embatch.db'}"
    return _emptied(request.getfixturevalue("shared_postgres"))


@pytest.fixture
def beside(database_url: str) -> Engine:
    """Connections of a test's own to the database of `store`, which nothing else uses."""
    return create_engine(database_url, poolclass=NullPool)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An empty store, on each database in turn."""
    opened = Store.open(database_url)
    yield opened
    opened.close()
