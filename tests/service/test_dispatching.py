"""Who is worked next, what happens when no engine comes up, and how it ends: by drain, restart or bug."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from inline_pool import InlinePool
from service_rig import DIMENSIONS, MODEL, OTHER, Rig, large, quick, rows, together, vector

from embatch.engine.models import Catalog
from embatch.engine.protocol import EndpointTrouble, OthersTaken
from embatch.errors import EngineTrouble, Unavailable
from embatch.pool.local import LocalPool
from embatch.service.intake import Draft
from embatch.shard import RequestRow, results_schema
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embatch.settings import Settings

pytest_plugins = ("rig_fixture",)


@pytest.fixture
def asleep(rig: Rig) -> Rig:
    """A service whose slots are both at work on a batch of their own until it is cancelled."""
    rig.pool.gated = True
    rig.service.submit_inline(Draft(display_name="blocker", priority=1000), large(2, "blocker"))
    rig.until(lambda: rig.pool.running == 2)
    return rig


def awake(rig: Rig) -> list[str]:
    """Let the slots go, wait until all is done, and return each shard's first text in the order worked."""
    calls = len(rig.pool.calls)
    (blocker,) = (one for one in rig.service.list(100, None).items if one.display_name == "blocker")
    rig.service.cancel(blocker.name)
    rig.pool.open()
    rig.until(lambda: all(batch.done for batch in rig.service.list(100, None).items))
    return [str(texts[0]).split(" x")[0].strip() for _, texts, _ in rig.pool.calls[calls:]]


def test_higher_priority_runs_first_strictly(asleep: Rig) -> None:
    """Whatever came first; a raised priority counts from the next claim on."""
    for priority in (0, -5, 7, 3):
        asleep.service.submit_inline(Draft(priority=priority), large(2, f"p{priority}"))
    late = asleep.service.submit_inline(Draft(priority=-9), large(2, "raised"))
    asleep.service.update(late.name, priority=9)
    order = awake(asleep)
    expected = [f"{name} {shard}.0" for name in ("raised", "p7", "p3", "p0", "p-5") for shard in (0, 1)]
    # Two slots: neighbours may begin in either order, no more.
    assert sorted(order) == sorted(expected)
    assert all(abs(order.index(text) - place) <= 1 for place, text in enumerate(expected))


def test_equal_priorities_take_turns(asleep: Rig) -> None:
    """No batch has its second shard worked before the others had their first."""
    for name in ("a", "b", "c"):
        asleep.service.submit_inline(Draft(), large(3, name))
    order = awake(asleep)
    assert len(order) == 9
    for turn in range(3):
        first = [f"{name} {turn}.0" for name in ("a", "b", "c")]
        assert all(3 * turn - 1 <= order.index(text) <= 3 * turn + 3 for text in first)


def test_two_shards_are_worked_at_a_time(rig: Rig) -> None:
    """So that one is read and committed while the other computes; never three."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(5)).name
    rig.until(lambda: rig.pool.running == 2)
    assert rig.claimed(name) == 2
    rig.pool.open()
    assert rig.done(name).batch_stats.successful_request_count == 40


def test_the_pool_says_how_many_shards_are_worked_at_a_time(rig: Rig) -> None:
    """Another one may have room for more: two of one batch at most, and of further ones one."""
    rig.stop()
    rig.pool = type(rig.pool)(rig.signals, slots=4, gated=True)
    rig.start()
    names = [rig.service.submit_inline(Draft(), large(6)).name]
    rig.until(lambda: rig.pool.running == 2)
    names += [rig.service.submit_inline(Draft(), large(6, name)).name for name in ("b", "c", "d")]
    rig.until(lambda: rig.pool.running == 4)
    assert [rig.claimed(name) for name in names] == [2, 1, 1, 0]
    rig.pool.open()
    for name in names:
        assert rig.done(name).batch_stats.successful_request_count == 48


def test_a_model_that_the_pool_knows_to_be_in_trouble_is_told_of_before_any_work(rig: Rig) -> None:
    """Nothing was claimed yet: health says so, and a batch that waits."""
    rig.pool.known["other"] = "it does not load"
    rig.pool.gated = True
    rig.service.submit_inline(Draft(), large(2))
    rig.until(lambda: rig.pool.running == 2)
    behind = rig.service.submit_inline(Draft(model="other"), rows(1)).name
    health = rig.service.health()
    assert (health.ready, health.reasons) == (False, ("it does not load",))
    assert rig.service.get(behind).notes == ("it waits: it does not load",)
    rig.pool.known.clear()
    assert rig.service.health().ready
    assert {model for model, _, _ in rig.pool.calls} == {"test"}


def test_engine_trouble_blames_nobody_and_ends_by_itself(rig: Rig) -> None:
    """The shard waits, health says why, and once an engine comes up everything is worked."""
    rig.pool.broken["test"] = EngineTrouble("the weights are missing", retry_after=0.01)
    name = rig.service.submit_inline(Draft(), rows(5)).name
    rig.until(lambda: len(rig.pool.calls) >= 3)
    health = rig.service.health()
    assert (health.ready, health.reasons) == (False, ("the weights are missing",))
    batch = rig.service.get(name)
    assert (batch.state, batch.batch_stats.pending_request_count) == (State.PROCESSING, 5)
    assert batch.notes == ("it waits: the weights are missing",)
    del rig.pool.broken["test"]
    assert rig.done(name).batch_stats.successful_request_count == 5
    assert rig.service.get(name).notes == ()
    rig.until(lambda: rig.service.health().ready)
    assert rig.service.health().reasons == ()


def test_an_endpoint_in_trouble_never_makes_a_shard_suspect(rig: Rig) -> None:
    """However often it fails: each claim is excused, and nothing is tried apart from the rest."""
    tries = rig.settings.suspect_attempts + 3
    rig.pool.failures += [EndpointTrouble("the endpoint answered 429", retry_after=0.01)] * tries
    name = rig.service.submit_inline(Draft(), rows(5)).name
    assert rig.done(name).batch_stats.successful_request_count == 5
    assert [suspect for _, _, suspect in rig.pool.calls] == [False] * (tries + 1)


def test_an_endpoint_that_takes_other_texts_makes_one_batch_wait(rig: Rig) -> None:
    """Others of its model are worked meanwhile; it is asked again when it said, and no claim counts."""
    refused = OthersTaken("too long for now", retry_after=60.0)
    rig.pool.failures.append(refused)
    slow = rig.service.submit_inline(Draft(priority=100), rows(3, "slow")).name
    for _ in range(rig.settings.suspect_attempts):
        rig.until(lambda: not rig.pool.failures and not rig.dispatcher.at_work())
        assert rig.service.get(slow).notes == ("it waits: too long for now",)
        rig.pool.failures.append(refused)
        rig.clock.hurry(61.0)
        rig.dispatcher.wake()
    rig.until(lambda: not rig.pool.failures and not rig.dispatcher.at_work())
    assert rig.done(rig.service.submit_inline(Draft(), rows(3)).name).state is State.COMPLETED
    assert not rig.service.get(slow).done
    rig.clock.hurry(61.0)
    rig.dispatcher.wake()
    assert rig.done(slow).batch_stats.successful_request_count == 3
    assert not any(suspect for _, _, suspect in rig.pool.calls)


def test_a_wait_of_years_is_tried_again_meanwhile(rig: Rig) -> None:
    """Whoever asked for it: the first time after half a minute."""
    rig.pool.broken["test"] = EngineTrouble("much later", retry_after=999_999_999.0)
    name = rig.service.submit_inline(Draft(), rows(5)).name
    rig.until(lambda: rig.service.get(name).notes)
    assert [model for model, _, _ in rig.pool.calls] == ["test"]
    del rig.pool.broken["test"]
    rig.clock.hurry(30.0)
    rig.dispatcher.wake()
    assert rig.done(name).batch_stats.successful_request_count == 5


def test_a_model_in_trouble_is_paused_and_delays_no_other(rig: Rig) -> None:
    """Even at the highest priority it is not asked again before its pause has passed."""
    rig.pool.broken["other"] = EngineTrouble("it is broken", retry_after=3600.0)
    broken = rig.service.submit_inline(Draft(model="other", priority=100), large(3))
    rig.until(lambda: rig.service.health().reasons)
    for _ in range(5):
        assert rig.done(rig.service.submit_inline(Draft(), large(2)).name).state is State.COMPLETED
    assert 1 <= sum(model == "other" for model, _, _ in rig.pool.calls) <= 2
    assert rig.service.get(broken.name).batch_stats.pending_request_count == 24
    assert rig.claimed(broken.name) == 0
    # Nobody waits for it any more once the batch is gone, and health forgets after the pause.
    rig.service.cancel(broken.name)
    rig.clock.hurry(3600.0)
    rig.dispatcher.wake()
    rig.until(lambda: rig.service.health().ready)


def test_a_batch_of_a_model_that_is_not_served_waits(rig: Rig) -> None:
    """The service is ready for those it serves and says what waits; served again, the batch goes on."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(model="other"), rows(4)).name
    rig.until(lambda: rig.pool.running == 1)
    rig.restart(Catalog([MODEL]))
    rig.until(lambda: rig.service.health().reasons)
    health = rig.service.health()
    assert health.ready
    assert "waits for other" in health.reasons[0]
    assert rig.done(rig.service.submit_inline(Draft(), rows(3)).name).state is State.COMPLETED
    # What can be read of it is readable without the model.
    assert rig.service.get(name).state is State.PROCESSING
    rig.restart(Catalog([MODEL, OTHER]))
    assert rig.done(name).state is State.COMPLETED
    rig.restart(Catalog([MODEL]))
    assert rig.read(name)[0]["embedding"] == vector("text 0", OTHER)
    stopped = rig.service.cancel(name)
    assert stopped.state is State.COMPLETED


def test_results_of_a_stopped_batch_whose_model_is_gone_are_readable(rig: Rig) -> None:
    """All its requests say that it was cancelled."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(model="other"), rows(4)).name
    rig.restart(Catalog([MODEL]))
    rig.service.cancel(name)
    assert [row["error_reason"] for row in rig.read(name)] == ["CANCELLED"] * 4


def test_a_shard_that_never_commits_becomes_suspect(rig: Rig) -> None:
    """After the third claim without a commit it is worked in quarantine, and not before."""
    attempts = rig.settings.suspect_attempts
    rig.pool.failures += [EngineTrouble("gone", retry_after=0.0)] * (attempts + 2)
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).state is State.COMPLETED
    assert [suspect for _, _, suspect in rig.pool.calls] == [False] * attempts + [True] * 3


def test_claims_that_a_stop_cut_short_say_nothing_against_a_shard(rig: Rig) -> None:
    """However often the service was started again while it was worked."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(3)).name
    for _ in range(rig.settings.suspect_attempts + 2):
        rig.until(lambda: rig.pool.running == 1)
        rig.stop()
        rig.pool = type(rig.pool)(rig.signals)
        rig.pool.gated = True
        rig.start()
    rig.pool.open()
    rig.done(name)
    assert [suspect for _, _, suspect in rig.pool.calls] == [False]


def test_ends_that_come_before_a_micro_batch_does_say_nothing_against_a_shard(rig: Rig) -> None:
    """However often its service is ended while a long one runs, the shard stays with the others."""
    name = ""
    for attempt in range(1, 6):
        rig.pool.gated, rig.pool.holds = True, True
        name = name or rig.service.submit_inline(Draft(), rows(4)).name
        rig.until(lambda: len(rig.pool.calls) == 1)
        assert rig.pool.calls[0][2] is False, f"suspect at attempt {attempt}"
        rig.stop(0.0)
        rig.pool.holds = False
        rig.restart()
    assert rig.done(name).batch_stats.successful_request_count == 4


def test_a_drain_leaves_no_claimed_shard(rig: Rig) -> None:
    """Running micro-batches finish, nothing is begun, everything else waits for the next start."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(6)).name
    rig.until(lambda: rig.pool.running == 2)
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    worked = rig.pool.micro_batches
    rig.service.close(30.0)
    assert rig.pool.running == 0
    assert rig.pool.micro_batches == worked
    assert rig.claimed(name) == 0
    calls = len(rig.pool.calls)
    rig.dispatcher.wake()
    assert len(rig.pool.calls) == calls
    rig.restart()
    assert rig.done(name).batch_stats.successful_request_count == 48


def test_a_drain_without_patience_releases_all_the_same(rig: Rig) -> None:
    """A slot that does not come back within the grace loses its claim: what it brings later is refused."""
    rig.pool.gated = True
    late: list[bool] = []
    name = rig.service.submit_inline(Draft(), rows(4)).name
    rig.until(lambda: rig.pool.running == 1)

    def close() -> None:
        # The engine has finished; the commit comes after the service gave up waiting for it.
        rig.before.clear()
        together(1, lambda _: rig.dispatcher.close(0.0))  # of another thread, as ever
        late.append(rig.claimed(name) == 0)

    rig.before["commit"] = close
    rig.pool.allow(1)
    rig.until(lambda: late and not rig.dispatcher.at_work())
    assert late == [True]
    assert rig.files() == {name, f"{name}/payload-00000.arrow"}
    rig.restart()
    assert rig.done(name).batch_stats.successful_request_count == 4


def test_closing_twice_is_safe(rig: Rig) -> None:
    """As a second signal may ask."""
    rig.service.close(1.0)
    rig.service.close(1.0)


def test_a_killed_service_is_taken_up_where_it_was(rig: Rig) -> None:
    """Claims of the dead wait again, folders nobody speaks of go, what was committed is not done twice."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(4)).name
    rig.pool.allow(2)
    rig.until(lambda: rig.pool.micro_batches == 2)
    rig.pool.allow(2)
    rig.until(lambda: rig.service.get(name).batch_stats.successful_request_count >= 8)
    rig.until(lambda: rig.claimed(name) >= 1)  # the slots that committed take what follows
    # What a kill leaves: claims in the store, files without rows, nobody to clean up.
    rig.before.update(dict.fromkeys(("claim", "commit", "release"), gone))
    rig.service.close(30.0)
    assert rig.claimed(name) >= 1
    for path in ("batches/orphan/payload-00000.arrow", "uploads/orphan", "files/orphan"):
        rig.blobs.path(path).parent.mkdir(exist_ok=True)
        rig.blobs.path(path).write_bytes(b"left behind")
    committed = rig.pool.worked.copy()
    done = {row.number for row in rig.store.shards(name.removeprefix("batches/")) if row.state == "done"}
    rig.stop()
    rig.before = {}
    rig.pool = type(rig.pool)(rig.signals)
    rig.start()
    assert rig.done(name).batch_stats.successful_request_count == 32
    assert not any("orphan" in path for path in rig.files())
    again = {text.split(".")[0] for text in rig.pool.worked}
    assert not any(f"large {number}" in again for number in done)
    assert committed


def gone() -> None:
    """Keep what a dead service still does from the store."""
    raise Unavailable("gone")


def test_a_bug_in_the_pool_harms_neither_slot_nor_batch(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The shard is given back and tried again; the log says where it happened, and never the text."""
    rig.patience = quick
    rig.pool.failures += [ZeroDivisionError("secret text")] * 2
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).batch_stats.successful_request_count == 3
    assert sum(record.name == "embatch.dispatcher" for record in caplog.records) == 2
    assert "secret text" not in "".join(record.getMessage() for record in caplog.records)


def test_a_commit_that_the_disk_refuses_is_tried_again(rig: Rig) -> None:
    """Its file goes at once, for the disk is full, and the next attempt has a file of its own."""
    rig.patience = quick
    tries: list[int] = []

    def refuse() -> None:
        if len(tries) < 2:
            tries.append(1)
            raise Unavailable("the disk is full", reason="STORAGE_FULL")

    rig.before["commit"] = refuse
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).batch_stats.successful_request_count == 3
    rig.until(lambda: rig.files() == {name, f"{name}/payload-00000.arrow", f"{name}/result-00000-3.arrow"})


def test_a_pool_that_loses_requests_is_not_believed(rig: Rig) -> None:
    """The database refuses a shard whose counts do not add up; the batch goes on once the pool is right."""
    rig.patience = quick
    rig.pool.wrong += [pa.RecordBatch.from_pylist([], schema=results_schema(DIMENSIONS))] * 2
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).batch_stats.successful_request_count == 3
    assert len(rig.pool.calls) == 3


@pytest.mark.parametrize(("make", "lanes"), [(LocalPool, {"bulk", "query"}), (InlinePool, {"inline"})])
def test_the_service_over_pools_that_embed(
    tmp_path: Path, make: Callable[[Settings], LocalPool | InlinePool], lanes: set[str]
) -> None:
    """A batch, an interactive call, a cancel, what health says, and a quiet end, over either pool alike."""
    rig = Rig(tmp_path / "data", pool=make)
    try:
        name = rig.service.submit_inline(Draft(), [*large(2), *rows(20), RequestRow("")]).name
        part = rig.service.interactive.embed(None, rows(2, "query"))
        assert part.column("embedding").to_pylist() == [vector("query 0"), vector("query 1")]
        done = rig.done(name)
        assert (done.state, done.batch_stats.successful_request_count) == (State.COMPLETED, 36)
        found = {row["key"]: row["embedding"] for row in rig.read(name)}
        assert found["text-7"] == vector("text 7")
        assert [row["error_reason"] for row in rig.read(name)][-1] == "EMPTY_TEXT"
        health = rig.service.health()
        assert (health.ready, health.reasons) == (True, ())
        assert {(engine.model, engine.lane) for engine in health.engines} == {
            (MODEL.name, lane) for lane in lanes
        }
        stopped = rig.service.submit_inline(Draft(), large(20)).name
        assert rig.service.cancel(stopped).state is State.CANCELLED
        rig.until(lambda: not rig.dispatcher.at_work())
        other = rig.service.submit_inline(Draft(model="other"), rows(3)).name
        assert rig.done(other).state is State.COMPLETED
        assert rig.read(other)[0]["embedding"] == vector("text 0", OTHER)
    finally:
        rig.stop()
