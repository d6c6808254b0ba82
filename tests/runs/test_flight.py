"""How many batches a run keeps in flight: refusals of every kind, growth, polls, batches that are stuck."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.batch import Batch, BatchStats
from embatch.errors import Code, InvalidArgument, ResourceExhausted, Unavailable
from embatch.runs.flight import MOST, Flight, FlightLimits, of_quota, quota
from embatch.runs.polling import LONGEST, StuckWatch, between
from embatch.states import State

FULL: Final = ResourceExhausted("You exceeded your current quota")


def flight(batches: int = MOST, tokens: int | None = None) -> Flight:
    """Return one that draws no chance."""
    return Flight(FlightLimits(batches, tokens), lambda: 0.0)


def test_tokens_bound_a_flight_before_batches_do() -> None:
    """Of batches of 200,000 tokens two fit into half a million; ninety small ones are the most."""
    one = flight(tokens=500_000)
    for key in range(2):
        assert one.may_begin(200_000, 0.0)
        one.begun(key, 200_000, 0.0)
    assert not one.may_begin(200_000, 0.0)
    assert one.may_begin(100_000, 0.0)
    small = flight(tokens=500_000)
    for key in range(MOST):
        assert small.may_begin(10, 0.0)
        small.begun(key, 10, 0.0)
    assert not small.may_begin(10, 0.0)


def test_a_batch_larger_than_all_tokens_goes_alone() -> None:
    """Nothing else would ever make room for it."""
    one = flight(tokens=500_000)
    assert one.may_begin(2_000_000, 0.0)
    one.begun(0, 2_000_000, 0.0)
    assert not one.may_begin(1, 0.0)


def test_a_refusal_holds_what_is_held_and_waits() -> None:
    """Without RetryInfo half a minute, then ever longer; after a batch has ended one takes its place."""
    one = flight()
    for key in range(5):
        one.begun(key, 100, 0.0)
    one.refused(FULL, 10.0)
    assert one.pause(10.0) == 30.0
    assert not one.may_begin(100, 39.0)
    assert not one.may_begin(100, 41.0)
    one.ended(0, 41.0)
    assert one.may_begin(100, 41.0)
    assert not one.may_begin(200, 41.0)
    one.begun(5, 100, 41.0)
    one.refused(FULL, 50.0)
    one.refused(FULL, 51.0)
    assert one.pause(51.0) == 30.0, "a batch ended well between them, and two at once are one"
    one.refused(FULL, 90.0)
    assert one.pause(90.0) == 60.0
    assert "5 batches in flight, the next one is tried in 60 s" in one.note(90.0)


@pytest.mark.parametrize(
    ("asked", "pause"), [(34.07, 34.07), (120.0, 120.0), (86_400.0, 30.0), (None, 30.0), (math.nan, 30.0)]
)
def test_what_a_refusal_asks_for_is_obeyed(asked: float | None, pause: float) -> None:
    """Up to two minutes; who asks for a day is tried again meanwhile, for others may end before."""
    one = flight()
    one.refused(ResourceExhausted("full", retry_after=asked), 0.0)
    assert one.pause(0.0) == pause


def test_waits_grow_to_a_quarter_of_an_hour_and_end_with_the_first_success() -> None:
    """However often it is refused a run comes back, and says for how long this goes."""
    one, now, waits = flight(), 100.0, []
    for _ in range(8):
        one.refused(FULL, now)
        waits.append(one.pause(now))
        now += one.pause(now)
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
    assert one.refused_for(now) == now - 100.0
    assert one.may_begin(10**9, now)
    one.begun("a", 10, now)
    assert one.note(now)
    one.ended("a", now)
    assert (one.note(now), one.refused_for(now)) == ("", 0.0)


def test_a_batch_that_failed_for_quota_is_no_success() -> None:
    """Accepted and failed, again and again: the waits grow all the same."""
    one, now, waits = flight(), 0.0, []
    for _ in range(3):
        one.begun("a", 10, now)
        one.ended("a", now, good=False)
        one.refused(FULL, now)
        waits.append(one.pause(now))
        now += one.pause(now)
    assert waits == [30, 60, 120]


def test_a_flight_grows_fast_until_the_first_refusal_and_slowly_after_it() -> None:
    """What an account is allowed nobody tells: tokens double with each round, then a batch's a round."""
    one = flight(tokens=1_000)
    for end in range(3):
        while one.may_begin(100, 0.0):
            one.begun((end, one.batches), 100, 0.0)
        for key in list(range(one.batches)):
            one.ended((end, key), 0.0)
        assert one.batches == 0
    assert sum(held(one, 100)) == 8_000
    one.refused(FULL, 0.0)
    assert held(one, 100) == []
    for key in range(80):
        one.ended(("held", key), 31.0)
    assert one.batches == 0
    assert 80 <= len(held(one, 100)) <= 82


def held(one: Flight, tokens: int) -> list[int]:
    """Begin as many batches as may be; return their tokens."""
    before = one.batches
    now = 31.0 if one.note(0.0) == "" and before == 0 else 0.0
    while one.may_begin(tokens, now):
        one.begun(("held", one.batches), tokens, now)
    return [tokens] * (one.batches - before)


@given(
    st.lists(st.tuples(st.sampled_from("bger"), st.integers(1, 10**6), st.floats(0, 1e4)), max_size=60),
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 10**6)),
)
def test_whatever_happens_a_flight_stays_within_its_limits_and_never_starves(
    events: list[tuple[str, int, float]], batches: int, tokens: int | None
) -> None:
    """Never more batches than it may have; once all have ended and the pause is over one may begin."""
    one, now, keys = flight(batches, tokens), 0.0, list[int]()
    for at, (event, size, passed) in enumerate(events):
        now += passed
        if event == "b" and one.may_begin(size, now):
            one.begun(at, size, now)
            keys.append(at)
        elif event in "ge" and keys:
            one.ended(keys.pop(0), now, good=event == "g")
        elif event == "r":
            one.refused(ResourceExhausted("full", retry_after=passed), now)
        assert one.batches == len(keys) <= batches
        assert 0 <= one.pause(now) <= 900
    for key in keys:
        one.ended(key, now, good=False)
    assert one.may_begin(10**12, now + one.pause(now))


def test_what_counts_as_want_of_quota() -> None:
    """A refused submit, and a batch that failed with that code; nothing else."""
    assert quota(FULL)
    assert not quota(Unavailable("down"))
    assert not quota(InvalidArgument("bad"))
    assert of_quota(batch(State.FAILED, code=Code.RESOURCE_EXHAUSTED))
    assert not of_quota(batch(State.FAILED, code=Code.INTERNAL))
    assert not of_quota(batch(State.COMPLETED))


def batch(state: State, done: int = 0, *, name: str = "batches/a", code: Code | None = None) -> Batch:
    """Return a batch of ten requests."""
    stats = BatchStats(10, done, 0, 10 - done)
    then = datetime(2026, 3, 1, tzinfo=UTC)
    return Batch(name, "models/m", state, None, 0, then, then, None, stats, error_code=code)


# polling, and batches that are stuck


@given(st.integers(0, 10**6), st.floats(0, 1e6), st.integers(1, 90))
def test_polls_follow_size_and_age(requests: int, age: float, in_flight: int) -> None:
    """An end is seen late by a twentieth of the age, a minute at most; all together ask once a second."""
    wait = between(requests, age, in_flight)
    assert in_flight <= wait or wait <= LONGEST
    assert wait <= max(LONGEST, in_flight)
    assert wait >= 1.0
    assert between(requests, age + 1.0, in_flight) >= wait
    if age >= 1_200:
        assert wait == max(LONGEST, in_flight)


def test_a_small_young_batch_is_asked_for_often() -> None:
    """The guide's two seconds for less than a hundred requests, and half a minute at most at first."""
    assert between(10, 0.0, 1) == 2.0
    assert between(10, 200.0, 1) == 10.0
    assert between(1_000_000, 0.0, 1) == 30.0


def test_a_batch_without_progress_is_told_of_once_and_again_when_its_time_has_doubled() -> None:
    """Six hours at first; with the run's others known four times as long as they took, an hour at least."""
    watch = StuckWatch()
    waiting = batch(State.PENDING)
    assert watch.look(waiting, 0.0) is None
    assert watch.look(waiting, 6 * 3600 - 1.0) is None
    assert "batches/a waits to be begun for 6.0 h now" in (watch.look(waiting, 6 * 3600.0) or "")
    assert watch.look(waiting, 11 * 3600.0) is None
    assert "12.0 h" in (watch.look(waiting, 12 * 3600.0) or "")
    watch.ended("batches/b", 1200.0)
    assert watch.limit == 4800.0
    watch.ended("batches/b", 60.0)
    watch.ended("batches/b", 60.0)
    assert watch.limit == 3600.0
    other = batch(State.PROCESSING, 3, name="batches/c")
    assert watch.look(other, 0.0) is None
    said = watch.look(other, 4000.0)
    assert said is not None
    assert "shows no progress for 1.1 h now; 1 min is usual in this run" in said


def test_progress_begins_the_time_anew_and_an_end_is_never_stuck() -> None:
    """Another state or another count is progress."""
    watch = StuckWatch()
    for hour in range(100):
        assert watch.look(batch(State.PROCESSING, hour % 10), hour * 5 * 3600.0) is None
    assert watch.look(batch(State.COMPLETED, 10), 0.0) is None
    assert watch.look(batch(State.COMPLETED, 10), 1e9) is None
