"""Cancel is final: no late commit, no engine call beyond the running micro-batch, counts that add up."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from service_rig import Rig, large, rows, together, vector

from embatch.errors import FailedPrecondition, NotFound
from embatch.service.intake import Draft
from embatch.shard import RequestRow
from embatch.states import State

if TYPE_CHECKING:
    from embatch.batch import Batch

pytest_plugins = ("rig_fixture",)

SEED = 7


def adds_up(batch: Batch) -> None:
    """Check the counts of one answer."""
    stats = batch.batch_stats
    parts = (stats.successful_request_count, stats.failed_request_count, stats.pending_request_count)
    assert min(parts) >= 0
    assert sum(parts) == stats.request_count
    assert 0 <= stats.uncommitted_request_count <= stats.pending_request_count
    assert not (batch.done and stats.pending_request_count)


def test_cancelled_at_random_moments_nothing_comes_late(rig: Rig) -> None:
    """Forty batches cancelled at any moment of their life, while a poller looks: final stays final."""
    chance = random.Random(SEED)
    rig.pool.gated = True
    given = [row for row in large(2) if chance.random() < 0.9]
    names = [rig.service.submit_inline(Draft(), given).name for _ in range(40)]
    faults: list[str] = []
    ended: dict[str, Batch] = {}
    pending = dict.fromkeys(names, len(given))
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            for batch in rig.service.list(100, None).items:
                try:
                    adds_up(batch)
                    assert batch.batch_stats.pending_request_count <= pending[batch.name]
                    assert ended.get(batch.name, batch) == batch
                except AssertionError as error:
                    faults.append(f"{batch}: {error}")
                pending[batch.name] = batch.batch_stats.pending_request_count
                if batch.done:
                    ended[batch.name] = batch

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    moments = [chance.randrange(160) for _ in names]
    allowed = 0
    for name, moment in sorted(zip(names, moments, strict=True), key=lambda pair: pair[1]):
        rig.pool.allow(moment - allowed)
        allowed = moment
        if chance.random() < 0.5:  # else the cancel comes amid the micro-batches just allowed
            rig.until(partial(reaches, rig, names, moment))
        frozen = rig.service.cancel(name)
        adds_up(frozen)
        assert frozen.done
    rig.pool.open()
    rig.until(lambda: all_final(rig, names) and rig.pool.running == 0)
    over.set()
    poller.join()
    assert faults == []
    states = {name: rig.service.get(name).state for name in names}
    assert set(states.values()) == {State.CANCELLED, State.COMPLETED}
    for name in names:
        stats, found = rig.service.get(name).batch_stats, rig.read(name)
        assert [row["key"] for row in found] == [row.key for row in given]
        served = [row for row in found if row["error_code"] is None]
        assert (len(served), len(found) - len(served)) == (
            stats.successful_request_count,
            stats.failed_request_count,
        )
        if states[name] is State.CANCELLED:
            assert {row["error_code"] for row in found} <= {None, 1}


def reaches(rig: Rig, names: list[str], moment: int) -> bool:
    """Return whether so many micro-batches have run, or no more will."""
    return rig.pool.micro_batches >= moment or all_final(rig, names)


def all_final(rig: Rig, names: list[str]) -> bool:
    """Return whether nothing is left to be done."""
    return all(rig.service.get(name).done for name in names)


def test_cancel_is_heard_after_the_running_micro_batch(rig: Rig) -> None:
    """What runs ends, nothing more is begun, and what was finished before stays readable."""
    rig.pool.gated = True
    given = large(3)
    name = rig.service.submit_inline(Draft(), given).name
    rig.pool.allow(3)  # shard 0 is done with two; both slots work
    rig.until(lambda: rig.pool.micro_batches == 3)
    rig.pool.allow(1)
    rig.until(lambda: rig.service.get(name).batch_stats.successful_request_count >= 8)
    worked = rig.pool.micro_batches
    cancelled = rig.service.cancel(name)
    rig.pool.allow(100)
    rig.until(lambda: rig.pool.running == 0)
    assert rig.pool.micro_batches <= worked + 2  # one for each slot
    assert cancelled.state is State.CANCELLED
    assert rig.service.get(name) == cancelled
    found = rig.read(name)
    served = [row for row in found if row["error_code"] is None]
    assert len(served) == cancelled.batch_stats.successful_request_count
    assert [row["embedding"] for row in served] == [vector(str(given[row["index"]].text)) for row in served]
    assert {row["error_reason"] for row in found if row["error_code"] is not None} == {"CANCELLED"}


def test_a_shard_claimed_just_before_the_cancel_is_not_begun(rig: Rig) -> None:
    """Between the claim in the store and the start of the work, too, a cancel is heard."""
    claimed, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if any(rig.claimed(batch.name) for batch in rig.service.list(10, None).items):
            claimed.set()
            assert go_on.wait(120)

    rig.pool.gated = True
    rig.after["claim"] = hold
    name = rig.service.submit_inline(Draft(), rows(8)).name
    assert claimed.wait(120)
    canceller = threading.Thread(target=rig.service.cancel, args=(name,))
    canceller.start()
    rig.until(lambda: rig.service.get(name).done)
    go_on.set()
    canceller.join(30)
    rig.pool.allow(100)
    rig.until(lambda: rig.pool.running == 0 and not rig.dispatcher.at_work())
    assert rig.pool.micro_batches == 0
    assert rig.service.get(name).batch_stats.failed_request_count == 8


def test_a_result_that_comes_after_the_cancel_is_dropped(rig: Rig) -> None:
    """The engine had finished; the store refuses the commit and the file goes away."""

    def cancel() -> None:
        rig.store.cancel(name.removeprefix("batches/"), rig.clock())

    rig.before["commit"] = cancel
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(4)).name
    rig.pool.allow(1)
    rig.until(lambda: not rig.dispatcher.at_work() and rig.service.get(name).done)
    assert rig.service.get(name).batch_stats.successful_request_count == 0
    assert rig.files() == {name, f"{name}/payload-00000.arrow"}
    assert {row["error_code"] for row in rig.read(name)} == {1}


def test_a_result_that_comes_after_the_deletion_leaves_no_folder(rig: Rig) -> None:
    """The batch is gone, and what the late shard wrote goes too."""

    def delete(path: str) -> None:
        if "result" in path:
            rig.store.cancel(name.removeprefix("batches/"), rig.clock())
            rig.service.delete(name)

    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(4)).name
    rig.blobs.before_write = delete
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1 and not rig.dispatcher.at_work())
    assert rig.files() == set()


def test_cancelled_twice_and_by_many_at_once(rig: Rig) -> None:
    """The state stays the first one's; a completed batch stays COMPLETED."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(4)).name
    answers: list[Batch] = []
    together(8, lambda _: answers.append(rig.service.cancel(name)))
    assert {answer.state for answer in answers} == {State.CANCELLED}
    assert rig.service.cancel(name) == rig.service.get(name)
    rig.pool.open()
    done = rig.done(rig.service.submit_inline(Draft(), rows(4)).name)
    assert rig.service.cancel(done.name) == done


def test_only_a_final_batch_can_be_deleted(rig: Rig) -> None:
    """A running one is refused and goes on; a final one goes with its files, for good."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(4)).name
    with pytest.raises(FailedPrecondition):
        rig.service.delete(name)
    with pytest.raises(FailedPrecondition):
        rig.service.results(name)
    rig.pool.open()
    rig.done(name)
    rig.service.delete(name)
    assert rig.files() == set()
    for ask in (rig.service.get, rig.service.delete, rig.service.results):
        with pytest.raises(NotFound):
            ask(name)


def test_requests_faulty_from_the_start_keep_their_own_error(rig: Rig) -> None:
    """In a batch cancelled before their shard's turn, the others say that it was cancelled."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), [RequestRow("a"), RequestRow(" "), RequestRow("b")]).name
    cancelled = rig.service.cancel(name)
    assert cancelled.batch_stats.failed_request_count == 3
    assert [row["error_reason"] for row in rig.read(name)] == ["CANCELLED", "EMPTY_TEXT", "CANCELLED"]


def test_progress_within_a_shard_shows_and_is_not_yet_counted(rig: Rig) -> None:
    """Embedded requests of a shard that is not committed are reported apart, until it is."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), [*rows(8), RequestRow("")]).name
    rig.until(lambda: rig.service.get(name).batch_stats.uncommitted_request_count == 1)  # the faulty one
    rig.pool.allow(1)
    rig.until(lambda: rig.service.get(name).batch_stats.uncommitted_request_count == 5)
    batch = rig.service.get(name)
    adds_up(batch)
    assert (batch.state, batch.batch_stats.pending_request_count) == (State.PROCESSING, 9)
    assert batch.batch_stats.progress_percentage == pytest.approx(500 / 9)
    rig.pool.allow(1)
    stats = rig.done(name).batch_stats
    assert (stats.successful_request_count, stats.failed_request_count) == (8, 1)
    assert stats.uncommitted_request_count == 0
