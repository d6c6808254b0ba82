"""Back-off and the guide's adaptive table."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.backoff import (
    Backoff,
    Pauses,
    early_interval,
    http_date,
    meanwhile,
    patience,
    poll_interval,
    retry_after,
    time_limit,
    wait_asked,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
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


@given(st.integers(1, 5), CHANCE, st.floats(0.001, 120.0))
def test_what_the_service_asked_for_is_never_undercut(failures: int, chance: float, asked: float) -> None:
    """Retry-After is a floor, spread upwards by at most a quarter."""
    delay = Backoff().delay(failures, chance, retry_after=asked)
    assert delay is not None
    assert asked <= delay <= asked * 1.25


@given(st.sampled_from([0.0, -1.0, float("inf"), float("nan")]), CHANCE)
def test_a_senseless_retry_after_is_ignored(asked: float, chance: float) -> None:
    """Zero, negative, infinite and NaN fall back to our own wait."""
    assert Backoff().delay(1, chance, retry_after=asked) == Backoff().delay(1, chance)


@given(CHANCE, st.floats(120.0, 1e12, exclude_min=True))
def test_who_asks_for_more_than_is_obeyed_is_not_asked_again(chance: float, asked: float) -> None:
    """A wait of years is no wait: the caller hears of it at once. Another limit holds where one is set."""
    assert Backoff().delay(1, chance, retry_after=asked) is None
    assert Backoff(obeyed=asked).delay(1, chance, retry_after=asked) is not None


@pytest.mark.parametrize("asked", [999_999_999.0, 3_600.0, 1e300, math.inf])
def test_a_long_wait_is_tried_again_meanwhile(asked: float) -> None:
    """After half a minute, ever more seldom, at least every quarter of an hour."""
    assert [meanwhile(asked, failures) for failures in (1, 2, 3, 9, 10**6)] == [30, 60, 120, 900, 900]


@given(st.integers(1, 10**6), st.floats(allow_nan=True))
def test_a_short_wait_is_obeyed_and_none_undercut_by_a_longer(failures: int, asked: float) -> None:
    """Up to two minutes it is what was said; nobody waits longer than was asked, or less than nothing."""
    wait = meanwhile(asked, failures)
    assert 0 <= wait <= 900
    if 0 < asked <= 120:
        assert wait == asked
    assert wait <= max(asked, 0) or math.isnan(asked)


def test_patience_grows_to_half_a_minute_and_never_ends() -> None:
    """No wait is less than half of what it may be, and no number of failures is the last."""
    for failures, most in ((1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (10**7, 30.0)):
        waits = [patience(failures) for _ in range(20)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_nothing_pauses_longer_than_an_hour() -> None:
    """Whatever whoever fails says, or the arithmetic of a caller."""
    pauses = Pauses()
    pauses.begin("a", "why", 100.0, lambda _: 1e12)
    pauses.begin("b", "why", 100.0, lambda _: math.inf)
    pauses.begin("c", "why", 100.0, lambda _: 5.0)
    assert pauses.waiting(104.0) == {"a", "b", "c"}
    assert pauses.waiting(3_699.0) == {"a", "b"}
    assert pauses.waiting(3_701.0) == set()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("999999999", 999_999_999.0),
        ("9" * 400, 1e9),  # float says infinite
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60.0),
        ("Sunday, 01-Mar-26 12:01:00 GMT", 60.0),
        ("Sun Mar  1 12:01:00 2026", 60.0),
        ("Sun, 01 Mar 2026 14:01:00 +0200", 60.0),
        ("Sun, 01 Mar 2026 06:31:00 -0530", 60.0),
        ("Sun, 01 Mar 2026 12:01:00 -0000", 60.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9),
        *(
            (nothing, None)
            for nothing in (
                *(None, "", "0", "0.0", "-5", "+5", "1e12", "inf", "nan", "NaN", "0x10", "1_000", "1, 2"),
                *("٣", "soon", "7s", "Sun, 01 Mar 2026 12:00:00 GMT", "Sun, 01 Mar 2026 11:59:00 GMT"),
                *("Sun, 01 Mar 2026 13:01:00 +0200", "Mon, 01 Jan 99999999999 00:00:00 GMT"),
                *("Mon, 01 Jan 0 00:00:00 GMT", "Mon, 99 Foo 2026 00:00:00 GMT", "Sun, 01 Mar 2026", ","),
                *("Sun, 01 Mar 2026 12:01:00 +9999999", f"Sun, 01 Mar {'9' * 5000} 12:00:00 GMT"),
            )
        ),
    ],
)
def test_what_a_retry_after_header_asks_for(header: str | None, seconds: float | None) -> None:
    """Seconds, or a date in each of its forms and in any zone; what is past or no time is nothing."""
    assert retry_after(header, NOW) == seconds


@given(st.text(max_size=80) | st.from_regex(r"[A-Z][a-z]{2}, [0-9 a-zA-Z:+-]{5,40}", fullmatch=True))
def test_no_header_raises(header: str) -> None:
    """Whatever stands there, the answer is a wait that can be reckoned with, or none."""
    seconds = retry_after(header, NOW)
    assert seconds is None or 0 < seconds <= 1e9


def test_a_date_is_read_by_the_clock_of_whoever_wrote_it() -> None:
    """Ours may go otherwise: without theirs a date means nothing, and seconds mean what they say."""
    later = {"retry-after": "Sun, 01 Mar 2026 12:01:00 GMT"}
    assert wait_asked({**later, "date": "Sun, 01 Mar 2026 12:00:30 GMT"}) == 30.0
    assert wait_asked({**later, "date": "soon"}) is wait_asked(later) is None
    assert wait_asked({"retry-after": "7"}) == wait_asked({"retry-after": "7", "date": "soon"}) == 7.0
    assert wait_asked({"date": "Sun, 01 Mar 2026 12:00:30 GMT"}) is None


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(9999, 12, 30)),  # noqa: DTZ001  (the zone is added)
    st.integers(-14 * 60, 14 * 60),
)
def test_a_date_is_the_same_moment_in_every_zone(date: datetime, minutes: int) -> None:
    """What `http_date` reads is what was written, to the second."""
    moment = date.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    assert http_date(format_datetime(moment)) == moment


@pytest.mark.parametrize(
    ("interval", "waits"),
    [
        (2.0, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]),
        (0.3, [0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]),
        (0.05, [0.05] * 7),
    ],
)
def test_first_polls_come_soon(interval: float, waits: list[float]) -> None:
    """Twice as late each, up to the interval, which is kept for good."""
    assert [early_interval(polls, interval) for polls in range(1, 8)] == waits
    assert early_interval(100_000, interval) == interval


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
