"""A service that pauses ends its micro-batches, begins nothing, and goes on as if nothing had been."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import orjson
from service_rig import MODEL, large, rows

from embatch.service.intake import Draft
from embatch.states import State

if TYPE_CHECKING:
    from service_rig import Rig

pytest_plugins = ("rig_fixture",)

NOTHING_SECONDS = 0.3
"""How long nothing is seen to happen: for that there is no signal to wait for."""


def long_file(shards: int) -> bytes:
    """Return a file that makes so many shards, eight requests each."""
    texts = [row.text for row in large(shards)]
    lines = (orjson.dumps({"request": {"content": {"parts": [{"text": text}]}}}) for text in texts)
    return b"\n".join(lines)


def test_shards_under_way_are_left_and_no_other_is_claimed(rig: Rig) -> None:
    """Work that comes meanwhile waits too, though its submit wakes the slots; then all is worked once."""
    rig.pool.gated = True
    first = rig.service.submit_inline(Draft(), large(4)).name
    rig.pool.allow()
    rig.until(lambda: rig.pool.running == 2 and rig.pool.micro_batches == 1)
    assert rig.service.working
    rig.service.pause()
    rig.until(lambda: not rig.service.working)
    rig.pool.open()
    assert rig.service.get(first).state is State.PROCESSING
    claimed = threading.Event()
    rig.before["claim"] = claimed.set
    second = rig.service.submit_inline(Draft(priority=5), rows(3)).name
    assert rig.service.get(second).state is State.PENDING
    assert not claimed.wait(NOTHING_SECONDS)
    rig.service.resume()
    assert {rig.done(name).state for name in (first, second)} == {State.COMPLETED}
    assert set(rig.pool.worked.values()) == {1}


def test_a_file_that_is_planned_stays_where_it_is(rig: Rig) -> None:
    """The shard being written is finished; the rest follows, and makes what an undisturbed file makes."""
    reached, go_on, further = threading.Event(), threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if "payload-00001" in path:
            reached.set()
            assert go_on.wait(120)
        elif reached.is_set():
            further.set()

    rig.blobs.before_write = hold
    name = rig.service.submit_file(Draft(), rig.upload(long_file(5))).name
    assert reached.wait(120)
    rig.service.pause()
    go_on.set()
    assert not further.wait(NOTHING_SECONDS)
    rig.service.resume()
    assert rig.done(name).batch_stats.request_count == 40


def test_it_can_end_while_it_pauses(rig: Rig) -> None:
    """Nobody waits for a thread that waits, and the next service has all of it."""
    rig.service.pause()
    inline = rig.service.submit_inline(Draft(), rows(3)).name
    file = rig.service.submit_file(Draft(), rig.upload(long_file(2))).name
    rig.restart()
    assert rig.done(inline).state is State.COMPLETED
    assert rig.done(file).batch_stats.request_count == 16


def test_whoever_asks_is_answered_meanwhile(rig: Rig) -> None:
    """Queries, submits and looks have nothing to wait for."""
    rig.service.pause()
    assert len(rig.service.interactive.embed(MODEL.name, rows(2))) == 2
    assert rig.service.health().ready
