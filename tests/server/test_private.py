"""A private service lives as long as somebody is attached, and lingers for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from embatch.api.private import Attached

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Watched:
    """An `Attached` with short times, when it called the service abandoned, and what else it told it."""

    def __init__(self, first: float = 30.0, linger: float = 0.05) -> None:
        self.abandoned = asyncio.Event()
        self.working = False
        self.told: list[bool] = []
        self.attached = Attached(
            self.abandoned.set,
            self.told.append,
            lambda: self.working,
            first_seconds=first,
            linger_seconds=linger,
        )


def run(test: Coroutine[None, None, None]) -> None:
    """Run one scenario within a deadline."""
    asyncio.run(asyncio.wait_for(test, 20))


def test_nobody_ever_comes() -> None:
    """The service ends after the first time limit, having worked until then."""

    async def scenario() -> None:
        watched = Watched(first=0.05)
        watched.attached.begin()
        await watched.abandoned.wait()
        assert watched.told == []

    run(scenario())


def test_the_last_client_leaves() -> None:
    """Two clients hold; one leaving changes nothing, the second has it rest at once and end later."""

    async def scenario() -> None:
        watched = Watched()
        watched.attached.begin()
        one, two = watched.attached.hold(), watched.attached.hold()
        assert await anext(one) == b"\n"
        assert await anext(two) == b"\n"
        await one.aclose()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.2)
        assert watched.told == []
        await two.aclose()
        assert watched.told == [False]
        assert not watched.abandoned.is_set()
        await watched.abandoned.wait()

    run(scenario())


def test_the_next_client_comes_in_time() -> None:
    """Scripts that follow one another share one service, which goes on when the next one comes."""

    async def scenario() -> None:
        watched = Watched(linger=0.2)
        watched.attached.begin()
        one = watched.attached.hold()
        await anext(one)
        await one.aclose()
        two = watched.attached.hold()
        await anext(two)
        assert watched.told == [False, True]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.5)
        await two.aclose()

    run(scenario())


def test_only_one_that_lingers_is_ended_for_another_client() -> None:
    """Not while its first client is still to come, while one is attached, or while it finishes its work."""

    async def scenario() -> None:
        watched = Watched(linger=30.0)
        watched.attached.begin()
        assert not watched.attached.stop(lingering=True)
        one = watched.attached.hold()
        await anext(one)
        assert not watched.attached.stop(lingering=True)
        watched.working = True
        await one.aclose()
        assert not watched.attached.stop(lingering=True)
        assert not watched.abandoned.is_set()
        watched.working = False
        assert watched.attached.stop(lingering=True)
        assert watched.abandoned.is_set()

    run(scenario())


def test_whoever_says_so_ends_it_with_clients_and_work() -> None:
    """Without asking whether it only lingers."""

    async def scenario() -> None:
        watched = Watched()
        watched.attached.begin()
        one = watched.attached.hold()
        await anext(one)
        watched.working = True
        assert watched.attached.stop()
        assert watched.abandoned.is_set()
        await one.aclose()

    run(scenario())


def test_the_end_lets_clients_go() -> None:
    """Held streams end at once, nobody rests for it, and nobody is called abandoned any more."""

    async def scenario() -> None:
        watched = Watched()
        watched.attached.begin()
        one = watched.attached.hold()
        await anext(one)
        following = asyncio.ensure_future(anext(one, None))
        watched.attached.end()
        assert await following is None
        assert watched.attached.leaving
        assert watched.told == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.abandoned.wait(), 0.2)

    run(scenario())
