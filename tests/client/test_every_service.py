"""The same calls, the same objects: Gemini, Vertex and an embatch service, each by the client's one face."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from at_vertex import vertex
from client_scripts import unhurried
from hosted.gemini import GeminiStandIn
from serving import serving, short_folder

from embatch import (
    AsyncClient,
    BatchNotCompleted,
    BatchResult,
    Client,
    Code,
    InvalidArgument,
    NotFound,
    Request,
    State,
)
from embatch.client.base import target_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch import Batch

pytestmark = pytest.mark.hosted

TEXTS = [f"text number {number}" for number in range(30)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an embatch service for all tests of this file."""
    with (
        short_folder() as place,
        serving(tmp_path_factory.mktemp("s") / "data", "--socket", str(place / "sock")) as one,
    ):
        yield one.url


@pytest.fixture(params=["gemini", "vertex", "embatch"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name each target in turn; what it needs beside its name stands in the environment."""
    if request.param == "embatch":
        yield request.getfixturevalue("service")
    elif request.param == "vertex":
        with vertex(monkeypatch):
            yield "vertex"
    else:
        with GeminiStandIn() as google:
            monkeypatch.setenv("GOOGLE_API_KEY", google.key)
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
            yield "gemini"


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    """Return a client of it."""
    with Client(target) as made:
        unhurried(made)
        yield made


def width(client: Client | AsyncClient) -> int:
    """Return dimensions below the native ones: the service's model has 64 here, Google's least are 128."""
    return 32 if target_of(client).provider.name == "embatch" else 128


def submitted(client: Client, requests: list[Request]) -> Batch:
    """Submit."""
    return client.async_batch_embed_contents(
        requests, display_name="Test", task_type="RETRIEVAL_DOCUMENT", output_dimensionality=width(client)
    )


def finished(client: Client, requests: list[Request]) -> BatchResult:
    """Submit, wait, read."""
    batch = client.await_batch_completion(submitted(client, requests), poll_interval=0.0)
    return client.get_batch_embeddings(batch, output_dimensionality=width(client))


def test_keys_order_and_faults_are_kept(client: Client) -> None:
    """Each vector stands at its text, at length 1, as the text alone gets it; a faulty text fails alone."""
    requests = [Request(text, key=f"doc/{at}") for at, text in enumerate(TEXTS)]
    requests[7] = Request("", key="doc/7")
    result = finished(client, requests)
    assert isinstance(result, BatchResult)
    assert (len(result), result.keys) == (30, [f"doc/{at}" for at in range(30)])
    [(at, error)] = result.failed_responses
    assert (at, error.code, error.retryable) == (7, Code.INVALID_ARGUMENT, False)
    assert (result.batch.state, result.batch.display_name) == (State.COMPLETED, "Test")
    stats = result.batch.batch_stats
    assert (stats.request_count, stats.successful_request_count, stats.failed_request_count) == (30, 29, 1)
    found = result.to_numpy(failed="nan")
    good = [at for at in range(30) if at != 7]
    assert found.shape == (30, width(client))
    assert np.allclose(np.linalg.norm(found[good], axis=1), 1.0, rtol=0, atol=1e-5)
    some = client.batch_embed_contents(
        [TEXTS[at] for at in good], task_type="RETRIEVAL_DOCUMENT", output_dimensionality=width(client)
    )
    one = client.embed_content(TEXTS[4], task_type="RETRIEVAL_DOCUMENT", output_dimensionality=width(client))
    assert np.allclose(found[good], [each.values for each in some], rtol=0, atol=1e-5)
    assert np.allclose(found[4], one.values, rtol=0, atol=1e-5)


def test_what_failed_is_tried_again_and_fills_its_places(client: Client) -> None:
    """The guide's way to mend a batch."""
    requests = [Request(text) for text in TEXTS]
    requests[3] = requests[9] = Request(" ")
    batch = client.await_batch_completion(submitted(client, requests), poll_interval=0.0)
    result = client.get_batch_embeddings(batch, output_dimensionality=width(client))
    few = width(client)
    again = client.retry_failed(batch, TEXTS, task_type="RETRIEVAL_DOCUMENT", output_dimensionality=few)
    again = client.await_batch_completion(again, poll_interval=0.0)
    filled = result.fill(client.get_batch_embeddings(again, output_dimensionality=few))
    assert filled.failed_responses == []
    whole = finished(client, [Request(text) for text in TEXTS]).to_numpy()
    assert np.allclose(filled.to_numpy(), whole, rtol=0, atol=1e-6)


def test_batches_are_listed_stopped_and_deleted(client: Client) -> None:
    """Newest first; what is deleted is gone, and what is not there is NotFound."""
    names = [submitted(client, [Request(text) for text in TEXTS[:3]]).name for _ in range(3)]
    assert [batch.name for batch in client.list_batches(page_size=2)][:3] == names[::-1]
    assert client.cancel_batch(names[0]).state.final or client.get_batch_status(names[0]).state
    for name in names:
        client.await_batch_completion(name, poll_interval=0.0)
        client.delete_batch(name)
        with pytest.raises(NotFound):
            client.get_batch_status(name)


def test_errors_are_the_same(client: Client) -> None:
    """Before anything is sent, or as the service has it."""
    with pytest.raises(InvalidArgument, match="display_name"):
        client.async_batch_embed_contents(["a"], display_name=" ")
    with pytest.raises(NotFound):
        client.embed_content("a", model="no-such-model")
    batch = submitted(client, [Request(text) for text in TEXTS])
    if not batch.done:
        with pytest.raises(BatchNotCompleted):
            client.get_batch_embeddings(batch)


def test_the_other_colour_gives_the_same(target: str) -> None:
    """Value by value."""
    requests = [Request(text, key=f"k{at}") for at, text in enumerate(TEXTS)]

    async def run() -> BatchResult:
        async with AsyncClient(target) as client:
            unhurried(client)
            batch = await client.async_batch_embed_contents(
                requests,
                display_name="Test",
                task_type="RETRIEVAL_DOCUMENT",
                output_dimensionality=width(client),
            )
            batch = await client.await_batch_completion(batch, poll_interval=0.0)
            return await client.get_batch_embeddings(batch, output_dimensionality=width(client))

    other = asyncio.run(run())
    with Client(target) as client:
        unhurried(client)
        result = finished(client, requests)
    assert other.to_numpy().tolist() == result.to_numpy().tolist()
    assert other.keys == result.keys
