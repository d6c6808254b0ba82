"""The client against a real service with the hashing engine: the whole surface, both colours."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

import numpy as np
import pytest
from serving import MODEL, serving, short_folder

from embatch import (
    AlreadyExists,
    AsyncClient,
    Client,
    Code,
    InvalidArgument,
    NotFound,
    Reason,
    Request,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 10_100
"""More than go inline."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a service on a socket for all tests of this file; `test_local` has one on a port."""
    folder = tmp_path_factory.mktemp("s")
    with short_folder() as place, serving(folder / "data", "--socket", str(place / "sock")) as service:
        yield service.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """Return a client of it."""
    with Client(url) as client:
        yield client


def test_a_batch_from_submit_to_retry(client: Client) -> None:
    """Keys, metadata, order, faults by reason, then only the failed ones again, at their places."""
    requests: list[str | Request | None] = [
        "first",
        Request("second", key="k", metadata={"deep": [{"n": None}]}, output_dimensionality=8),
        "",
        Request("third", key="k"),
        "lone \ud800 surrogate",
        None,
        Request(float("nan"), key="gap"),  # type: ignore[arg-type]  # as a table of pandas gives it
    ]
    batch = client.async_batch_embed_contents(requests, display_name="Small", priority=-2)
    assert (batch.display_name, batch.priority, batch.model) == ("Small", -2, f"models/{MODEL}")
    seen: list[State] = []
    batch = client.await_batch_completion(
        batch.name, poll_interval=0.01, on_progress=lambda b: seen.append(b.state)
    )
    assert batch.state is seen[-1] is State.COMPLETED
    assert (batch.batch_stats.successful_request_count, batch.batch_stats.failed_request_count) == (2, 5)
    result = client.get_batch_embeddings(batch)
    assert result.keys == [None, "k", None, "k", None, None, "gap"]
    assert result.metadata[1] == {"deep": [{"n": None}]}
    reasons = [(index, error.code, error.reason) for index, error in result.failed_responses]
    assert reasons == [
        (2, Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT),
        (3, Code.INVALID_ARGUMENT, Reason.DUPLICATE_KEY),
        (4, Code.INVALID_ARGUMENT, Reason.BAD_UNICODE),
        (5, Code.INVALID_ARGUMENT, Reason.NOT_TEXT),
        (6, Code.INVALID_ARGUMENT, Reason.NOT_TEXT),
    ]
    again = client.retry_failed(
        batch, ["", "", "mended", "third", "whole", "there", "too"], display_name="Mended"
    )
    again = client.await_batch_completion(again, poll_interval=0.01)
    assert again.batch_stats.request_count == 5
    filled = result.fill(client.get_batch_embeddings(again))
    assert filled.failed_responses == []
    texts = ["first", "second", "mended", "third", "whole", "there", "too"]
    expected = [one.values for one in client.batch_embed_contents(texts)]
    np.testing.assert_array_equal(filled.to_numpy(), np.stack(expected))


def test_a_large_batch_goes_through_a_file(client: Client) -> None:
    """In order, every one; read again smaller; the same content under the same key is the same batch."""
    texts = [f"text {number}" for number in range(LARGE)]

    def submit(count: int = LARGE) -> str:
        return client.async_batch_embed_contents(
            iter(texts[:count]), display_name="Large", idempotency_key="large", output_dimensionality=16
        ).name

    name = submit()
    assert submit() == name
    with pytest.raises(AlreadyExists):
        submit(LARGE - 1)
    batch = client.await_batch_completion(name, poll_interval=0.05, timeout=60)
    assert batch.input_file is not None
    assert batch.batch_stats.successful_request_count == LARGE
    result = client.get_batch_embeddings(batch)
    assert result.to_numpy().shape == (LARGE, 16)
    at = [0, 1, 5_000, LARGE - 1]
    now = client.batch_embed_contents([texts[one] for one in at], output_dimensionality=16)
    np.testing.assert_array_equal(result.to_numpy()[at], np.stack([one.values for one in now]))
    assert client.get_batch_embeddings(name, output_dimensionality=2).to_numpy().shape == (LARGE, 2)


def test_update_cancel_delete_and_lists(client: Client) -> None:
    """The calls that change a batch, and the errors of those that come too late."""
    names = [client.async_batch_embed_contents(["a"], display_name=f"n{n}").name for n in range(5)]
    listed = [batch.name for batch in client.list_batches(page_size=2)]
    assert listed[:5] == names[::-1]
    assert len(listed) == len(set(listed))
    assert client.update_batch(names[0], priority=9, display_name="new").priority == 9
    batch = client.await_batch_completion(names[0], poll_interval=0.01)
    assert batch.display_name == "new"
    client.delete_batch(batch)
    with pytest.raises(NotFound):
        client.get_batch_status(batch)
    ended = client.await_batch_completion(names[1], poll_interval=0.01)
    assert client.cancel_batch(ended).state is State.COMPLETED
    stopped = client.cancel_batch(client.async_batch_embed_contents(["a"] * 900, display_name="stop"))
    if stopped.state is State.CANCELLED:  # unless it was faster
        result = client.get_batch_embeddings(stopped, partial=True)
        assert len(result) == 900
        assert {error.code for _, error in result.failed_responses} <= {Code.CANCELLED}


def test_a_random_key_a_call(client: Client) -> None:
    """The same submit twice without a key of one's own makes two batches."""
    one, two = (client.async_batch_embed_contents(["a"], display_name="x").name for _ in range(2))
    assert one != two


def test_interactive_calls_and_models(client: Client) -> None:
    """Over a hundred texts go in several calls; a fault is the whole call's and names its place."""
    texts = [f"text {number}" for number in range(230)]
    found = client.batch_embed_contents(texts, task_type="CLUSTERING")
    assert found[229] == client.embed_content("text 229", task_type="CLUSTERING")
    with pytest.raises(InvalidArgument) as refused:
        client.batch_embed_contents(["a", ""])
    assert refused.value.field == "requests[1].content"
    with pytest.raises(InvalidArgument):
        client.embed_content("")
    for model in ("gemini-embedding-001", "org/unknown", "./folder", "/models/folder", "../x", "a b'c"):
        typed = shlex.quote(model)
        for send in (
            lambda model=model: client.embed_content("a", model=model),
            lambda model=model: client.async_batch_embed_contents(["a"], display_name="x", model=model),
        ):
            with pytest.raises(NotFound) as unknown:
                send()
            said = str(unknown.value)
            assert said.startswith(f"{model} is not served here: ")
            assert f" has {MODEL}. " in said
            assert f"`embatch serve --model {typed}`" in said
            assert f"`--alias {typed}={MODEL}`" in said
    with pytest.raises(InvalidArgument):
        client.async_batch_embed_contents(["a"], display_name="x", output_dimensionality=65)
    assert [model.name for model in client.list_models()] == [f"models/{MODEL}"]


def test_asyncio_all_the_way(url: str) -> None:
    """The same names awaited, many at a time."""

    async def one(client: AsyncClient, number: int) -> float:
        batch = await client.async_batch_embed_contents([f"text {number}"], display_name="async")
        batch = await client.await_batch_completion(batch.name, poll_interval=0.01)
        result = await client.get_batch_embeddings(batch)
        return float(result.to_numpy()[0, 0])

    async def main() -> list[float]:
        async with AsyncClient(url) as client:
            found = await asyncio.gather(*(one(client, number) for number in range(20)))
            now = await client.batch_embed_contents([f"text {number}" for number in range(20)])
            assert [float(embedding.values[0]) for embedding in now] == found
            return found

    assert len(set(asyncio.run(main()))) == 20
