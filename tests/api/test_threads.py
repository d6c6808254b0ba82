"""Threads of their own for what takes long: the reading of results, and that of large bodies."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from anyio import to_thread

from embatch.api.waiting import ResultThreads
from embatch.errors import DataLoss

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHIN = 30.0
MANY = 60
"""More than the framework has threads for all other calls."""


def test_results_stream_in_order_and_end_with_their_error() -> None:
    """What making a piece raises comes after the pieces before it."""

    def pieces() -> Iterator[bytes]:
        yield b"one"
        yield b""
        yield threading.current_thread().name.encode()
        raise DataLoss("damaged")

    async def read() -> list[bytes]:
        found = []
        with contextlib.suppress(DataLoss):
            async for piece in ResultThreads().stream(pieces()):
                found.append(piece)  # noqa: PERF401  (what came before the error counts)
            raise AssertionError("the error is lost")
        return found

    one, empty, thread = asyncio.run(read())
    assert (one, empty) == (b"one", b"")
    assert thread.decode() != threading.current_thread().name


def test_results_that_cannot_be_read_just_now_hold_up_other_calls_not_at_all() -> None:
    """All threads for results wait for a disk, and a call of another kind is answered."""
    go = threading.Event()

    def slow() -> Iterator[bytes]:
        assert go.wait(WITHIN)
        yield b"read"

    async def read(threads: ResultThreads) -> bytes:
        return b"".join([piece async for piece in threads.stream(slow())])

    async def calls() -> None:
        threads = ResultThreads()
        reading = [asyncio.create_task(read(threads)) for _ in range(MANY)]
        assert await asyncio.wait_for(to_thread.run_sync(lambda: "answered"), WITHIN) == "answered"
        assert not any(one.done() for one in reading)
        go.set()
        assert await asyncio.gather(*reading) == [b"read"] * MANY

    asyncio.run(asyncio.wait_for(calls(), 2 * WITHIN))
