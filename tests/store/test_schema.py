"""The schema: migrations add up to the tables, the database refuses nonsense, a claim reads its index."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text, update
from sqlalchemy.exc import IntegrityError
from storing import NOW, accept, claim, commit, result

from embatch.errors import FailedPrecondition
from embatch.states import ACTIVE, State
from embatch.store import migrations, statements
from embatch.store.connect import upgrade
from embatch.store.schema import BATCH, METADATA, SHARD, VERSION
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

pytest_plugins = ("store_databases",)


def _words(sql: str | None) -> str:
    return re.sub(r"[\s\"]+", " ", sql or "").strip()


def _described(connection: Connection) -> dict[str, Any]:
    """Return all that matters about the tables, in an order that does not depend on how they were made."""
    if connection.dialect.name == "sqlite":
        found = connection.execute(
            text("SELECT name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'")
        )
        # A table's own text holds its CHECKs, in the order they were written.
        return {name: sorted(_words(sql).split(", ")) for name, sql in found}
    look = inspect(connection)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in look.get_columns(table)],
            look.get_pk_constraint(table)["constrained_columns"],
            sorted((c["name"], _words(c["sqltext"])) for c in look.get_check_constraints(table)),
            sorted(str(sorted(u["column_names"])) for u in look.get_unique_constraints(table)),
            sorted(str(sorted(f.items(), key=str)) for f in look.get_foreign_keys(table)),
            sorted(
                connection.execute(
                    text("SELECT indexdef FROM pg_indexes WHERE tablename = :table"), {"table": table}
                ).scalars()
            ),
        )
        for table in look.get_table_names()
        if table != "alembic_version"
    }


def test_a_fresh_schema_is_the_sum_of_its_migrations(
    beside: Engine, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What the migrations make equals what the tables of `schema` make. If not, a migration is missing."""
    with beside.connect() as connection:
        fresh = _described(connection)
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == VERSION
        if connection.dialect.name == "sqlite":
            url = f"sqlite:///{tmp_path / 'migrated.db'}"
        else:
            new: Callable[[], str] = request.getfixturevalue("new_postgres")
            url = new()
    engine = create_engine(url)
    with engine.begin() as connection:
        METADATA.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
        upgrade(connection, None)
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == VERSION
        assert _described(connection) == fresh
    engine.dispose()


def test_a_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """Its batches are there, with nothing said of what they took, and are worked."""
    from alembic import command
    from alembic.config import Config

    url = f"sqlite:///{tmp_path / 'old.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migrations.__path__[0]))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO batch (id, model, priority, state, inline, planned, create_time, update_time,"
                " expire_time, turn, waiting, notes) VALUES"
                " ('a', 'm', 0, 'PENDING', 1, 1, 1, 1, 9000000000000000, 0, 1, '[]')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO shard (batch_id, number, state, attempt, path, digest, request_count,"
                " byte_count, dimensions, successful_count, failed_count, token_count) VALUES"
                " ('a', 0, 'waiting', 0, 'p', 'd', 3, 9, 0, 0, 0, 0)"
            )
        )
    engine.dispose()
    store = Store.open(url)
    found = store.get("a")
    assert (found.cached_count, found.cpu_micros, found.run, found.asked_model) == (0, 0, None, None)
    held = claim(store)
    assert held.payload.cached_count == 0
    commit(store, held)
    assert store.get("a").state is State.COMPLETED
    store.close()


def test_a_batch_that_the_second_version_began_goes_on(tmp_path: Path) -> None:
    """Nobody wrote down what computed its first shard: the next one decides."""
    url = f"sqlite:///{tmp_path / 'old.db'}"
    store = Store.open(url)
    accept(store, "a", shards=3)
    commit(store, claim(store))

    def age(connection: Connection) -> int:
        connection.execute(text("DROP INDEX shard_kept"))
        connection.execute(text("ALTER TABLE shard DROP COLUMN kept_path"))
        connection.execute(text("ALTER TABLE shard DROP COLUMN kept_digest"))
        connection.execute(text("DROP TABLE identity"))
        connection.execute(text("ALTER TABLE batch DROP COLUMN asked_model"))
        connection.execute(text("DROP INDEX file_path"))
        connection.execute(text("ALTER TABLE batch DROP COLUMN computed_by"))
        connection.execute(text("ALTER TABLE shard DROP COLUMN excused"))
        return connection.execute(text("UPDATE alembic_version SET version_num = '0002'")).rowcount

    store.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        age(connection)
    engine.dispose()
    store = Store.open(url)
    held = claim(store)
    assert (held.computed_by, held.excused) == (None, 0)
    assert store.commit(held, replace(result(held), computed_by="one"), NOW).accepted
    held = claim(store)
    assert held.computed_by == "one"
    assert store.commit(held, replace(result(held), computed_by="two"), NOW).foreign
    assert commit(store, held).state is State.COMPLETED
    store.close()


def test_a_newer_database_is_refused(beside: Engine, store: Store, database_url: str) -> None:
    """A database of a later version is left alone, and the message says what to start."""
    with beside.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(FailedPrecondition, match=r"newer version \(schema 9999\)"):
        Store.open(database_url)


def test_opening_again_changes_nothing(store: Store, database_url: str) -> None:
    """A second start finds what the first one left."""
    accept(store, "a")
    store.close()
    again = Store.open(database_url)
    assert again.ids_of_batches() == {"a"}
    assert again.claim(NOW) is not None
    again.close()


NONSENSE = {
    "an unknown state": {"state": "RUNNING"},
    "ended while active": {"end_time": 1},
    "final without an end": {"state": "COMPLETED", "waiting": 0},
    "waiting below zero": {"waiting": -1},
    "waiting though final": {"state": "CANCELLED", "end_time": 1, "waiting": 1},
    "inline and from a file": {"input_file": "f"},
    "inline and not planned": {"planned": False},
}


@pytest.mark.parametrize("values", NONSENSE.values(), ids=NONSENSE)
def test_the_database_refuses_a_batch_that_cannot_be(
    beside: Engine, store: Store, values: dict[str, Any]
) -> None:
    """A bug of ours that would write nonsense about a batch is stopped by the database itself."""
    accept(store, "a")
    with pytest.raises(IntegrityError):
        _overwrite(beside, values)
    assert store.get("a").state is State.PENDING


DONE = {"state": "done", "result_path": "x", "result_digest": "x", "native_dimensions": 1}
SHARD_NONSENSE = {
    "an unknown state": {"state": "lost"},
    "claimed without a claim": {"attempt": 0},
    "done without a result": {"state": "done", "successful_count": 3},
    "a result that is not done": {"result_path": "x"},
    "counts that do not add up": {**DONE, "successful_count": 2},
    "counts before it is done": {"failed_count": 1},
    "counts below zero": {**DONE, "successful_count": 4, "failed_count": -1},
    "no requests": {"request_count": 0},
}


@pytest.mark.parametrize("values", SHARD_NONSENSE.values(), ids=SHARD_NONSENSE)
def test_the_database_refuses_a_shard_that_cannot_be(
    beside: Engine, store: Store, values: dict[str, Any]
) -> None:
    """A bug of ours that would lose or double a request's end is stopped by the database itself."""
    accept(store, "a")
    claim(store)
    with pytest.raises(IntegrityError), beside.begin() as connection:
        connection.execute(update(SHARD).values(**values))
    assert [s.state for s in store.shards("a")] == ["claimed"]


def _overwrite(beside: Engine, values: dict[str, Any]) -> None:
    with beside.begin() as connection:
        connection.execute(update(BATCH).values(**values))


def test_every_state_of_the_table_can_be_stored(beside: Engine, store: Store) -> None:
    """The database's words for states are those of the transition table, neither more nor fewer."""
    accept(store, "a")
    for state in State:
        values = {"state": state.value, "end_time": None if state in ACTIVE else 1, "waiting": 0}
        _overwrite(beside, values)
        assert store.get("a").state is state


def _plan(beside: Engine, statement: Any, **parameters: object) -> str:
    """Return how the database would run a statement."""
    dialect = beside.dialect
    compiled = statement.compile(dialect=dialect)
    values = {**compiled.params, **parameters}
    bound: Any = tuple(values[name] for name in compiled.positiontup) if compiled.positional else values
    explain = "EXPLAIN QUERY PLAN" if dialect.name == "sqlite" else "EXPLAIN"

    with beside.begin() as connection:
        if dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {compiled}", bound))


def test_a_claim_reads_its_indexes(beside: Engine, store: Store) -> None:
    """Finding the next batch, its next shard and the next turn walks indexes, whatever was done before."""
    names = [f"b{number:03}" for number in range(600)]
    with ThreadPoolExecutor(32) as pool:
        for _ in pool.map(lambda name: accept(store, name, shards=3), names):
            pass
        for _ in range(30):
            commit(store, claim(store))
        for _ in pool.map(lambda name: store.cancel(name, NOW), names[100:]):
            pass
    batch = _plan(beside, statements.CLAIM_BATCH, now=1)
    assert "batch_claim" in batch
    assert "batch_turn" in batch
    assert "TEMP B-TREE" not in batch
    assert "Sort" not in batch
    shard = _plan(beside, statements.FIRST_WAITING, owner="b001")
    assert "shard_open" in shard
    rest = _plan(beside, statements.FINISH, now=1, owner="b001")
    assert "shard_open" in rest
