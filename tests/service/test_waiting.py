"""Calls that wait for an engine hold up nobody else, and are refused when too many of them wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import httpx2
import pytest
from service_rig import MODEL, OTHER, WITHIN

from embatch.api.app import create_app
from embatch.api.threads import Threads
from embatch.api.waiting import THREADS, EngineThreads, ResultThreads
from embatch.engine.models import Catalog
from embatch.errors import Unavailable
from embatch.service.intake import Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from service_rig import Rig

    from embatch.engine.models import ServedModel

pytest_plugins = ("rig_fixture",)
CALLS = THREADS + 20
QUERY = {"content": {"parts": [{"text": "a"}]}}
LINE = b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n'
T = TypeVar("T")
Args = TypeVarTuple("Args")


def batch_of(**more: int) -> dict[str, Any]:
    """Return the body of a submit of one request."""
    return {"batch": {"inputConfig": {"requests": {"requests": [{"request": {**QUERY, **more}}]}}}}


class Held:
    """What is asked of one model's engine by one method of the pool waits until it is let go."""

    def __init__(self, rig: Rig, method: str) -> None:
        self.entered, self._go, self._lock = 0, threading.Event(), threading.Lock()
        self._call: Callable[..., Any] = getattr(rig.pool, method)
        setattr(rig.pool, method, self.call)

    def call(self, model: ServedModel, *more: Any) -> Any:
        """As the pool's method."""
        if model.name == MODEL.name:
            with self._lock:
                self.entered += 1
            assert self._go.wait(WITHIN)
        return self._call(model, *more)

    def let_go(self) -> None:
        """Let all of them be answered."""
        self._go.set()


@contextlib.contextmanager
def holding(rig: Rig, method: str) -> Iterator[Held]:
    """Hold a method of the pool, and never for longer than the test."""
    held = Held(rig, method)
    try:
        yield held
    finally:
        held.let_go()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("query", "/models/test:embedContent", QUERY),
        ("query", "/models/test:batchEmbedContents", {"requests": [QUERY]}),
        ("count", "/models/test:countTokens", {"contents": [QUERY["content"]]}),
        ("reference", "/models/test:embedReference", {"requests": [QUERY]}),
        ("describe", "/models/test:asyncBatchEmbedContent", batch_of(outputDimensionality=4)),
    ],
)
def test_more_calls_than_threads_hold_up_nothing_else(
    rig: Rig, method: str, path: str, body: dict[str, Any]
) -> None:
    """Poll, submit, cancel, health, another model's query: all are answered while the engine is stuck."""
    rig.restart(Catalog([replace(MODEL, dimensions=None), OTHER]))
    rig.pool.gated = True

    async def calls() -> None:
        transport = httpx2.ASGITransport(create_app(rig.service, rig.settings))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service/v1") as http:

            async def answered(method: str, path: str, body: object = None) -> Any:
                reply = await asyncio.wait_for(http.request(method, path, json=body), WITHIN)
                assert reply.status_code == 200, reply.text
                return reply.json()

            name = (await answered("POST", "/models/other:asyncBatchEmbedContent", batch_of()))["name"]
            stuck = [asyncio.create_task(http.post(path, json=body, timeout=None)) for _ in range(CALLS)]
            await asyncio.to_thread(rig.until, lambda: held.entered == THREADS)
            assert "done" not in await answered("GET", f"/{name}?view=BASIC")
            await answered("POST", "/models/test:asyncBatchEmbedContent", batch_of())
            await answered("POST", f"/{name}:cancel")
            assert (await answered("GET", f"/{name}?view=BASIC"))["done"]
            await answered("GET", "http://service/readyz")
            await answered("POST", "/models/other:embedContent", QUERY)
            assert not any(one.done() for one in stuck)
            held.let_go()
            assert {one.status_code for one in await asyncio.gather(*stuck)} == {200}

    with holding(rig, method) as held:
        run(calls())


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop, with an end to it."""
    asyncio.run(asyncio.wait_for(test, 2 * WITHIN))


def test_beyond_its_capacity_a_line_refuses_and_says_when_to_come_back(rig: Rig) -> None:
    """With 503, Retry-After and RetryInfo, at once; whoever waits already is answered."""

    async def calls() -> None:
        threads = Threads(engines=EngineThreads(threads=2, waiting=3))
        transport = httpx2.ASGITransport(create_app(rig.service, rig.settings, threads=threads))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service/v1") as http:
            waiting = {
                asyncio.create_task(http.post("/models/test:embedContent", json=QUERY)) for _ in range(8)
            }
            while len(waiting) > 5:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    reply = one.result()
                    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
                    assert "RetryInfo" in reply.text
                    assert "OVERLOADED" in reply.text
            held.let_go()
            assert [(await one).status_code for one in waiting] == [200] * 5

    with holding(rig, "query") as held:
        run(calls())


def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    """The next one is free again once the call before it has ended."""
    engines, go = EngineThreads(threads=1, patience=0.01), threading.Event()

    async def calls() -> None:
        first = asyncio.create_task(engines.run("line", go.wait, WITHIN))
        await asyncio.to_thread(lambda: None)
        with pytest.raises(Unavailable, match="too many calls"):
            await engines.run("line", go.wait, WITHIN)
        assert await engines.run("another", int, "7") == 7
        go.set()
        assert await first
        assert await engines.run("line", int, "8") == 8

    run(calls())


class CountedThreads(ResultThreads):
    """Threads that count what is begun in them."""

    begun = 0

    async def run(self, call: Callable[[*Args], T], *args: *Args) -> T:
        """As `ResultThreads.run`."""
        self.begun += 1
        return await super().run(call, *args)


def test_all_faces_read_results_in_the_same_threads(rig: Rig) -> None:
    """However a batch's results are asked for: each face with threads of its own would read twice as many."""
    name = rig.done(rig.service.submit_file(Draft(), rig.upload(LINE)).name).name
    counted = CountedThreads()

    async def calls() -> None:
        transport = httpx2.ASGITransport(
            create_app(rig.service, rig.settings, threads=Threads(results=counted))
        )
        async with httpx2.AsyncClient(transport=transport, base_url="http://service/v1") as http:
            for path in (f"/{name}/embeddings", f"/files/batch-{name.removeprefix('batches/')}:download"):
                before = counted.begun
                assert (await http.get(path)).status_code == 200
                assert counted.begun > before

    run(calls())
