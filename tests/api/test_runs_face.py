"""What runs ask besides batches: the reference path, token counts, the end of a run, what work took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from google import genai
from serving import MODEL, Served, serving

from embatch import AsyncClient, Client, InvalidArgument
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = ["one", "two words", "three words here", "one"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with the hashing engine."""
    with serving(tmp_path_factory.mktemp("runs") / "data", "--engine", "hashing", "--model", MODEL) as served:
        yield served


@pytest.fixture
def client(service: Served) -> Iterator[Client]:
    """Our client of it."""
    with Client(service.url) as client:
        yield client


def test_the_reference_path_agrees_with_the_batch(client: Client) -> None:
    """In order, with what it cost and the engine it stands against."""
    batch = client.await_batch_completion(client.async_batch_embed_contents(TEXTS, display_name="all"))
    vectors = client.get_batch_embeddings(batch).to_numpy()
    found = ForRuns(client).embed_reference(TEXTS)
    assert found is not None
    reference = np.stack([one.values for one in found.embeddings if one is not None])
    assert np.array_equal(reference, vectors)
    assert found.tokens == batch.usage.token_count > 0
    assert found.cpu_seconds > 0
    assert found.engine["name"] == "hashing"
    assert len(found.engine["identity"]) == 64
    with pytest.raises(InvalidArgument):
        ForRuns(client).embed_reference(["good", ""])
    ready = ForRuns(client).embed_reference([])
    assert ready is not None
    assert (ready.embeddings, ready.tokens, ready.engine) == ([], 0, found.engine)


def test_tokens_are_counted_as_google_does(client: Client, service: Served) -> None:
    """By our client and by Google's, for one text and for many; what a batch reports is the same."""
    total = client.count_tokens(TEXTS * 1000)
    assert total == 1000 * client.count_tokens(TEXTS)
    google = genai.Client(api_key="any", http_options={"base_url": service.url})
    contents = [genai.types.Content(parts=[genai.types.Part(text=text)]) for text in TEXTS]
    assert google.models.count_tokens(model=MODEL, contents=contents).total_tokens == total / 1000
    assert client.count_tokens([]) == 0
    assert client.count_tokens(["good", " "]) == client.count_tokens(["good"])


def test_a_batch_says_what_it_took(client: Client) -> None:
    """Tokens and CPU seconds while it lasts and afterwards, and what one text at a time would have cost."""
    texts = [f"a text with the number {number}" for number in range(600)]
    seen = []
    batch = client.async_batch_embed_contents(texts, display_name="usage")
    batch = client.await_batch_completion(
        batch, poll_interval=0.01, on_progress=lambda one: seen.append(one.usage)
    )
    assert batch.usage.token_count == client.count_tokens(texts)
    assert batch.usage.cpu_seconds > 0
    assert batch.usage.interactive_cpu_seconds is not None
    done = [usage.token_count + usage.uncommitted_token_count for usage in seen]
    assert done == sorted(done)


def test_a_run_ends_once(client: Client) -> None:
    """The second run is answered from the first; names that cannot be a folder's are refused."""
    for run, cached in (("first", 0), ("second", 3)):
        batch = ForRuns(client).submit(TEXTS[:3], RequestDefaults(), BatchOptions(run, run=run))
        batch = client.await_batch_completion(batch, poll_interval=0.01)
        assert batch.usage.cached_request_count == cached
        client.delete_batch(batch)
        assert ForRuns(client).publish(run) == 3 - cached
        assert ForRuns(client).publish(run) == 0
    for name in ("a b", "x" * 200):
        with pytest.raises(InvalidArgument):
            ForRuns(client).publish(name)
        with pytest.raises(InvalidArgument):
            ForRuns(client).submit(["text"], RequestDefaults(), BatchOptions("refused", run=name))


async def _counted(url: str) -> int:
    async with AsyncClient(url) as client:
        return await client.count_tokens(TEXTS)


def test_the_other_colour_asks_alike(service: Served, client: Client) -> None:
    """AsyncClient counts as Client does."""
    import asyncio

    assert asyncio.run(_counted(service.url)) == client.count_tokens(TEXTS)


def test_google_has_no_such_paths() -> None:
    """There a run has no certificate and no cache, and nothing is sent."""
    with Client("gemini", api_key="none") as client:
        assert ForRuns(client).embed_reference(TEXTS) is None
        assert ForRuns(client).publish("run") == 0
