"""Shards of many batches at work at once: who gets a slot, what a priority changes, what a drain leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from service_rig import Rig, large, rows, vector

from embatch.engine.models import Catalog, serve_model
from embatch.errors import Unavailable
from embatch.pool.local import LocalPool
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest_plugins = ("rig_fixture",)


@pytest.fixture
def wide(rig: Rig) -> Rig:
    """A service with eight slots, whose micro-batches have to be allowed."""
    rig.stop()
    rig.pool = type(rig.pool)(rig.signals, slots=8, gated=True)
    rig.start()
    return rig


def _of(rig: Rig, name: str) -> set[str]:
    """Return the files of a batch but for its payloads."""
    return {
        path.split("/")[-1] for path in rig.files() if path.startswith(f"{name}/") and "payload" not in path
    }


def test_a_small_batch_is_claimed_beside_large_ones(wide: Rig) -> None:
    """At once: none of them has more than its part of the slots."""
    names = [wide.service.submit_inline(Draft(), large(6, name)).name for name in ("a", "b", "c", "d", "e")]
    wide.until(lambda: all(wide.claimed(name) for name in names))
    small = wide.service.submit_inline(Draft(), rows(3)).name
    wide.until(lambda: wide.claimed(small) == 1)
    assert all(1 <= wide.claimed(name) <= 2 for name in names)
    wide.pool.open()
    for name in (*names, small):
        assert wide.done(name).state is State.COMPLETED


def test_the_last_slot_waits_for_a_higher_priority(wide: Rig) -> None:
    """However many batches there are: one that is more urgent begins, one that is not waits."""
    names = [wide.service.submit_inline(Draft(), rows(3, f"batch {number}")).name for number in range(9)]
    wide.until(lambda: wide.pool.running == 7)
    urgent = wide.service.submit_inline(Draft(priority=1), rows(3, "urgent")).name
    wide.until(lambda: wide.claimed(urgent) == 1)
    assert sum(wide.claimed(name) for name in names) == 7
    highest = wide.service.submit_inline(Draft(priority=2**63 - 1), rows(3, "highest")).name
    wide.pool.open()
    for name in (*names, urgent, highest):
        assert wide.done(name).state is State.COMPLETED


def test_another_model_waits_for_a_higher_priority(wide: Rig) -> None:
    """Its engine would take its part of the cores; one of the same model waits in the engine."""
    first = wide.service.submit_inline(Draft(priority=5), large(4, "first")).name
    wide.until(lambda: wide.pool.running == 2)
    other = wide.service.submit_inline(Draft(model="other"), rows(3)).name
    same = wide.service.submit_inline(Draft(), rows(3)).name
    wide.until(lambda: wide.claimed(same) == 1)
    equal = wide.service.submit_inline(Draft(model="other", priority=5), rows(3)).name
    wide.until(lambda: wide.claimed(equal) == 1)
    assert wide.claimed(other) == 0
    wide.pool.open()
    for name in (first, other, same, equal):
        assert wide.done(name).state is State.COMPLETED


def test_a_changed_priority_reaches_what_is_at_work(wide: Rig) -> None:
    """The pool sees it on the shards that it has, and on those that come."""
    name = wide.service.submit_inline(Draft(priority=1), large(3, "first")).name
    other = wide.service.submit_inline(Draft(priority=2), rows(3)).name
    wide.until(lambda: wide.pool.running == 3)
    wide.service.update(name, priority=-7)
    wide.service.update(other, display_name="another name")
    mine = {origin.batch: origin.priority for origin in wide.pool.origins}
    assert mine == {name.removeprefix("batches/"): -7, other.removeprefix("batches/"): 2}
    wide.pool.open()
    wide.done(name)
    assert [origin.priority for origin in wide.pool.origins if origin.batch in name] == [-7] * 3


def test_a_drain_leaves_what_is_finished_to_the_next_start(rig: Rig) -> None:
    """Nothing of it is worked again; nothing is counted before, and no file is left behind."""
    rig.pool.gated = True
    given = large(3)
    name = rig.service.submit_inline(Draft(), given).name
    rig.until(lambda: rig.pool.running == 2)
    rig.pool.allow(2)
    rig.until(lambda: rig.pool.micro_batches == 2)
    rig.until(lambda: rig.service.get(name).batch_stats.uncommitted_request_count == 8)
    rig.stop()
    assert len(left := _of(rig, name)) in (1, 2)  # two of one shard, or one of each
    assert {path[:4] for path in left} <= {"kept", "resu"}
    worked = rig.pool.worked.copy()
    rig.pool = type(rig.pool)(rig.signals)
    rig.start()
    done = rig.done(name)
    assert done.batch_stats.successful_request_count == 24
    assert (worked + rig.pool.worked) == dict.fromkeys((str(row.text) for row in given), 1)
    assert [row["embedding"] for row in rig.read(name)] == [vector(str(row.text)) for row in given]
    rig.until(lambda: all(path.startswith("result") for path in _of(rig, name)))


def test_what_is_left_grows_from_drain_to_drain(rig: Rig) -> None:
    """Each leaves one file for a shard, under its own attempt."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(16)).name
    for attempt in (1, 2, 3):
        rig.pool.allow(1)
        rig.until(lambda: rig.pool.micro_batches == 1)
        rig.until(lambda: rig.service.get(name).batch_stats.uncommitted_request_count == 4 * attempt)  # noqa: B023
        rig.stop()
        assert _of(rig, name) == {f"kept-00000-{attempt}.arrow"}
        rig.pool = type(rig.pool)(rig.signals, gated=True)
        rig.start()
    rig.until(lambda: rig.pool.running == 1)
    rig.stop()  # nothing more was finished
    rig.pool = type(rig.pool)(rig.signals)
    rig.start()
    rig.done(name)
    assert rig.pool.worked == {f"text {at}": 1 for at in range(12, 16)}


def test_a_cancelled_shard_leaves_nothing(rig: Rig) -> None:
    """Nobody will work it again."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(16)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.service.cancel(name)
    rig.until(lambda: not rig.dispatcher.at_work())
    assert _of(rig, name) == set()


def test_a_drain_leaves_nothing_of_a_batch_that_is_gone(rig: Rig) -> None:
    """Its last client stopped and deleted it and left, all within one micro-batch."""
    rig.pool.gated, rig.pool.holds = True, True
    name = rig.service.submit_inline(Draft(), rows(16)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.service.cancel(name)
    rig.service.delete(name)
    rig.service.pause()
    rig.pool.holds = False
    rig.until(lambda: not rig.dispatcher.at_work())
    assert rig.files() == set()


def test_what_is_too_late_for_a_drain_leaves_nothing(rig: Rig) -> None:
    """Its claim is gone by then, and nobody would find the file."""
    rig.pool.gated, rig.pool.holds = True, True
    written: list[str] = []
    name = rig.service.submit_inline(Draft(), rows(16)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.blobs.before_write = written.append
    rig.dispatcher.close(0.0)
    rig.pool.holds = False
    rig.until(lambda: not rig.dispatcher.at_work())
    assert written == []
    assert _of(rig, name) == set()


def test_what_is_left_of_a_batch_goes_with_it(rig: Rig) -> None:
    """By its deletion, and by a start once nobody will work it."""
    rig.pool.gated = True
    names = [rig.service.submit_inline(Draft(), rows(16, text)).name for text in ("first", "second")]
    rig.pool.allow(2)
    rig.until(lambda: rig.pool.micro_batches == 2)
    rig.stop()
    left = [name for name in names if _of(rig, name)]
    assert left
    rig.pool = type(rig.pool)(rig.signals, gated=True)
    rig.start()
    rig.until(lambda: rig.pool.running == 2)
    for name in names:
        rig.service.cancel(name)
    rig.until(lambda: not rig.dispatcher.at_work())
    rig.service.delete(left[0])
    assert not any(path.startswith(left[0]) for path in rig.files())
    rig.restart()
    assert all(_of(rig, name) == set() for name in names)
    assert list(rig.store.kept_for_nobody()) == []


def test_a_crash_around_a_drain_leaves_no_file_and_loses_nothing(rig: Rig) -> None:
    """Whether the file came before its row, or stayed after its shard was done."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(8)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)

    def gone() -> None:
        raise Unavailable("gone")

    rig.before["release"] = gone
    rig.stop()
    assert _of(rig, name) == {"kept-00000-1.arrow"}
    rig.before.clear()
    rig.pool = type(rig.pool)(rig.signals, gated=True)
    rig.start()
    assert _of(rig, name) == set()
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.stop()
    (left,) = _of(rig, name)
    stays = rig.blobs.path(f"{name}/{left}").read_bytes()
    rig.pool = type(rig.pool)(rig.signals)
    rig.start()
    rig.done(name)
    rig.until(lambda: _of(rig, name) == {"result-00000-3.arrow"})
    rig.stop()
    rig.blobs.path(f"{name}/{left}").write_bytes(stays)
    rig.start()
    assert _of(rig, name) == {"result-00000-3.arrow"}


def test_what_was_damaged_is_done_again(rig: Rig) -> None:
    """And nobody is told anything else than that it was embedded."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(8)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.stop()
    (left,) = _of(rig, name)
    rig.blobs.path(f"{name}/{left}").write_bytes(b"damaged")
    rig.pool = type(rig.pool)(rig.signals)
    rig.start()
    assert rig.done(name).batch_stats.successful_request_count == 8
    assert len(rig.pool.worked) == 8
    assert [row["embedding"] for row in rig.read(name)] == [vector(f"text {at}") for at in range(8)]


def test_a_full_disk_keeps_no_drain_from_ending(rig: Rig) -> None:
    """What is finished is then done again."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(8)).name
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)

    def full(path: str) -> None:
        raise Unavailable("the disk is full", reason="STORAGE_FULL")

    rig.blobs.before_write = full
    rig.stop()
    assert _of(rig, name) == set()
    rig.restart()
    assert rig.done(name).batch_stats.successful_request_count == 8


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Rig]:
    """A service over engine processes that take their time."""
    model = serve_model("slow", engine="hashing", options={"delay": "0.1", "dimensions": "8"})
    settings = replace(Settings(), micro_batch_tokens=64, bulk_nice=0)
    rig = Rig(tmp_path / "data", settings=settings, catalog=Catalog([model]), pool=LocalPool)
    yield rig
    rig.stop()


def test_a_service_that_closes_again_and_again_gives_the_same_bytes(slow: Rig, tmp_path: Path) -> None:
    """Over real engines: less is left to do each time."""
    given = rows(800)
    undisturbed = Rig(tmp_path / "other", settings=slow.settings, catalog=slow.catalog, pool=LocalPool)
    try:
        expected = undisturbed.read(
            undisturbed.done(undisturbed.service.submit_inline(Draft(), given).name).name
        )
    finally:
        undisturbed.stop()
    name = slow.service.submit_inline(Draft(), given).name
    kept = 0
    for _ in range(3):
        slow.until(lambda: slow.service.get(name).batch_stats.uncommitted_request_count > kept)  # noqa: B023
        slow.stop()
        (left,) = _of(slow, name)
        with pa.ipc.open_file(slow.blobs.path(f"{name}/{left}").read_bytes()) as reader:
            before, kept = kept, reader.get_batch(0).num_rows
        assert kept > before
        slow.start()
    assert slow.done(name).batch_stats.successful_request_count == 800
    assert slow.read(name) == expected
