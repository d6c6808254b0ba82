"""`--deadline` and `--max-cost`: as they are written, kept, and moved by a repeated command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import InvalidArgument
from embatch.runs.deadline import Terms, parse_cost, parse_deadline

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        ("6h", NOW + timedelta(hours=6)),
        ("90m", NOW + timedelta(minutes=90)),
        ("1.5h", NOW + timedelta(minutes=90)),
        ("45s", NOW + timedelta(seconds=45)),
        ("2d", NOW + timedelta(days=2)),
        ("2026-03-01T18:00:00Z", NOW + timedelta(hours=6)),
        ("2026-03-01T18:00:00+02:00", NOW + timedelta(hours=4)),
        ("none", None),
    ],
)
def test_a_deadline_is_a_span_or_a_time(said: str, moment: datetime | None) -> None:
    """Kept in UTC, whatever its zone."""
    assert parse_deadline(said, NOW) == moment


@pytest.mark.parametrize(
    "said",
    [
        *("", "6", "h", "-1h", "0h", "6 hours", "1e9h", "NaNh", "\uff19h", "6h\n7", "9999999999d"),
        *("2026-03-02", "2026-03-02T18:00:00", "2026-03-01T11:59:59Z", "2028-01-01T00:00:00Z"),
        "0001-01-01T00:00:00+23:59",
    ],
)
def test_what_is_no_deadline_is_refused(said: str) -> None:
    """No zone, past, too far, or not readable: the flag is named."""
    with pytest.raises(InvalidArgument, match="--deadline"):
        parse_deadline(said, NOW)


@pytest.mark.parametrize(("said", "cost"), [("2.50", 2.5), ("$3", 3.0), ("0.0001", 0.0001), ("none", None)])
def test_a_cap_is_in_dollars(said: str, cost: float | None) -> None:
    """With their sign or without."""
    assert parse_cost(said) == cost


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "1e999", "", "ten", "2,50", "€3"])
def test_what_is_no_amount_is_refused(said: str) -> None:
    """Nothing, less than nothing, endless, or no number."""
    with pytest.raises(InvalidArgument, match="--max-cost"):
        parse_cost(said)


def test_the_same_command_keeps_the_moment_and_another_one_moves_it() -> None:
    """A run that is stopped and gone on with has no more time than before, unless somebody gives it more."""
    first = Terms().moved("6h", "2", NOW)
    assert first == Terms(NOW + timedelta(hours=6), 2.0, "6h")
    later = NOW + timedelta(hours=3)
    assert first.moved("6h", "2", later) == first
    assert first.moved(None, None, later) == first
    assert first.moved("7h", None, later) == Terms(later + timedelta(hours=7), 2.0, "7h")
    assert first.moved(None, "5", later).max_cost == 5.0
    assert first.moved("none", "none", later) == Terms()
    # One that has passed meanwhile stays what it was.
    assert first.moved("6h", None, NOW + timedelta(days=1)) == first


@given(
    st.one_of(st.none(), st.floats(0.001, 8000).map(lambda hours: f"{hours:.3f}h")),
    st.one_of(st.none(), st.floats(0.01, 1e6).map(str)),
)
def test_terms_are_kept_as_json(deadline: str | None, cost: str | None) -> None:
    """What a ledger keeps reads as what was written."""
    terms = Terms().moved(deadline, cost, NOW)
    assert Terms.of(orjson.loads(orjson.dumps(terms.record()))) == terms
