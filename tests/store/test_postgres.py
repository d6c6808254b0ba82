"""What is particular to Postgres: connections that are lost, and two stores on one database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, event, text
from storing import NOW, accept, claim, commit

from embatch.errors import Unavailable
from embatch.states import State
from embatch.store.records import Committed
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ("store_databases",)


@pytest.fixture
def stores(new_postgres: Callable[[], str]) -> Iterator[tuple[Store, Store]]:
    """Two services' stores on one database."""
    url = new_postgres()
    one, two = Store.open(url), Store.open(url)
    yield one, two
    one.close()
    two.close()


def test_a_lost_connection_is_told_and_mended(stores: tuple[Store, Store]) -> None:
    """A server that ends a connection costs the writes under way, which changed nothing, and no restart."""
    store, other = stores
    accept(store, "a")

    def lose(connection: Connection) -> None:
        connection.execute(text("UPDATE batch SET priority = 9"))
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with other._readers.connect() as admin:
            admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable) as lost:
        store._writer.run(lose)
    assert lost.value.reason == "STORAGE_ERROR"
    assert not store.broken
    assert store.get("a").priority == 0
    assert claim(store).batch_id == "a"
    assert store.version().startswith("postgresql ")


def test_a_claim_goes_round_a_batch_that_another_service_is_claiming(stores: tuple[Store, Store]) -> None:
    """SKIP LOCKED: two services do not wait for each other's transactions."""
    one, two = stores
    accept(one, "a", age=9)
    accept(one, "b")
    seen: list[str] = []

    def claim_meanwhile(connection: Connection) -> None:
        connection.execute(text("SELECT id FROM batch WHERE id = 'a' FOR UPDATE"))
        seen.append(claim(two).batch_id)

    one._writer.run(claim_meanwhile)
    assert seen == ["b"]
    assert claim(two).batch_id == "a"


def test_a_commit_that_meets_another_services_cancel_is_lost_whole(stores: tuple[Store, Store]) -> None:
    """If a cancel comes between the two statements of a commit, neither of them counts."""
    one, two = stores
    accept(one, "a", shards=2)
    held = claim(one)

    @event.listens_for(one._database.writer, "after_cursor_execute")
    def cancel_between(_: Connection, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE shard SET state='done'"):
            assert two.cancel("a", NOW).state is State.CANCELLED

    assert commit(one, held) == Committed(accepted=False, state=State.CANCELLED)
    record = one.get("a")
    assert (record.state, record.successful_count) == (State.CANCELLED, 0)
    assert [shard.state for shard in one.shards("a")] == ["claimed", "waiting"]
