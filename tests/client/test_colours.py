"""Both colours over an HTTP stack without a network: the same scripts end alike; signatures are equal."""

from __future__ import annotations

import asyncio
import doctest
import gc
import inspect
import re
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from client_scripts import Answer, Handler, both, problem, scripted, wired, wired_async

import embatch.client.client
from embatch import (
    AsyncClient,
    BatchTimeout,
    Client,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "batches/b1"


def operation(state: str) -> httpx2.Response:
    """Return an operation in this state."""
    metadata = {"name": NAME, "model": "models/m", "state": f"BATCH_STATE_{state}", "displayName": "Test"}
    return httpx2.Response(200, json={"name": NAME, "metadata": metadata})


def busy() -> httpx2.Response:
    """Return a refusal that is worth repeating."""
    return httpx2.Response(503, json=problem(503, "UNAVAILABLE", "not now"))


SCRIPTS: dict[str, tuple[Callable[[], list[Answer]], object]] = {
    "success after a 503 and a drop": (
        lambda: [busy(), httpx2.ReadError("reset"), operation("SUCCEEDED")],
        "COMPLETED",
    ),
    "repeats exhausted": (lambda: [busy() for _ in range(6)], (Unavailable, "not now", None)),
    "connection lost": (
        lambda: [httpx2.RemoteProtocolError("gone") for _ in range(6)],
        (
            ConnectionFailed,
            "the connection to http://service broke before an answer came (RemoteProtocolError: gone)",
            None,
        ),
    ),
    "never connected": (
        lambda: [httpx2.ConnectError("refused") for _ in range(6)],
        (ConnectionFailed, "cannot reach http://service (ConnectError: refused)", "NOT_SENT"),
    ),
    "404": (
        lambda: [httpx2.Response(404, json=problem(404, "NOT_FOUND", "no batch b1"))],
        (NotFound, "no batch b1", None),
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_ends_alike_in_both_colours(script: str) -> None:
    """The same answers, errors and broken connections lead to the same value or error."""
    answers, expected = SCRIPTS[script]

    def state(batch: Any) -> object:
        return batch.state.value

    async def run_async(client: AsyncClient) -> object:
        return state(await client.get_batch_status(NAME))

    found = both(
        lambda: scripted(answers())[0], lambda client: state(client.get_batch_status(NAME)), run_async
    )
    assert found == (expected, expected)


def test_time_outs_end_alike() -> None:
    """A batch that does not finish within the limit: the same error, the same words."""

    def handler() -> Handler:
        return lambda _: operation("RUNNING")

    async def run_async(client: AsyncClient) -> object:
        return await client.await_batch_completion(NAME, poll_interval=0.0, timeout=0.0)

    sync, other = both(
        handler, lambda client: client.await_batch_completion(NAME, poll_interval=0.0, timeout=0.0), run_async
    )
    assert sync == other
    assert sync[0] is BatchTimeout


def test_lists_end_alike() -> None:
    """Pages are asked for as they are needed, not before."""

    def listed(name: str) -> dict[str, Any]:
        return {"name": name, "metadata": {"name": name, "model": "models/m", "state": "BATCH_STATE_PENDING"}}

    first = {"operations": [listed("batches/1")], "nextPageToken": "2"}
    last = {"operations": [listed("batches/2")]}
    seen: list[list[httpx2.Request]] = []

    def handler() -> Handler:
        handle, requests = scripted([httpx2.Response(200, json=first), httpx2.Response(200, json=last)])
        seen.append(requests)
        return handle

    def run(client: Client) -> list[str]:
        batches = client.list_batches(page_size=1)
        assert not seen[-1]
        names = [next(batches).name]
        assert len(seen[-1]) == 1
        return names + [batch.name for batch in batches]

    async def run_async(client: AsyncClient) -> list[str]:
        return [batch.name async for batch in client.list_batches(page_size=1)]

    assert both(handler, run, run_async) == (["batches/1", "batches/2"],) * 2
    for requests in seen:
        assert [dict(request.url.params) for request in requests] == [
            {"pageSize": "1"},
            {"pageSize": "1", "pageToken": "2"},
        ]


def test_the_key_goes_to_the_target_only() -> None:
    """In a header, never in an address."""
    handle, seen = scripted([operation("PENDING")])
    with Client("http://service", api_key="secret", http_client=wired(handle)) as client:
        client.get_batch_status(NAME)
        assert "secret" not in repr(client)
    assert seen[0].headers["x-goog-api-key"] == "secret"
    assert "secret" not in str(seen[0].url)


def test_a_key_that_cannot_be_sent_is_not_quoted() -> None:
    """A line end in a key is an error, and the error does not show the key."""
    with pytest.raises(InvalidArgument, match="api_key") as refused:
        Client("http://127.0.0.1:9", api_key="sec\nret")
    assert "sec" not in str(refused.value)


def _surface(kind: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in vars(kind).items()
        if callable(member) and (not name.startswith("_") or name == "__init__")
    }


def test_signatures_are_equal() -> None:
    """The twins have the same methods with the same parameters and results, but for colour."""
    sync, other = _surface(Client), _surface(AsyncClient)
    assert sync.keys() == other.keys()
    for name, method in sync.items():
        ours, theirs = inspect.signature(method), inspect.signature(other[name])
        for parameter in [*ours.parameters.values()][1:]:
            twin = theirs.parameters[parameter.name]
            said = re.sub(r"\bAsync(BaseTransport|Client)\b", r"\1", str(twin.annotation))
            said = said.replace(" | AsyncIterable[str | Request | None]", "")
            assert parameter == twin.replace(annotation=said), name
        assert list(ours.parameters) == list(theirs.parameters), name
        assert ours.return_annotation == str(theirs.return_annotation).replace("AsyncIterator", "Iterator"), (
            name
        )
        if name != "__init__":
            assert inspect.iscoroutinefunction(other[name]) or inspect.isasyncgenfunction(other[name]), name
            assert other[name].__doc__.strip() == f"As `Client.{method.__name__}`.", name
            assert method.__doc__, name


def test_a_closed_client_says_so() -> None:
    """Instead of an error of the HTTP library's."""
    client = Client("http://service", http_client=wired(scripted([])[0]))
    client.close()
    client.close()
    with pytest.raises(InvalidArgument, match="closed"):
        client.get_batch_status(NAME)


def test_the_blocking_client_works_inside_a_running_loop() -> None:
    """As in a notebook: it neither needs nor touches the loop."""

    async def cell() -> str:
        handle, _ = scripted([operation("SUCCEEDED")])
        with Client("http://service", http_client=wired(handle)) as client:
            return client.get_batch_status(NAME).state.value

    assert asyncio.run(cell()) == "COMPLETED"


def test_an_async_client_outlives_its_loop() -> None:
    """Made once and used by several `asyncio.run`, as scripts do."""
    client = AsyncClient("http://service", http_client=wired_async(lambda _: operation("SUCCEEDED")))
    for _ in range(2):
        assert asyncio.run(client.get_batch_status(NAME)).state.value == "COMPLETED"
    asyncio.run(client.close())


def test_the_doctests_hold() -> None:
    """Nothing is connected or started by making a client, and its key does not show."""
    outcome = doctest.testmod(embatch.client.client)
    assert outcome.attempted
    assert not outcome.failed


def test_many_async_calls_share_one_connection_pool() -> None:
    """Calls that start together make one pool, not one each."""

    def pools() -> list[httpx2.AsyncClient]:
        return [thing for thing in gc.get_objects() if isinstance(thing, httpx2.AsyncClient)]

    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:9", max_retries=0) as client:

            async def one() -> None:
                with pytest.raises(ConnectionFailed):  # nobody listens there
                    await client.get_batch_status(NAME)

            await asyncio.gather(*(one() for _ in range(20)))
            assert len(pools()) - len(before) == 1

    before = pools()
    asyncio.run(main())
