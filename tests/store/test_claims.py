"""Claims, on each database: up to so many at once, in order, and whoever works them says no time of day."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from storing import NOW, accept, at, new_batch, payload, result

from embatch.errors import FailedPrecondition
from embatch.states import State
from embatch.store.claims import Claims, SoleClaims
from embatch.store.records import KeptShard

if TYPE_CHECKING:
    from embatch.store.store import Store

pytest_plugins = ("store_databases",)


@pytest.fixture
def claims(store: Store) -> Claims:
    """The claims of a service that has the store to itself."""
    return SoleClaims(store, lambda: at(60))


def test_up_to_so_many_shards_are_claimed_at_once(store: Store, claims: Claims) -> None:
    """By priority, then by turns between batches; fewer where fewer wait, and none where none does."""
    accept(store, "a", age=9, shards=2)
    accept(store, "b", shards=1)
    claimed = claims.claim(2)
    assert [(claim.batch_id, claim.number) for claim in claimed] == [("a", 0), ("b", 0)]
    assert all(claim.attempt == 1 for claim in claimed)
    rest = claims.claim(5)
    assert [(claim.batch_id, claim.number) for claim in rest] == [("a", 1)]
    assert list(claims.claim(5)) == []
    assert list(claims.claim(0)) == []


def test_models_and_batches_are_left_out(store: Store, claims: Claims) -> None:
    """Those that no engine comes up for, and those that the disk troubles."""
    accept(store, "a")
    assert list(claims.claim(1, without=["test-model"])) == []
    assert list(claims.claim(1, resting=["a"])) == []
    assert len(claims.claim(1, without=["other"], resting=["b"])) == 1


def test_some_models_come_first_at_equal_priority(store: Store, claims: Claims) -> None:
    """By turns among them, then all others; never before a higher priority, unless that is left out."""
    for name, model, priority in (
        ("a", "cold", 0),
        ("b", "warm", 0),
        ("c", "hot", 0),
        ("d", "cold", 1),
        ("e", "gone", 2),
    ):
        new = replace(new_batch(name, age=9), model=model, priority=priority)
        store.accept(new, [payload()])
    first = ["warm", "hot"]
    claimed = [claims.claim(1, first=first, without=["gone"])[0].batch_id for _ in range(4)]
    assert claimed == ["d", "b", "c", "a"]
    assert list(claims.claim(1, first=first, without=["gone"])) == []
    assert claims.claim(1, first=first)[0].batch_id == "e"


def test_a_claim_ends_with_a_commit_or_a_release(store: Store, claims: Claims) -> None:
    """What was released is claimed again, under the next attempt; the old claim brings nothing any more."""
    accept(store, "a")
    (old,) = claims.claim(1)
    assert claims.release(old, excused=True)
    assert not claims.release(old)
    (new,) = claims.claim(1)
    assert (new.attempt, new.excused) == (2, 1)
    assert not claims.commit(old, result(old)).accepted
    assert claims.commit(new, result(new)).state is State.COMPLETED
    record = store.get("a")
    assert record.end_time == at(60)
    with pytest.raises(FailedPrecondition):
        store.cancel("a", NOW)


def test_a_stopped_batch_takes_no_commit(store: Store, claims: Claims) -> None:
    """Cancel is final, whoever still works."""
    accept(store, "a")
    (claim,) = claims.claim(1)
    store.cancel("a", NOW)
    committed = claims.commit(claim, result(claim))
    assert (committed.accepted, committed.state) == (False, State.CANCELLED)


def test_what_is_less_urgent_is_left_out_but_of_some_models(store: Store, claims: Claims) -> None:
    """Below a priority nothing is claimed, not even what waits longest."""
    accept(store, "low", age=9, priority=-(2**63))
    accept(store, "middle", priority=1)
    assert list(claims.claim(1, least=2)) == []
    assert list(claims.claim(1, least=2**63)) == []  # above all that there can be
    (found,) = claims.claim(1, least=1)
    assert (found.batch_id, found.priority) == ("middle", 1)
    assert list(claims.claim(1, least=0, beside=["other"])) == []
    (found,) = claims.claim(1, least=0, beside=["other", "test-model"])
    assert (found.batch_id, found.priority) == ("low", -(2**63))


def test_what_an_attempt_left_is_given_to_the_next_ones(store: Store, claims: Claims) -> None:
    """Until one leaves more, or the shard is done; a lost claim leaves nothing."""
    accept(store, "a")
    (first,) = claims.claim(1)
    assert first.kept is None
    one, two = KeptShard("batches/a/kept-00000-1.arrow", "1" * 64), KeptShard("b", "2" * 64)
    assert claims.release(first, excused=True, kept=one)
    assert not claims.release(first, kept=two)
    (second,) = claims.claim(1)
    assert second.kept == one
    assert store.claimed() == [("a", 0, 2)]
    assert claims.release(second)
    (third,) = claims.claim(1)
    assert third.kept == one
    assert claims.release(third, kept=two)
    (fourth,) = claims.claim(1)
    assert fourth.kept == two
    assert list(store.kept_for_nobody()) == []
    store.forget_kept()
    assert store.get("a").successful_count == 0
    assert claims.commit(fourth, result(fourth)).accepted
    assert list(store.kept_for_nobody()) == ["b"]
    store.forget_kept()
    assert list(store.kept_for_nobody()) == []


def test_what_was_left_of_a_stopped_batch_is_for_nobody(store: Store, claims: Claims) -> None:
    """Its shards are worked no more."""
    accept(store, "a")
    (claim,) = claims.claim(1)
    claims.release(claim, kept=KeptShard("a", "1" * 64))
    store.cancel("a", NOW)
    assert list(store.kept_for_nobody()) == ["a"]
    assert store.claimed() == []
