"""When a create of unknown fate may be sent again: whatever the lists and the clock do, never too soon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch import (
    AlreadyExists,
    ConnectionFailed,
    DataLoss,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from embatch.client.calls import NOT_SENT
from embatch.client.unknown_fate import APART, OLD, TOO_OLD, Next, UnknownCreate, undecided

DAY = int(TOO_OLD)
TIMES = st.integers(-2 * DAY, 2 * DAY)
"""Of lists and of now, from the intent on: a clock may be put back."""


def after(since: int, lists: list[int]) -> UnknownCreate:
    """Return what is known after these lists."""
    unknown = UnknownCreate(float(since))
    for begun in lists:
        unknown = unknown.missed(begun)
    return unknown


@given(st.integers(0, 10**10), st.lists(TIMES, max_size=6), TIMES)
def test_it_is_never_repeated_too_soon(since: int, offsets: list[int], offset: int) -> None:
    """Only where two of the lists are far enough apart, and the later one far enough from the intent."""
    lists = [since + one for one in offsets]
    unknown = after(since, lists)
    if unknown.next(since + offset) is Next.REPEAT:
        proofs = [
            (first, second)
            for at, second in enumerate(lists)
            for first in lists[:at]
            if first >= since and second - first >= APART and second - since >= OLD
        ]
        assert proofs


@given(st.integers(0, 10**10), st.lists(st.integers(0, DAY), max_size=6), st.integers(0, 2 * DAY))
def test_a_clock_that_runs_on_settles_it(since: int, offsets: list[int], rest: int) -> None:
    """It waits until the lists suffice or the day is over, and a list at `due` always suffices."""
    lists = sorted(since + one for one in offsets)
    unknown = after(since, lists)
    now = max([since, *lists]) + rest
    enough = any(
        second - first >= APART and second - since >= OLD
        for at, second in enumerate(lists)
        for first in lists[:at]
    )
    expected = Next.REPEAT if enough else Next.QUARANTINE if now - since >= TOO_OLD else Next.WAIT
    assert unknown.next(now) is expected
    if lists:
        settling = max(unknown.due, lists[-1])
        assert unknown.missed(settling).next(settling) is Next.REPEAT


def test_the_numbers() -> None:
    """A quarter of an hour, five minutes, a day."""
    unknown = UnknownCreate(1000.0)
    assert unknown.due == 1000.0
    unknown = unknown.missed(1000.0)
    assert unknown.due == 1000.0 + 900
    assert unknown.missed(1899.9).next(1899.9) is Next.WAIT
    assert unknown.missed(1900.0).next(1900.0) is Next.REPEAT
    late = UnknownCreate(1000.0).missed(3000.0)
    assert late.due == 3300.0
    assert late.next(3299.0) is Next.WAIT
    assert late.missed(3299.9).next(3299.9) is Next.WAIT
    assert late.missed(3300.0).next(3300.0) is Next.REPEAT
    assert UnknownCreate(1000.0).next(1000.0 + 86_399) is Next.WAIT
    assert UnknownCreate(1000.0).next(1000.0 + 86_400) is Next.QUARANTINE


def test_a_clock_that_was_put_back_shortens_nothing() -> None:
    """The list from before counts no more; what seems to be of tomorrow is for people."""
    unknown = UnknownCreate(1000.0).missed(2000.0).missed(1700.0)
    assert (unknown.first, unknown.last) == (1700.0, 1700.0)
    assert unknown.missed(1999.0).next(1999.0) is Next.WAIT
    assert unknown.missed(2000.0).next(2000.0) is Next.REPEAT
    assert UnknownCreate(1000.0).missed(999.0) == UnknownCreate(1000.0)
    assert UnknownCreate(200_000.0).next(1000.0) is Next.QUARANTINE


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("broke"),
        Unavailable("gateway"),
        Internal("nonsense"),
        DataLoss("cut"),
        KeyboardInterrupt(),
        OSError("disk"),
    ],
)
def test_what_may_have_been_taken(error: BaseException) -> None:
    """No answer, or one that does not say no."""
    assert undecided(error)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("refused", reason=NOT_SENT),
        InvalidArgument("no"),
        TooLarge("no"),
        NotFound("no model"),
        AlreadyExists("no"),
        PermissionDenied("no"),
        Unauthenticated("no"),
        ResourceExhausted("later"),
    ],
)
def test_what_was_refused(error: BaseException) -> None:
    """The service said no, or never heard of it."""
    assert not undecided(error)
