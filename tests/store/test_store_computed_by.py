"""What computed the first vectors of a batch computes all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from storing import NOW, accept, at, claim, result

from embatch.states import State
from embatch.store.records import Committed

if TYPE_CHECKING:
    from embatch.store.records import Claim
    from embatch.store.store import Store

pytest_plugins = ("store_databases",)


def commit(store: Store, held: Claim, computed_by: str | None, *, failed: int = 0) -> Committed:
    """Commit what something has computed."""
    return store.commit(held, replace(result(held, failed=failed), computed_by=computed_by), at(2))


def test_a_result_of_something_else_is_refused_and_the_claim_still_holds(store: Store) -> None:
    """It changes nothing; the same shard can be given back, or committed by what began."""
    accept(store, "a", shards=2)
    first, second = claim(store), claim(store)
    assert (first.computed_by, second.computed_by) == (None, None)
    assert commit(store, first, "one").accepted
    before = store.get("a"), store.shards("a")
    refused = commit(store, second, "two")
    assert refused == Committed(accepted=False, state=State.PROCESSING, foreign=True)
    assert (store.get("a"), store.shards("a")) == before
    assert store.release(second)
    third = claim(store)
    assert third.computed_by == "one"
    assert commit(store, third, "one") == Committed(accepted=True, state=State.COMPLETED)


def test_results_without_vectors_are_taken_from_anybody(store: Store) -> None:
    """They neither decide what computes a batch nor are they refused."""
    accept(store, "a", shards=3)
    assert commit(store, claim(store), None, failed=3).accepted
    assert commit(store, claim(store), "one").accepted
    last = claim(store)
    assert last.computed_by == "one"
    assert commit(store, last, None, failed=3).state is State.COMPLETED


def test_a_lost_claim_is_lost_whatever_computed_it(store: Store) -> None:
    """An old attempt, and a batch that was stopped, are not called foreign."""
    accept(store, "a", shards=2)
    assert commit(store, claim(store), "one").accepted
    late = claim(store)
    store.release(late)
    held = claim(store)
    assert commit(store, late, "two") == Committed(accepted=False, state=State.PROCESSING)
    store.cancel("a", NOW)
    assert commit(store, held, "two") == Committed(accepted=False, state=State.CANCELLED)


def test_the_dimensions_of_a_batch_are_those_of_its_vectors(store: Store) -> None:
    """A shard that failed under a model with more dimensions says nothing of them."""
    accept(store, "a", shards=2)
    held = claim(store)
    store.commit(held, replace(result(held, failed=3), dimensions=1024), at(2))
    assert store.get("a").native_dimensions == 1024
    held = claim(store)
    store.commit(held, replace(result(held), dimensions=384), at(2))
    assert store.get("a").native_dimensions == 384
