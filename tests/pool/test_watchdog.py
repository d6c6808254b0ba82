"""When an engine process is given up, with time handed in."""

from __future__ import annotations

from dataclasses import replace

from embatch.pool.local.watchdog import Watchdog
from embatch.settings import Settings

SETTINGS = replace(Settings(), engine_start_seconds=100.0, heartbeat_seconds=10.0, micro_batch_seconds=30.0)


def test_a_start_has_its_own_limit() -> None:
    """While it loads a process need not speak."""
    watchdog = Watchdog(SETTINGS)
    assert watchdog.tick(99.0) is None
    assert watchdog.tick(2.0) == "start"


def test_silence_ends_a_process_that_is_ready() -> None:
    """Every sign of life begins the wait anew; what it waited for while loading does not count."""
    watchdog = Watchdog(SETTINGS)
    watchdog.tick(50.0)
    watchdog.heard(ready=True)
    assert watchdog.tick(9.0) is None
    watchdog.heard(ready=True)
    assert watchdog.tick(9.0) is None
    assert watchdog.tick(2.0) == "silence"


def test_each_piece_of_work_has_its_own_time() -> None:
    """One that ended is forgotten, and others do not lend their time to it."""
    watchdog = Watchdog(SETTINGS)
    watchdog.heard(ready=True)
    watchdog.begin((1, 0))
    for _ in range(4):
        watchdog.heard(ready=True)
        assert watchdog.tick(6.0) is None
    watchdog.begin((1, 1))
    watchdog.end((1, 0))
    watchdog.end((9, 9))
    for _ in range(5):
        watchdog.heard(ready=True)
        assert watchdog.tick(6.0) is None
    assert watchdog.tick(1.0) == "work"
