"""What a store must do, whatever its database: a batch's life, verb by verb."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from storing import NOW, accept, at, claim, commit, new_batch, payload, result, work_off

from embatch.errors import AlreadyExists, IllegalTransition, Internal, NotFound
from embatch.states import FINAL, TRANSITIONS, Event, State, sources
from embatch.store.records import MIXED, BatchRecord, Committed

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.store.store import Store

pytest_plugins = ("store_databases",)


# accept


def test_an_accepted_batch_is_what_is_read_back(store: Store) -> None:
    """The record of an accept equals the one read from the database, in every field."""
    record = accept(store, "a", shards=2, priority=-(2**63))
    assert record == store.get("a")
    assert record == BatchRecord(
        id="a",
        model="test-model",
        display_name="batch a",
        priority=-(2**63),
        state=State.PENDING,
        inline=True,
        input_file=None,
        planned=True,
        dimensions=0,
        native_dimensions=None,
        create_time=NOW,
        update_time=NOW,
        end_time=None,
        expire_time=at(3600),
        error=None,
        notes=("a note",),
        request_count=6,
        successful_count=0,
        failed_count=0,
        token_count=0,
    )
    assert [(s.number, s.attempt, s.state, s.result) for s in store.shards("a")] == [
        (0, 0, "waiting", None),
        (1, 0, "waiting", None),
    ]
    assert [s.payload for s in store.shards("a")] == [payload(0), payload(1)]


def test_a_batch_from_a_file_begins_without_shards(store: Store) -> None:
    """A file batch counts nothing until it is planned, and waits in the list of those to plan."""
    record, _ = store.accept(new_batch("a", input_file="f"), [])
    assert record == store.get("a")
    assert (record.planned, record.request_count, record.dimensions) == (False, 0, 0)
    assert [found.id for found in store.unplanned()] == ["a"]
    assert store.claim(NOW) is None


@pytest.mark.parametrize(
    ("asked", "told"), [((0, 0), 0), ((64, 64), 64), ((0, 64), MIXED), ((MIXED, MIXED), MIXED)]
)
def test_dimensions_of_a_batch_are_those_of_all_shards_or_mixed(
    store: Store, asked: tuple[int, ...], told: int
) -> None:
    """A batch has one number of dimensions only if all its shards have the same."""
    record, _ = store.accept(new_batch("a"), [payload(n, dimensions=d) for n, d in enumerate(asked)])
    assert record.dimensions == store.get("a").dimensions == told


def test_a_repeated_submit_returns_the_first_batch(store: Store) -> None:
    """Under one idempotency key there is one batch, as it is now and not as it was."""
    store.accept(new_batch("a", key="k"), [payload()])
    claim(store)
    record, existed = store.accept(new_batch("b", key="k"), [payload()])
    assert existed
    assert (record.id, record.state) == ("a", State.PROCESSING)
    assert store.ids_of_batches() == {"a"}


def test_a_key_with_another_body_is_refused(store: Store) -> None:
    """A key that belongs to another body tells a confused caller from one that repeats."""
    store.accept(new_batch("a", key="k"), [payload()])
    with pytest.raises(AlreadyExists) as refused:
        store.accept(replace(new_batch("b", key="k"), body_digest="other"), [payload()])
    assert refused.value.reason == "IDEMPOTENCY_MISMATCH"
    assert store.ids_of_batches() == {"a"}


def test_two_hundred_submits_at_once_make_one_batch(store: Store) -> None:
    """Of concurrent submits with one key exactly one creates, and all get the same batch."""
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: store.accept(new_batch(f"b{n}", key="k"), [payload()]), range(200)))
    assert len({record.id for record, _ in answers}) == 1
    assert sum(not existed for _, existed in answers) == 1
    assert len(store.ids_of_batches()) == 1
    assert len(store.shards(answers[0][0].id)) == 1


def test_an_id_given_twice_is_our_own_bug(store: Store) -> None:
    """Ids are random: a collision is never taken for a repeated submit."""
    accept(store, "a")
    with pytest.raises(Internal):
        store.accept(new_batch("a", key="k"), [payload()])


# claim


def test_a_claim_raises_the_attempt_and_starts_the_batch(store: Store) -> None:
    """What a claim returns is already durable: attempt 1, PROCESSING."""
    accept(store, "a")
    found = store.claim(at(1))
    assert found is not None
    assert (found.batch_id, found.model, found.number, found.attempt) == ("a", "test-model", 0, 1)
    assert (found.payload, found.expire_time) == (payload(), at(3600))
    record = store.get("a")
    assert (record.state, record.update_time) == (State.PROCESSING, at(1))
    assert [(s.state, s.attempt) for s in store.shards("a")] == [("claimed", 1)]
    assert store.claim(at(1)) is None


def test_higher_priorities_go_first(store: Store) -> None:
    """Priority is strict over the whole of int64, whatever the age."""
    for name, priority in (("low", -(2**63)), ("none", 0), ("high", 2**63 - 1)):
        accept(store, name, shards=2, priority=priority)
    assert [c.batch_id for c in work_off(store)] == ["high", "high", "none", "none", "low", "low"]


def test_equal_priorities_take_turns(store: Store) -> None:
    """The batch whose turn is longest ago goes next; among those without a turn the oldest."""
    accept(store, "young", shards=3, age=1)
    accept(store, "old", shards=2, age=9)
    assert [c.batch_id for c in work_off(store)] == ["old", "young", "old", "young", "young"]


def test_shards_of_a_batch_are_claimed_in_order(store: Store) -> None:
    """Within a batch the lowest waiting shard goes first, also one that was given back."""
    accept(store, "a", shards=3)
    first, second = claim(store), claim(store)
    assert (first.number, second.number) == (0, 1)
    assert store.release(first)
    assert [claim(store).number, claim(store).number] == [0, 2]


def test_a_stream_of_new_batches_does_not_starve_an_old_one(store: Store) -> None:
    """A newcomer comes behind those that were there: the large batch keeps its turns."""
    accept(store, "large", shards=10, age=9)
    accept(store, "small-0")
    served = []
    for number in range(1, 20):
        served.append(claim(store).batch_id)
        accept(store, f"small-{number}")
    assert served.count("large") >= 5
    assert served.count("large") <= 10
    assert any(name.startswith("small") for name in served)


def test_a_changed_priority_counts_at_the_next_claim(store: Store) -> None:
    """A user can move a batch ahead while it waits."""
    accept(store, "a", age=9)
    accept(store, "b")
    assert store.update("b", priority=5, now=at(1)).priority == 5
    assert claim(store).batch_id == "b"


def test_models_that_are_left_out_are_not_claimed(store: Store) -> None:
    """Batches of a model that cannot be worked just now do not stand in the way of others."""
    store.accept(replace(new_batch("a", age=9), model="gone"), [payload()])
    store.accept(replace(new_batch("b"), model="there"), [payload()])
    found = store.claim(NOW, without=["gone", "other"])
    assert found is not None
    assert (found.batch_id, store.claim(NOW, without=["gone"])) == ("b", None)
    assert claim(store).batch_id == "a"


def test_batches_that_rest_are_not_claimed(store: Store) -> None:
    """Nor are models that are left out at the same time; an empty list leaves out nothing."""
    for name, model in (("a", "there"), ("b", "there"), ("c", "gone")):
        store.accept(replace(new_batch(name), model=model), [payload()])
    found = store.claim(NOW, without=["gone"], resting=["a"])
    assert found is not None
    assert (found.batch_id, store.claim(NOW, without=["gone"], resting=["a"])) == ("b", None)
    assert [store.claim(NOW, resting=["a"]), store.claim(NOW, resting=["a"])].count(None) == 1
    assert claim(store).batch_id == "a"


def test_claims_from_many_threads_are_never_the_same(store: Store) -> None:
    """Every shard is claimed exactly once however many ask at the same time."""
    for number in range(5):
        accept(store, f"b{number}", shards=20)
    with ThreadPoolExecutor(16) as pool:
        found = [c for c in pool.map(lambda _: store.claim(NOW), range(120)) if c is not None]
    assert len(found) == 100
    assert len({(c.batch_id, c.number) for c in found}) == 100
    assert {c.attempt for c in found} == {1}


# release and commit


def test_a_released_shard_is_claimed_again_under_a_new_attempt(store: Store) -> None:
    """A claim given back is lost for good: its holder can neither release nor commit any more."""
    accept(store, "a")
    first = claim(store)
    assert store.release(first)
    assert not store.release(first)
    second = claim(store)
    assert second.attempt == 2
    assert not store.release(first)
    assert commit(store, first) == Committed(accepted=False, state=State.PROCESSING)
    assert commit(store, second) == Committed(accepted=True, state=State.COMPLETED)
    assert not store.release(second)


def test_an_excused_claim_counts_as_an_attempt_and_says_nothing(store: Store) -> None:
    """The attempt fences as ever; beside it stands how many claims were nobody's fault."""
    accept(store, "a")
    for excused in (True, False, True):
        assert store.release(claim(store), excused=excused)
    last = claim(store)
    assert (last.attempt, last.excused) == (4, 2)


def test_counts_add_up_and_the_last_commit_completes(store: Store) -> None:
    """Counts follow the commits; the last shard ends the batch, also with failed requests."""
    accept(store, "a", shards=2)
    one, two = claim(store), claim(store)
    assert commit(store, two, failed=1) == Committed(accepted=True, state=State.PROCESSING)
    record = store.get("a")
    assert (record.request_count, record.successful_count, record.failed_count) == (6, 2, 1)
    assert (record.token_count, record.native_dimensions, record.end_time) == (20, 384, None)
    assert commit(store, one) == Committed(accepted=True, state=State.COMPLETED)
    record = store.get("a")
    assert (record.state, record.end_time, record.update_time) == (State.COMPLETED, at(2), at(2))
    assert (record.request_count, record.successful_count, record.failed_count) == (6, 5, 1)
    assert [s.result for s in store.shards("a")] == [result(one), result(two, failed=1)]


def test_a_repeated_commit_is_refused_and_changes_nothing(store: Store) -> None:
    """One attempt is committed once; the file of the first stays the one that counts."""
    accept(store, "a")
    held = claim(store)
    assert commit(store, held).accepted
    before = store.get("a"), store.shards("a")
    assert commit(store, held, failed=2) == Committed(accepted=False, state=State.COMPLETED)
    assert (store.get("a"), store.shards("a")) == before


@pytest.mark.parametrize("event", [Event.CANCEL, Event.FAIL, Event.EXPIRE])
def test_a_late_commit_is_refused(store: Store, event: Event) -> None:
    """Once a batch has ended, the claim of a shard that was being worked is worth nothing."""
    accept(store, "a", shards=2)
    late = claim(store)
    end(store, "a", event)
    before = store.get("a"), store.shards("a")
    assert commit(store, late) == Committed(accepted=False, state=before[0].state)
    assert not store.release(late)
    assert (store.get("a"), store.shards("a")) == before
    store.delete("a")
    assert commit(store, late) == Committed(accepted=False, state=None)
    assert store.claim(NOW) is None


def test_all_claims_of_a_dead_service_wait_again(store: Store) -> None:
    """At a start every claimed shard of an active batch waits; what is done or stopped stays as it is."""
    accept(store, "a", shards=3)
    accept(store, "b", age=9)
    stale = [claim(store) for _ in range(4)]
    commit(store, next(c for c in stale if c.batch_id == "a" and c.number == 0))
    store.cancel("b", NOW)
    assert store.release_all() == 2
    assert store.release_all() == 0
    assert [(s.state, s.attempt) for s in store.shards("a")] == [("done", 1), ("waiting", 1), ("waiting", 1)]
    assert not any(commit(store, claimed).accepted for claimed in stale)
    assert [(c.batch_id, c.number, c.attempt) for c in work_off(store)] == [("a", 1, 2), ("a", 2, 2)]
    assert store.get("a").state is State.COMPLETED


# the ends


def end(store: Store, name: str, event: Event) -> None:
    """Bring a batch with a claimed or waiting shard to the end that an event leads to."""
    if event is Event.CANCEL:
        store.cancel(name, at(3))
    elif event is Event.FAIL:
        store.fail(name, "no reason", at(3))
    elif event is Event.EXPIRE:
        store.update(name, now=NOW)
        assert name in store.expire(at(3600))
    else:
        work_off(store)


ENDS = {
    Event.FINISH: State.COMPLETED,
    Event.FAIL: State.FAILED,
    Event.CANCEL: State.CANCELLED,
    Event.EXPIRE: State.EXPIRED,
}


def test_every_end_is_tried_here() -> None:
    """The table below names each event of the transition table that ends a batch."""
    assert {(e, s) for arrows in TRANSITIONS.values() for e, s in arrows.items() if s in FINAL} == set(
        ENDS.items()
    )


@pytest.mark.parametrize("event", ENDS)
def test_a_final_state_is_final(store: Store, event: Event) -> None:
    """From a final state no verb leads anywhere: each says so and leaves everything as it was."""
    accept(store, "a", shards=2)
    end(store, "a", event)
    before = store.get("a"), store.shards("a")
    assert before[0].state is ENDS[event]
    assert before[0].end_time == before[0].update_time
    assert before[0].error == ("no reason" if event is Event.FAIL else None)
    with pytest.raises(IllegalTransition, match=f"a {ENDS[event]} batch cannot cancel"):
        store.cancel("a", at(9))
    with pytest.raises(IllegalTransition):
        store.fail("a", "again", at(9))
    assert store.expire(at(9999)) == []
    assert store.claim(at(9)) is None
    assert (store.get("a"), store.shards("a")) == before


@pytest.mark.parametrize("event", [Event.CANCEL, Event.FAIL, Event.EXPIRE])
def test_a_batch_can_be_ended_before_it_began(store: Store, event: Event) -> None:
    """A PENDING batch ends like a PROCESSING one, and what it never worked is not claimed."""
    assert State.PENDING in sources(event)
    accept(store, "a", shards=2)
    end(store, "a", event)
    assert store.get("a").state is ENDS[event]
    assert store.claim(NOW) is None


def test_what_was_finished_stays_after_a_cancel(store: Store) -> None:
    """Counts of a cancelled batch keep what was committed."""
    accept(store, "a", shards=2)
    commit(store, claim(store), failed=1)
    record = store.cancel("a", at(3))
    assert (record.request_count, record.successful_count, record.failed_count) == (6, 2, 1)
    assert [s.state for s in store.shards("a")] == ["done", "waiting"]


def test_only_batches_whose_time_has_passed_expire(store: Store) -> None:
    """Expiry is by the time given, to the microsecond, and for active batches only."""
    for name, lives in (("due", 10.0), ("just", 20.0), ("later", 20.000001)):
        store.accept(replace(new_batch(name), expire_time=at(lives)), [payload()])
    store.accept(replace(new_batch("file", input_file="f"), expire_time=at(5)), [])
    assert sorted(store.expire(at(20))) == ["due", "file", "just"]
    assert store.expire(at(20)) == []
    assert store.expire(at(99999), due=at(20)) == []
    assert store.get("due").end_time == at(20)
    assert store.unplanned() == []
    assert store.get("later").state is State.PENDING


@pytest.mark.parametrize("verb", ["get", "cancel", "fail", "delete", "update"])
def test_a_batch_that_is_not_there_is_not_found(store: Store, verb: str) -> None:
    """Every verb about one batch says when there is none."""
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("no"),
        "cancel": lambda: store.cancel("no", NOW),
        "fail": lambda: store.fail("no", "why", NOW),
        "delete": lambda: store.delete("no"),
        "update": lambda: store.update("no", priority=1, now=NOW),
    }
    with pytest.raises(NotFound, match="batches/no"):
        calls[verb]()
