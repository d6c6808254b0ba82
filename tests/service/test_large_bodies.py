"""Large bodies hold up nobody: they have threads of their own, and one whose sender has gone is dropped."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import pytest
from listening import listening
from service_rig import MODEL, OTHER, WITHIN
from starlette.requests import ClientDisconnect, Request

from embatch.api.bodies import QUERY_BYTES, THREADS, BodyThreads
from embatch.api.limits import SMALL_BYTES
from embatch.engine.models import Catalog

if TYPE_CHECKING:
    from collections.abc import Callable

    from service_rig import Rig

    from embatch.engine.models import ServedModel

pytest_plugins = ("rig_fixture",)
BODIES = 60
"""More than the framework has threads for all calls."""
CONTENT = {"parts": [{"text": "a text of some length " * 50}]}
QUERY = {"content": {"parts": [{"text": "a"}]}}


def submit(count: int) -> bytes:
    """Return the body of a submit, the first request of which names its model."""
    entries: list[dict[str, Any]] = [{"request": {"content": CONTENT}} for _ in range(count)]
    entries[0]["request"]["model"] = f"models/{MODEL.name}"
    return orjson.dumps({"batch": {"inputConfig": {"requests": {"requests": entries}}}})


class HeldCatalog(Catalog):
    """Tells whether a name means a model only when it is let go: whoever reads a body waits for it."""

    def __init__(self) -> None:
        super().__init__([MODEL, OTHER])
        self.entered, self.go = threading.Semaphore(0), threading.Event()

    def naming(self, model: ServedModel) -> Callable[[str], bool]:
        """As `Catalog.naming`."""
        same = super().naming(model)

        def held(name: str) -> bool:
            self.entered.release()
            assert self.go.wait(WITHIN)
            return same(name)

        return held


def test_all_else_is_answered_before_a_running_parse_ends(rig: Rig) -> None:
    """Health, polls, cancel, a small submit, another model's query: with more large bodies than threads."""
    catalog = HeldCatalog()
    rig.restart(catalog)
    rig.pool.gated = True
    body = submit(100)
    assert len(body) > SMALL_BYTES

    async def calls(address: str) -> None:
        json = {"content-type": "application/json"}
        async with httpx2.AsyncClient(base_url=address, headers=json, timeout=WITHIN) as http:

            async def answered(method: str, path: str, content: object = None) -> Any:
                said = None if content is None else orjson.dumps(content)
                reply = await http.request(method, path, content=said)
                assert reply.status_code == 200, reply.text
                return reply.json()

            path = "/models/test:asyncBatchEmbedContent"
            reading = [asyncio.create_task(http.post(path, content=body)) for _ in range(BODIES)]
            for _ in range(THREADS):
                assert await asyncio.to_thread(catalog.entered.acquire, timeout=WITHIN)
            await answered("GET", address.removesuffix("/v1") + "/healthz")
            await answered("GET", address.removesuffix("/v1") + "/readyz")
            small = {"batch": {"inputConfig": {"requests": {"requests": [{"request": QUERY}]}}}}
            name = (await answered("POST", path, small))["name"]
            assert "done" not in await answered("GET", f"/{name}?view=BASIC")
            await answered("PATCH", f"/{name}:updateEmbedContentBatch", {"priority": 3})
            await answered("POST", f"/{name}:cancel")
            await answered("GET", "/batches")
            await answered("POST", "/models/other:embedContent", QUERY)
            assert not any(one.done() for one in reading)
            catalog.go.set()
            assert {one.status_code for one in await asyncio.gather(*reading)} == {200}

    with listening(rig) as address:
        try:
            asyncio.run(asyncio.wait_for(calls(address), 2 * WITHIN))
        finally:
            catalog.go.set()


def request(gone: asyncio.Event) -> Request:
    """Return a request whose body has arrived and whose sender goes when it is told."""

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def test_a_body_whose_sender_has_gone_is_dropped() -> None:
    """One that waits is never read, and one that is being read is read no further."""
    entered, go, read = threading.Event(), threading.Event(), []

    def first(pulse: Callable[[], None]) -> None:
        entered.set()
        assert go.wait(WITHIN)
        pulse()
        read.append("first")

    async def calls() -> None:
        bodies, gone = BodyThreads(threads=1), asyncio.Event()
        running = asyncio.create_task(bodies.read(request(gone), SMALL_BYTES + 1, first))
        assert await asyncio.to_thread(entered.wait, WITHIN)
        waiting = bodies.read(request(gone), SMALL_BYTES + 1, lambda _: read.append("second"))
        second = asyncio.create_task(waiting)
        stays = bodies.read(request(asyncio.Event()), SMALL_BYTES + 1, lambda _: read.append("third"))
        third = asyncio.create_task(stays)
        gone.set()
        with pytest.raises(ClientDisconnect):
            await second
        go.set()
        with pytest.raises(ClientDisconnect):
            await running
        (await third)()

    asyncio.run(asyncio.wait_for(calls(), 2 * WITHIN))
    assert read == ["third"]


def test_a_small_body_does_not_wait_for_large_ones() -> None:
    """They have a thread of their own."""
    go = threading.Event()

    async def calls() -> None:
        bodies, stays = BodyThreads(threads=1), request(asyncio.Event())
        large = [
            asyncio.create_task(bodies.read(stays, SMALL_BYTES + 1, lambda _: go.wait(WITHIN)))
            for _ in range(3)
        ]
        assert (await bodies.read(stays, SMALL_BYTES, lambda _: "small"))() == "small"
        assert not any(one.done() for one in large)
        go.set()
        assert [(await one)() for one in large] == [True] * 3

    asyncio.run(asyncio.wait_for(calls(), 2 * WITHIN))


def test_the_body_of_a_query_is_read_where_it_is_needed() -> None:
    """In the caller's thread, when it asks for it; nobody waits for a turn."""
    threads: list[int] = []

    async def calls() -> None:
        whole = request(asyncio.Event())
        content = await BodyThreads().read(
            whole, QUERY_BYTES, lambda _: threads.append(threading.get_ident())
        )
        assert threads == []
        content()

    asyncio.run(calls())
    assert threads == [threading.get_ident()]
