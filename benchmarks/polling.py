"""Many clients that poll one batch, in a process of their own."""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from embatch import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds."""
    found = statistics.quantiles([*seconds, *seconds], n=100, method="inclusive")
    return {"p50_ms": 1000 * found[49], "p99_ms": 1000 * found[98]}


def poll(url: str, name: str, pollers: int, pause: float) -> dict[str, Any]:
    """Poll a batch until it is final from many connections; in a process of its own."""
    seconds: list[float] = []

    async def one(client: AsyncClient, number: int) -> None:
        await asyncio.sleep(pause * number / pollers)  # people do not poll in step
        while True:
            begun = time.perf_counter()
            batch = await client.get_batch_status(name)
            seconds.append(time.perf_counter() - begun)
            if batch.done:
                return
            await asyncio.sleep(max(0.0, begun + pause - time.perf_counter()))

    async def run() -> float:
        async with AsyncClient(url) as client:
            begun = time.perf_counter()
            await asyncio.gather(*(one(client, number) for number in range(pollers)))
            return time.perf_counter() - begun

    own, whole = time.process_time(), asyncio.run(run())
    return {
        "polls": len(seconds),
        "polls_per_second": len(seconds) / whole,
        "poller_cpu_ms": 1000 * (time.process_time() - own) / len(seconds),
        **percentiles(seconds),
    }


@contextmanager
def poller() -> Iterator[ProcessPoolExecutor]:
    """Run a process beside this one that has imported what `poll` needs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as beside:
        beside.submit(percentiles, [0.0, 0.0]).result()
        yield beside
