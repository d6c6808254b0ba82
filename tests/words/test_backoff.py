"""Back-off and the guide's adaptive table."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from embatch.backoff import Backoff, Pauses, poll_interval, time_limit

CHANCE = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 2000), CHANCE)
def test_delays_lie_between_nothing_and_the_ceiling(failures: int, chance: float) -> None:
    """A wait is never negative and never above the limit, however often it failed."""
    delay = Backoff(first=0.5, limit=30.0, attempts=10**6).delay(failures, chance)
    assert delay is not None
    assert 0.0 <= delay < min(30.0, 0.5 * 2.0 ** min(failures - 1, 64)) or delay == 0.0


@given(st.integers(1, 20), st.integers(1, 20))
def test_it_gives_up_after_its_attempts(failures: int, attempts: int) -> None:
    """The last allowed attempt's failure ends it, Retry-After or not."""
    backoff = Backoff(attempts=attempts)
    assert (backoff.delay(failures, 0.5) is None) == (failures >= attempts)
    assert (backoff.delay(failures, 0.5, retry_after=1.0) is None) == (failures >= attempts)


@given(st.integers(1, 5), CHANCE, st.floats(0.001, 10_000))
def test_what_the_service_asked_for_is_never_undercut(failures: int, chance: float, asked: float) -> None:
    """Retry-After is a floor, spread upwards by at most a quarter."""
    delay = Backoff().delay(failures, chance, retry_after=asked)
    assert delay is not None
    assert asked <= delay <= asked * 1.25


@given(st.sampled_from([0.0, -1.0, float("inf"), float("nan")]), CHANCE)
def test_a_senseless_retry_after_is_ignored(asked: float, chance: float) -> None:
    """Zero, negative, infinite and NaN fall back to our own wait."""
    assert Backoff().delay(1, chance, retry_after=asked) == Backoff().delay(1, chance)


def test_poll_intervals_and_limits_are_the_guides() -> None:
    """The steps stand where the guide's table puts them."""
    assert [poll_interval(n) for n in (0, 99, 100, 999, 1_000, 9_999, 10_000)] == [
        2.0,
        2.0,
        5.0,
        5.0,
        10.0,
        10.0,
        30.0,
    ]
    assert time_limit(0) == 120.0
    assert time_limit(1_000) == 1_120.0


def test_what_pauses_is_told_of_once_and_waits_longer_each_time() -> None:
    """Until it is tried with success: then the next failure is the first again."""
    pauses = Pauses()
    assert pauses.begin("a", "why", 100.0, float)
    assert not pauses.begin("a", "why else", 101.0, float)
    assert pauses.begin("b", "why not", 101.0, float)
    assert (pauses.waiting(101.5), pauses.next_end(101.5)) == ({"a", "b"}, 0.5)
    assert (pauses.waiting(102.5), pauses.next_end(102.5)) == ({"a"}, 0.5)
    # What waits no more has not been tried yet: it is still told why.
    assert (pauses.waiting(103.0), pauses.next_end(103.0)) == (set(), math.inf)
    assert pauses.messages() == {"a": "why else", "b": "why not"}
    pauses.end("a")
    pauses.end("a")
    assert pauses.begin("a", "again", 200.0, float)
    assert pauses.waiting(200.5) == {"a"}
    pauses.keep({"b"})
    assert pauses.messages() == {"b": "why not"}
