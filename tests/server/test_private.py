"""A private service lives as long as somebody is attached."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from embatch.api.private import Attached

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Watched:
    """An `Attached` with short times, and when it called the service abandoned."""

    def __init__(self, first: float = 30.0, linger: float = 0.05) -> None:
        self.abandoned = asyncio.Event()
        self.attached = Attached(self.abandoned.set, first_seconds=first, linger_seconds=linger)


def run(test: Coroutine[None, None, None]) -> None:
    """Run one scenario within a deadline."""
    asyncio.run(asyncio.wait_for(test, 20))


def test_nobody_ever_comes() -> None:
    """The service ends after the first time limit."""

    async def scenario() -> None:
        watched = Watched(first=0.05)
        watched.attached.begin()
        await watched.abandoned.wait()

    run(scenario())


def test_the_last_client_leaves() -> None:
    """Two clients hold; one leaving changes nothing, the second ends it after a moment."""

    async def scenario() -> None:
        watched = Watched()
        watched.attached.begin()
        one, two = watched.attached.hold(), watched.attached.hold()
        assert await anext(one) == b"\n"
        assert await anext(two) == b"\n"
        await one.aclose()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.2)
        await two.aclose()
        await watched.abandoned.wait()

    run(scenario())


def test_the_next_client_comes_in_time() -> None:
    """Scripts that follow one another share one service."""

    async def scenario() -> None:
        watched = Watched(linger=0.2)
        watched.attached.begin()
        one = watched.attached.hold()
        await anext(one)
        await one.aclose()
        two = watched.attached.hold()
        await anext(two)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.5)
        await two.aclose()

    run(scenario())


def test_the_end_lets_clients_go() -> None:
    """Held streams end at once, and nobody is called abandoned any more."""

    async def scenario() -> None:
        watched = Watched()
        watched.attached.begin()
        one = watched.attached.hold()
        await anext(one)
        following = asyncio.ensure_future(anext(one, None))
        watched.attached.end()
        assert await following is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.2)

    run(scenario())
