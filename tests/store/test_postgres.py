"""What is particular to Postgres: connections that are lost, and two stores on one database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, event, text
from storing import NOW, accept, claim, commit

from embatch.errors import Unavailable
from embatch.states import State
from embatch.store.connect import Database, connect
from embatch.store.records import Committed
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ("store_databases",)


@pytest.fixture
def databases(new_postgres: Callable[[], str]) -> tuple[Database, Database]:
    """One database, opened by two services."""
    url = new_postgres()
    return connect(url), connect(url)


@pytest.fixture
def stores(databases: tuple[Database, Database]) -> Iterator[tuple[Store, Store]]:
    """Two services' stores on one database."""
    one, two = map(Store, databases)
    yield one, two
    one.close()
    two.close()


def test_a_lost_connection_is_told_and_mended(
    databases: tuple[Database, Database], stores: tuple[Store, Store]
) -> None:
    """A server that ends a connection costs the writes under way, which changed nothing, and no restart."""
    (database, other), (store, _) = databases, stores
    accept(store, "a")

    @event.listens_for(database.writer, "after_cursor_execute")
    def lose(connection: Connection, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE batch"):
            event.remove(database.writer, "after_cursor_execute", lose)
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with other.readers.connect() as admin:
                admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with pytest.raises(Unavailable) as lost:
        store.update("a", priority=9, now=NOW)
    assert lost.value.reason == "STORAGE_ERROR"
    assert not store.broken
    assert store.get("a").priority == 0
    assert claim(store).batch_id == "a"
    assert store.version().startswith("postgresql ")


def test_a_claim_goes_round_a_batch_that_another_service_is_claiming(
    databases: tuple[Database, Database], stores: tuple[Store, Store]
) -> None:
    """SKIP LOCKED: two services do not wait for each other's transactions."""
    one, two = stores
    accept(one, "a", age=9)
    accept(one, "b")
    with databases[0].readers.begin() as claiming:
        claiming.execute(text("SELECT id FROM batch WHERE id = 'a' FOR UPDATE"))
        assert claim(two).batch_id == "b"
    assert claim(two).batch_id == "a"


def test_a_commit_that_meets_another_services_cancel_is_lost_whole(
    databases: tuple[Database, Database], stores: tuple[Store, Store]
) -> None:
    """If a cancel comes between the two statements of a commit, neither of them counts."""
    one, two = stores
    accept(one, "a", shards=2)
    held = claim(one)

    @event.listens_for(databases[0].writer, "after_cursor_execute")
    def cancel_between(_: Connection, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE shard SET state='done'"):
            assert two.cancel("a", NOW).state is State.CANCELLED

    assert commit(one, held) == Committed(accepted=False, state=State.CANCELLED)
    record = one.get("a")
    assert (record.state, record.successful_count) == (State.CANCELLED, 0)
    assert [shard.state for shard in one.shards("a")] == ["claimed", "waiting"]
