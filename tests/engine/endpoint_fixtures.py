"""Fixtures of the remote engine's tests: an endpoint on the loopback, a clock, an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from standin import Clock, StandIn, standing_in, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.engine.remote import RemoteEngine


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A well-behaved endpoint."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with standing_in() as running:
        yield running


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The clock of the engines."""
    made = Clock()
    yield made
    for engine in made.engines:
        engine.close()


@pytest.fixture
def remote(endpoint: StandIn, clock: Clock) -> RemoteEngine:
    """An engine that has found the endpoint well, and forgotten that it asked."""
    loaded = start(endpoint, clock)
    endpoint.calls.clear()
    return loaded
