"""Dates, times and durations of Arrow in the words of ISO 8601, however far away and however fine.

Python's own know neither nanoseconds nor years beyond 1-9999, and need the tables of time zones, which may
lack one: an instant is written in UTC, as Arrow keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable

types: Any = pa.types  # its stubs leave functions out

_PARTS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Parts of a second by the unit."""
_DAY: Final = 86_400


def words(array: Any) -> list[str | None]:
    """Return each value of a date, time, timestamp, duration or interval array, `None` where it is null.

    `2026-01-02`, `03:04:05`, `2026-01-02T03:04:05.123456789` (with `Z` where there is a zone), `PT5.25S`,
    `P1M2DT3S`; a part of a second has three, six or nine digits, a year beyond four a sign.
    """
    kind = array.type
    if kind == pa.month_day_nano_interval():
        return [None if value is None else _interval(*value) for value in array.to_pylist()]
    say = _sayer(kind)
    counts = array.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
    return [None if count is None else say(count) for count in counts]


def _sayer(kind: Any) -> Callable[[int], str]:
    if types.is_date32(kind):
        return _date
    if types.is_date64(kind):
        return lambda count: _date(count // 86_400_000) if count % 86_400_000 == 0 else _moment(count, 1_000)
    parts = _PARTS[kind.unit]
    if types.is_time(kind):
        return lambda count: _signed(count, lambda size: _time(size, parts))
    if types.is_duration(kind):
        return lambda count: _signed(count, lambda size: f"PT{_seconds(size, parts)}S")
    zone = "Z" if kind.tz else ""
    return lambda count: _moment(count, parts) + zone


def _moment(count: int, parts: int) -> str:
    days, rest = divmod(count, _DAY * parts)
    return f"{_date(days)}T{_time(rest, parts)}"


def _date(days: int) -> str:
    """Return a day since 1970-01-01 in the calendar that goes on backwards and forwards for ever.

    A year begins with March here, so that the day that some years lack is its last one; 400 years repeat.
    """
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    year, month = (400 * era + year, month + 3) if month < 10 else (400 * era + year + 1, month - 9)
    sign = "" if 0 <= year <= 9_999 else "+" if year > 0 else "-"
    return f"{sign}{abs(year):04}-{month:02}-{day + 1:02}"


def _time(count: int, parts: int) -> str:
    seconds = count // parts
    minutes = seconds // 60
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds % 60:02}{_fraction(count % parts, parts)}"


def _seconds(count: int, parts: int) -> str:
    return f"{count // parts}{_fraction(count % parts, parts)}"


def _fraction(count: int, parts: int) -> str:
    if not count:
        return ""
    digits = f"{count * (1_000_000_000 // parts):09}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f".{digits}"


def _signed(count: int, say: Callable[[int], str]) -> str:
    return say(count) if count >= 0 else f"-{say(-count)}"


def _interval(months: int, days: int, nanoseconds: int) -> str:
    return f"P{months}M{days}DT{_signed(nanoseconds, lambda size: _seconds(size, 1_000_000_000))}S"
