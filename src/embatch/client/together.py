"""Several flows at the same time, in threads or as tasks: so many at most, and nothing new after an error."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from embatch.client.calls import Flow, Together


class Stopped(BaseException):
    """A flow was to wait although another one has failed: its result is of no use."""


def run_in_threads(together: Together, run: Callable[[Flow[None], threading.Event], None]) -> None:
    """Run flows in threads; raise the first error once those in work have ended.

    Args:
        together: the flows.
        run: runs one to its end; the event tells it not to wait any more, but to raise `Stopped`.
    """
    waiting, lock, stop = iter(together.flows), threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                flow = next(waiting, None)
            if flow is None:
                return
            try:
                run(flow, stop)
            except BaseException as error:  # noqa: BLE001  (raised where it is waited for)
                errors.append(error)
                stop.set()

    # Daemons: whoever is interrupted does not wait for answers that nobody reads.
    count = min(together.most, len(together.flows))
    threads = [threading.Thread(target=work, name="embatch-together", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise next(error for error in errors if not isinstance(error, Stopped))


async def run_in_tasks(together: Together, run: Callable[[Flow[None]], Awaitable[None]]) -> None:
    """Run flows as tasks; raise the first error, the others cancelled."""
    places, stop = asyncio.Semaphore(together.most), False

    async def work(flow: Flow[None]) -> None:
        nonlocal stop
        async with places:
            if stop:
                return
            try:
                await run(flow)
            except BaseException:
                stop = True
                raise

    tasks = [asyncio.create_task(work(flow)) for flow in together.flows]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
