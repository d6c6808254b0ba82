"""What `--rate` takes; how it is kept to is the client's."""

from __future__ import annotations

import math

import pytest

from embatch import InvalidArgument
from embatch.cli.app import client
from embatch.client.base import budget_of
from embatch.client.rate import Load


@pytest.mark.parametrize(
    ("said", "most"),
    [
        (None, Load(math.inf, math.inf)),
        ("3000", Load(3000, math.inf)),
        ("3_000,1_000_000", Load(3000, 1_000_000)),
    ],
)
def test_requests_and_tokens_a_minute(said: str | None, most: Load) -> None:
    """Both, or the first alone; without it there is no limit of the caller's."""
    with client("http://127.0.0.1:9", None, rate=said) as service:
        assert budget_of(service).most == most


@pytest.mark.parametrize("said", ["", "0", "-1", "1,", ",1", "1,2,3", "1.5", "fast", "1,0", "²"])
def test_what_is_no_rate_is_refused_with_the_forms_it_has(said: str) -> None:
    """Before anything is begun."""
    with pytest.raises(InvalidArgument, match="3000 or 3000,1000000") as refused:
        client("http://127.0.0.1:9", None, rate=said)
    assert refused.value.field == "--rate"
