"""Times as the database keeps them: whole microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(time: datetime) -> int:
    """Return an aware time as microseconds."""
    return (time - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Return microseconds as an aware UTC time."""
    return _EPOCH + timedelta(microseconds=value)
