"""A batch followed by a loop or a callback, and requests that come one after the other: in both colours."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import pyarrow as pa
import pytest
from client_scripts import Clock, both, json_reply, play, scripted, session, wired

from embatch import AsyncClient, Batch, BatchTimeout, Client, InvalidArgument, NotFound, Request
from embatch.client import flows
from embatch.client.calls import Await, Work
from embatch.client.flows import Wait
from embatch.client.payload import Payload, blocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from client_scripts import Handler

NAME = "batches/b1"


def body(state: str, done: int = 0) -> dict[str, Any]:
    """Return an operation of three requests in a state."""
    counts = {"requestCount": "3", "successfulRequestCount": str(done)}
    metadata = {"name": NAME, "model": "models/m", "state": f"BATCH_STATE_{state}", "batchStats": counts}
    return {"name": NAME, "metadata": metadata}


STORY = [("PENDING", 0), ("PENDING", 0), ("RUNNING", 1), ("RUNNING", 1), ("RUNNING", 2), ("SUCCEEDED", 3)]
CHANGES = [0, 1, 2, 3]
"""Requests done when the story is told without its repetitions."""


def story() -> Handler:
    """Return what answers the story, poll after poll."""
    return scripted([httpx2.Response(200, json=body(*part)) for part in STORY])[0]


def test_a_loop_sees_each_change_and_the_final_state() -> None:
    """What a poll finds unchanged is not told twice."""

    def run(client: Client) -> list[int]:
        return [batch.batch_stats.successful_request_count for batch in client.watch(NAME, poll_interval=0)]

    async def run_async(client: AsyncClient) -> list[int]:
        return [
            batch.batch_stats.successful_request_count async for batch in client.watch(NAME, poll_interval=0)
        ]

    assert both(story, run, run_async) == (CHANGES, CHANGES)


def test_a_loop_asks_only_when_it_goes_on() -> None:
    """Whoever leaves it early leaves the batch alone."""
    handle, seen = scripted([httpx2.Response(200, json=body(*part)) for part in STORY[:1]])
    with Client("http://service", http_client=wired(handle)) as client:
        watch = client.watch(NAME)
        assert not seen
        assert not next(watch).done
    assert [request.method for request in seen] == ["GET"]


def test_a_loop_ends_by_the_rules_of_awaiting() -> None:
    """The same error after the same time, the loop's own work included; no such batch is told at once."""
    clock = Clock()
    watch = flows.Watch(session(clock=clock), NAME, Wait(3.0, 10.0))
    assert play(watch.change(), [json_reply(body("RUNNING"))], clock).value.name == NAME
    clock.now += 8.0
    played = play(watch.change(), [json_reply(body("RUNNING"))], clock)
    assert [call.after for call in played.calls] == [2.0]
    assert isinstance(played.error, BatchTimeout)
    watch = flows.Watch(session(), NAME, Wait())
    missing = json_reply({"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}}, 404)
    assert isinstance(play(watch.change(), [missing]).error, NotFound)


def test_a_loop_asks_soon_at_first() -> None:
    """As awaiting does, and a change of the batch begins nothing anew."""
    clock, waits = Clock(), list[float]()
    watch = flows.Watch(session(clock=clock), NAME, Wait())
    answers = [json_reply(body(*part)) for part in [*STORY[:3], *STORY[3:5] * 2, STORY[5]]]
    for change in (answers[:1], answers[1:3], answers[3:5], answers[5:6], answers[6:7], answers[7:]):
        waits += [call.after for call in play(watch.change(), change, clock).calls]
    assert waits == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2]


def test_a_coroutine_function_is_awaited_poll_by_poll() -> None:
    """In its turn, and what it raises ends the wait; a plain function stays one."""
    told: list[int] = []

    async def tell(batch: Batch) -> None:
        await asyncio.sleep(0)
        told.append(batch.batch_stats.successful_request_count)

    async def stop(batch: Batch) -> None:
        raise KeyError(batch.name)

    async def main() -> None:
        async with AsyncClient(
            "http://service", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(story()))
        ) as client:
            with pytest.raises(KeyError, match="b1"):
                await client.await_batch_completion(NAME, poll_interval=0, on_progress=stop)
            batch = await client.await_batch_completion(NAME, poll_interval=0, on_progress=tell)
            assert batch.done

    asyncio.run(main())
    assert told == [part[1] for part in STORY[1:]]


def test_the_blocking_client_refuses_what_it_cannot_await() -> None:
    """It names the argument and who takes it, and leaves no coroutine behind that nobody awaits."""

    async def tell(_: Batch) -> None:
        raise AssertionError

    async def texts() -> AsyncIterator[str]:
        yield "a"

    with Client("http://service", http_client=wired(story())) as client:
        with pytest.raises(InvalidArgument, match="on_progress is asynchronous, which AsyncClient takes"):
            client.await_batch_completion(NAME, on_progress=tell)
        with pytest.raises(InvalidArgument, match="requests is asynchronous"):
            client.async_batch_embed_contents(texts(), display_name="x")  # type: ignore[arg-type]


async def numbered(count: int) -> AsyncIterator[str | Request | None]:
    """Yield texts, a request and a hole among them."""
    for number in range(count):
        await asyncio.sleep(0)
        yield f"text {number}"
    yield Request("last", key="k")
    yield None


def test_an_asynchronous_iterable_is_submitted_as_a_list_is() -> None:
    """Through a file the same rows leave, in their order."""

    async def spooled(requests: Any) -> pa.Table:
        payload = Payload(session().provider)
        for step in payload.gather(requests, Request("")):
            if isinstance(step, Await):
                await step.what
            elif isinstance(step, Work):
                step.do()
        payload.to_file()
        with payload.file("x", named=False).file as file:
            file.seek(0)
            return pa.ipc.open_stream(file.read()).read_all()

    async def both_ways(count: int) -> tuple[pa.Table, pa.Table]:
        listed = [one async for one in numbered(count)]
        return await spooled(numbered(count)), await spooled(listed)

    for count in (3, 10_000):
        streamed, listed = asyncio.run(both_ways(count))
        assert streamed.equals(listed)
        assert len(streamed) == count + 2


def test_asyncio_submits_an_asynchronous_iterable() -> None:
    """Read to its end before anything is sent; an empty one, or one with a number in it, is refused."""
    sent: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json=body("PENDING"))

    async def wrong() -> AsyncIterator[Any]:
        yield "a"
        yield 5

    async def main() -> None:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(handle))
        async with AsyncClient("http://service", model="m", http_client=http) as client:
            with pytest.raises(InvalidArgument, match=r"requests\[1\] is an int"):
                await client.async_batch_embed_contents(wrong(), display_name="x")
            empty = numbered(0)
            async for _ in empty:
                pass
            with pytest.raises(InvalidArgument, match="nothing to embed"):
                await client.async_batch_embed_contents(empty, display_name="x")
            assert not sent
            assert (await client.async_batch_embed_contents(numbered(2), display_name="x")).name == NAME

    asyncio.run(main())
    requests = orjson.loads(sent[0].content)["batch"]["inputConfig"]["requests"]["requests"]
    assert len(requests) == 4


def long_texts(count: int, characters: int, held: list[int]) -> Iterator[str]:
    """Yield long texts, telling how many have been asked for."""
    for _ in range(count):
        held[0] += 1
        yield "x" * characters


def test_blocks_of_long_texts_are_short() -> None:
    """What is held at once is bounded by characters too, not by requests alone."""
    held = [0]
    sizes = [len(block) for block in blocks(long_texts(300, 1 << 16, held), Request(""))]
    assert sum(sizes) == held[0] == 300
    assert max(sizes) * (1 << 16) <= 8 << 20


SCRIPT = """
import resource, sys
from embatch.client.payload import Payload
from embatch.client.calls import Work
from embatch.batch import Request
from embatch.client.targets import resolve
from pathlib import Path
target = resolve("http://service", key=None, data=Path("."), environ={})
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def submit(count):
    payload = Payload(target.provider)
    for step in payload.gather((f"{n} " * 256 for n in range(count)), Request("")):
        assert isinstance(step, Work)
        step.do()
    payload.close(); payload.discard()
submit(20_000); before = used(); submit(160_000); print(used() - before)
"""


def test_a_large_iterable_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """240 MB of texts, read once: what is held is a block of them."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert float(done.stdout) < 64
