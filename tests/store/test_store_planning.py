"""What a store must do, whatever its database: shards that come while others are already worked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storing import NOW, accept, accept_file, at, claim, commit, payload

from embatch.states import State
from embatch.store.records import Committed

if TYPE_CHECKING:
    from embatch.store.store import Store

pytest_plugins = ("store_databases",)


def test_shards_are_worked_while_planning_goes_on(store: Store) -> None:
    """A batch that is not planned to its end is worked, and not complete before planning ends."""
    accept_file(store, "a")
    assert store.plan("a", [payload(0)], complete=False, now=NOW)
    assert commit(store, claim(store)) == Committed(accepted=True, state=State.PROCESSING)
    assert store.plan("a", [payload(1)], complete=True, now=at(1))
    assert store.unplanned() == []
    assert commit(store, claim(store)) == Committed(accepted=True, state=State.COMPLETED)
    assert store.get("a").request_count == 6


def test_planning_that_ends_after_the_last_commit_completes_the_batch(store: Store) -> None:
    """Whichever comes last, the last commit or the end of planning, completes."""
    accept_file(store, "a")
    store.plan("a", [payload(0)], complete=False, now=NOW)
    commit(store, claim(store))
    assert store.get("a").state is State.PROCESSING
    assert store.plan("a", [], complete=True, now=at(5))
    record = store.get("a")
    assert (record.state, record.end_time, record.planned) == (State.COMPLETED, at(5), True)


def test_a_batch_that_ended_takes_no_more_shards(store: Store) -> None:
    """Planning hears from its return value that its batch was stopped, is planned, or is gone."""
    accept_file(store, "a")
    store.cancel("a", NOW)
    assert not store.plan("a", [payload(0)], complete=True, now=NOW)
    accept(store, "b")
    assert not store.plan("b", [payload(1)], complete=False, now=NOW)
    assert not store.plan("nothing", [payload(0)], complete=False, now=NOW)
    assert (store.shards("a"), len(store.shards("b"))) == ([], 1)
