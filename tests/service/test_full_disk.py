"""A disk without room is told of at once, to whoever submits, polls or asks for health; no work is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from service_rig import Rig, quick, rows

from embatch.backoff import SUBMIT
from embatch.batch import WAITS
from embatch.errors import Unavailable
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.states import State
from embatch.store.faults import storage_full, storage_low

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)
LINE = b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n'
NEVER_FREE = 1 << 50


@pytest.mark.parametrize("error", [storage_full(), storage_low(1)])
def test_a_client_says_within_seconds_that_the_disk_is_full(error: Unavailable) -> None:
    """All that it waits for between its tries, however chance falls."""
    waits = [SUBMIT.delay(failures, 0.99, error.retry_after) for failures in range(1, SUBMIT.attempts)]
    assert sum(wait or 0.0 for wait in waits) < 10


def test_on_a_nearly_full_disk_nothing_new_is_accepted_and_the_rest_is_finished(rig: Rig) -> None:
    """Inline, from a file, or as an upload: refused with what to do, and health says the same."""
    rig.pool.gated = True
    before = rig.service.submit_inline(Draft(), rows(3)).name
    file, usual = rig.upload(LINE), rig.settings
    begun = rig.service.uploads.begin(None, None, "text/plain", None)
    rig.settings = replace(usual, free_bytes=NEVER_FREE)
    rig.restart()
    there = rig.files()
    for ask in (
        lambda: rig.service.submit_inline(Draft(), rows(1)),
        lambda: rig.service.submit_file(Draft(), file),
        lambda: rig.service.uploads.begin(None, None, "text/plain", None),
    ):
        with pytest.raises(Unavailable, match="free some space") as caught:
            ask()
        assert caught.value.reason == "STORAGE_LOW"
    assert not (rig.files() - there) & {path for path in rig.files() if "payload" in path}
    health = rig.service.health()
    assert not health.ready
    assert any("free some space" in reason for reason in health.reasons)
    assert rig.done(before).state is State.COMPLETED
    assert rig.service.uploads.append(begun, 0, b"x") == 1
    rig.settings = usual
    rig.restart()
    assert rig.service.health().ready
    assert rig.done(rig.service.submit_file(Draft(), file).name).state is State.COMPLETED


def test_results_without_room_wait_and_say_so_until_there_is_some(rig: Rig) -> None:
    """In a note of the batch and in health, which is not ready: what is submitted now would wait, too."""
    rig.patience = quick
    full = True

    def refuse(path: str) -> None:
        if full and "result" in path:
            raise storage_full()

    rig.blobs.before_write = refuse
    name = rig.service.submit_inline(Draft(), rows(3)).name
    rig.until(lambda: rig.service.get(name).notes)
    (note,) = rig.service.get(name).notes
    assert note == f"{WAITS}{storage_full().message}"
    health = rig.service.health()
    assert (health.ready, health.reasons) == (False, (storage_full().message,))
    full = False
    assert rig.done(name).batch_stats.successful_request_count == 3
    rig.until(lambda: rig.service.health().ready)


@pytest.mark.parametrize("paused", [False, True])
def test_what_the_store_would_not_take_back_is_worked_once_it_does(rig: Rig, paused: bool) -> None:  # noqa: FBT001
    """By the same service, whether it failed or was paused: no shard waits for the next start."""
    rig.patience = quick
    refused: list[str] = []

    def refuse() -> None:
        if len(refused) < 5:
            refused.append("release")
            raise storage_full()

    def fail(path: str) -> None:
        if not refused and "result" in path:
            raise storage_full()

    rig.before["release"] = refuse
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), rows(8)).name
    rig.pool.allow()
    rig.until(lambda: rig.pool.micro_batches == 1)
    if paused:
        rig.service.pause()
        rig.until(lambda: len(refused) == 5)
        rig.service.resume()
    else:
        rig.blobs.before_write = fail
    rig.pool.open()
    assert rig.done(name).batch_stats.successful_request_count == 8
    assert len(refused) == 5
    if paused:
        assert set(rig.pool.worked.values()) == {1}


def test_room_is_what_the_volume_has(tmp_path: Path) -> None:
    """More than nothing, and less than a petabyte."""
    rig = Rig(tmp_path / "data", settings=Settings(free_bytes=0))
    try:
        rig.blobs.check_room(1)
        with pytest.raises(Unavailable, match="1,125,899,906,842,624 bytes"):
            rig.blobs.check_room(NEVER_FREE)
    finally:
        rig.stop()
