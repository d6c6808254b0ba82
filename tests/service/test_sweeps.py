"""What grows old ends or goes, by a clock that tests turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rig import Rig, large, rows
from service_world import Clock

from embatch.errors import NoSuchFile, NotFound
from embatch.service.intake import Draft
from embatch.service.sweeps import AgeClock, Ageing, since_boot
from embatch.states import State

pytest_plugins = ("rig_fixture",)


def test_an_unfinished_batch_expires_and_keeps_what_it_has(rig: Rig) -> None:
    """At its age and not before; running shards stop, unserved requests say why, counts are frozen."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(4)).name
    rig.until(lambda: rig.pool.running == 2)
    rig.pool.allow(3)
    rig.until(lambda: rig.service.get(name).batch_stats.successful_request_count == 8)
    rig.clock.turn(rig.settings.batch_expiry - 1)
    rig.service.sweep()
    assert rig.service.get(name).state is State.PROCESSING
    rig.clock.turn(1)
    rig.service.sweep()
    expired = rig.service.get(name)
    assert (expired.state, expired.end_time) == (State.EXPIRED, rig.clock())
    rig.pool.open()
    rig.until(lambda: rig.pool.running == 0 and not rig.dispatcher.at_work())
    assert rig.service.get(name) == expired
    stats = expired.batch_stats
    assert (stats.successful_request_count, stats.failed_request_count) == (8, 24)
    found = rig.read(name)
    assert sum(row["error_code"] is None for row in found) == 8
    assert {(row["error_code"], row["error_reason"]) for row in found if row["embedding"] is None} == {
        (4, "EXPIRED")
    }
    assert len(rig.pool.calls) == 3


def test_a_batch_nobody_began_expires_too(rig: Rig) -> None:
    """Also one whose file was never planned."""
    rig.pool.gated = True
    rig.service.submit_inline(Draft(priority=1), large(2))
    rig.until(lambda: rig.pool.running == 2)
    name = rig.service.submit_inline(Draft(), rows(3)).name
    rig.clock.turn(rig.settings.batch_expiry)
    rig.service.sweep()
    expired = rig.service.get(name)
    assert (expired.state, expired.batch_stats.failed_request_count) == (State.EXPIRED, 3)


def test_final_batches_are_deleted_after_their_time(rig: Rig) -> None:
    """With row and files, counted from their end; the others stay."""
    old = rig.done(rig.service.submit_inline(Draft(), rows(3)).name).name
    rig.clock.turn(100)
    young = rig.done(rig.service.submit_inline(Draft(), rows(3)).name).name
    rig.clock.turn(rig.settings.retention - 100)
    rig.service.sweep()
    assert rig.service.get(old).done
    rig.clock.turn(1)
    rig.service.sweep()
    with pytest.raises(NotFound):
        rig.service.get(old)
    assert rig.service.get(young).done
    assert {path.split("/")[1] for path in rig.files()} == {young.split("/")[1]}
    rig.clock.turn(100)
    rig.service.sweep()
    rig.service.sweep()
    assert rig.files() == set()
    assert rig.service.list(10, None).items == ()


def test_more_batches_than_one_sweep_takes_go_by_and_by(rig: Rig) -> None:
    """A sweep is bounded; the next one takes the rest."""
    rig.sweep_seconds = 3600.0  # it sweeps when it is told to and not meanwhile
    rig.restart()
    for _ in range(130):
        rig.service.submit_inline(Draft(), rows(1))
    rig.until(lambda: all(batch.done for batch in rig.service.list(200, None).items))
    rig.clock.turn(rig.settings.retention + 1)
    rig.service.sweep()
    assert len(rig.service.list(200, None).items) == 30
    rig.service.sweep()
    assert rig.service.list(200, None).items == ()
    assert rig.files() == set()


def test_uploaded_files_are_deleted_after_their_time(rig: Rig) -> None:
    """With their bytes; a batch made from one keeps its texts."""
    file = rig.upload(b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n')
    name = rig.service.submit_file(Draft(), file).name
    rig.done(name)
    rig.clock.turn(rig.settings.file_expiry - 1)
    rig.service.sweep()
    assert rig.service.file(file).size
    stored = rig.service.file(file).path
    assert stored in rig.files()
    rig.clock.turn(1)
    rig.service.sweep()
    with pytest.raises(NoSuchFile):
        rig.service.file(file)
    assert stored not in rig.files()
    assert rig.read(name)[0]["embedding"]


def test_abandoned_uploads_are_deleted_after_their_time(rig: Rig) -> None:
    """With their bytes, and their names are free again."""
    token = rig.service.uploads.begin(file_id="mine", display_name=None, mime_type="text/plain", size=None)
    rig.service.uploads.append(token, 0, b"half")
    rig.clock.turn(rig.settings.file_expiry - 1)
    rig.service.sweep()
    assert rig.service.uploads.offset(token) == 4
    rig.clock.turn(1)
    rig.service.sweep()
    with pytest.raises(NotFound):
        rig.service.uploads.offset(token)
    assert rig.files() == set()
    rig.service.uploads.begin(file_id="mine", display_name=None, mime_type="text/plain", size=None)


def test_a_sweep_that_fails_keeps_none_of_the_others(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and what comes after it is done."""

    def fail() -> None:
        raise ZeroDivisionError

    ageing = Ageing(rig.store, rig.blobs, rig.settings, AgeClock(rig.clock, rig.clock.steady), expired=id)
    ageing.sweeps.insert(0, fail)
    name = rig.done(rig.service.submit_inline(Draft(), rows(1)).name).name
    rig.clock.turn(rig.settings.retention + 1)
    ageing.sweep()
    with pytest.raises(NotFound):
        rig.service.get(name)
    assert [record.name for record in caplog.records] == ["embatch.sweeps"]


DAYS = 86_400.0


@pytest.mark.parametrize("jump", [31 * DAYS, 3600.0, -31 * DAYS, 26 * 365 * DAYS])
def test_a_wall_clock_that_is_set_ends_nothing_before_its_time(
    rig: Rig, caplog: pytest.LogCaptureFixture, jump: float
) -> None:
    """Work goes on, results and files stay, for as long as they would have (I17); it is logged once."""
    file = rig.upload(b"{}")
    old = rig.done(rig.service.submit_inline(Draft(), rows(3)).name).name
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(3)).name
    rig.until(lambda: rig.pool.running == 1)
    rig.clock.set(jump)
    for _ in range(int(rig.settings.batch_expiry / 3600) - 1):
        rig.clock.turn(3600)
        rig.service.sweep()
    assert rig.service.get(name).state is State.PROCESSING
    assert rig.service.file(file).size == 2
    assert [record.getMessage() for record in caplog.records] == ["the wall clock was set"]
    rig.clock.turn(3600)
    rig.service.sweep()
    if jump > 0:  # after a jump backwards things live longer than they should
        assert rig.service.get(name).state is State.EXPIRED
        with pytest.raises(NoSuchFile):
            rig.service.file(file)
    rig.clock.turn(rig.settings.retention - rig.settings.batch_expiry - 1)
    rig.service.sweep()
    assert rig.service.get(old).done
    rig.clock.turn(2 + max(0.0, -jump))
    rig.service.sweep()
    with pytest.raises(NotFound):
        rig.service.get(old)


def test_what_comes_after_the_clock_was_set_ends_at_its_time(rig: Rig) -> None:
    """An earlier jump, in whatever direction, neither shortens nor lengthens its life."""
    for jump in (31 * DAYS, -31 * DAYS):
        rig.clock.set(jump)
        rig.service.sweep()
        rig.pool.gated = True
        name = rig.service.submit_inline(Draft(), rows(3)).name
        for seconds, state in ((rig.settings.batch_expiry - 1, State.PROCESSING), (1, State.EXPIRED)):
            rig.until(lambda: rig.pool.running == 1)
            rig.clock.turn(seconds)
            rig.service.sweep()
            assert rig.service.get(name).state is state
        rig.until(lambda: rig.pool.running == 0)


def test_a_mistake_that_is_put_right_leaves_no_trace(rig: Rig) -> None:
    """Forwards and back, backwards and forth, however far: ages are right at once."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(3)).name
    for jump in (31 * DAYS, -31 * DAYS, -400 * DAYS, 400 * DAYS):
        rig.clock.set(jump)
        rig.service.sweep()
    rig.clock.turn(rig.settings.batch_expiry - 1)
    rig.service.sweep()
    assert not rig.service.get(name).done
    rig.clock.turn(1)
    rig.service.sweep()
    assert rig.service.get(name).state is State.EXPIRED


def test_a_machine_that_was_just_switched_on_deletes_nothing(rig: Rig) -> None:
    """It may have no clock of its own and not have heard from a time server yet."""
    old = rig.done(rig.service.submit_inline(Draft(), rows(3)).name).name
    rig.stop()
    rig.clock.boot(10.0)
    rig.clock.set(70 * 365 * DAYS)
    rig.restart()
    rig.service.sweep()
    rig.clock.turn(120)
    rig.service.sweep()
    assert rig.service.get(old).done
    rig.clock.set(-70 * 365 * DAYS)  # the time server answers
    for _ in range(3):
        rig.clock.turn(3600)
        rig.service.sweep()
    assert rig.service.get(old).done
    rig.clock.turn(rig.settings.retention)
    rig.service.sweep()
    with pytest.raises(NotFound):
        rig.service.get(old)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 60.0, 3600.0, -3600.0, 30 * DAYS, -30 * DAYS]), st.floats(0, 7200)),
        max_size=30,
    ),
    st.sampled_from([3600.0, DAYS, 30 * DAYS]),
)
def test_nothing_is_older_than_the_time_that_has_passed(
    story: list[tuple[float, float]], lifetime: float
) -> None:
    """Whatever is done to the wall clock; and a jump is over once a lifetime has passed."""
    clock = Clock()
    ages = AgeClock(clock, clock.steady)
    born: list[tuple[float, float]] = []
    for jump, seconds in story:
        born.append((clock.steady(), clock().timestamp()))
        clock.set(jump)
        clock.turn(seconds)
        looked = ages.by(lifetime).timestamp()
        assert looked <= clock().timestamp()
        for steady, stamp in born:
            lived = clock.steady() - steady
            assert lived >= lifetime - 1e-3 or looked - stamp <= lived + 1e-3
    clock.turn(lifetime + 1)
    assert ages.by(lifetime) == clock()


def test_the_time_since_the_machine_was_switched_on_only_grows() -> None:
    """It is read from the system."""
    first = since_boot()
    assert 0 < first <= since_boot()


def test_sweeps_are_done_unasked(rig: Rig) -> None:
    """Every few seconds while the service runs."""
    rig.sweep_seconds = 0.01
    rig.restart()
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(3)).name
    rig.clock.turn(rig.settings.batch_expiry)
    assert rig.done(name).state is State.EXPIRED
