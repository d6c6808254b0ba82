"""The public surface as a type checker sees it. Never run: `mypy --strict` and pyright read it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

import httpx2
import numpy as np
from numpy.typing import NDArray

from embatch import (
    AsyncClient,
    Batch,
    BatchResult,
    BatchStats,
    BatchTimeout,
    Client,
    ContentEmbedding,
    EmbatchError,
    Model,
    Request,
    RequestError,
    State,
    TaskType,
    __version__,
)

assert_type(__version__, str)


def everything(texts: list[str]) -> None:
    """Use the blocking client."""
    with Client() as client:
        assert_type(client, Client)
        batch = client.async_batch_embed_contents(
            texts,
            display_name="Knowledge base",
            model="m",
            task_type="RETRIEVAL_DOCUMENT",
            output_dimensionality=256,
            priority=5,
            idempotency_key="key",
        )
        assert_type(batch, Batch)
        batch = client.await_batch_completion(
            batch.name,
            poll_interval=2.0,
            timeout=math.inf,
            on_progress=lambda b: b.batch_stats.progress_percentage,
        )
        result = client.get_batch_embeddings(batch, partial=True, output_dimensionality=64)
        assert_type(result, BatchResult)
        assert_type(result.embeddings, list[ContentEmbedding | None])
        assert_type(result.to_numpy(), NDArray[np.float32])
        assert_type(result.failed_responses, list[tuple[int, RequestError]])
        assert_type(result.keys, list[str | None])
        assert_type(result.fill(result), BatchResult)
        assert_type(client.retry_failed(batch, texts, display_name="again"), Batch)
        assert_type(client.get_batch_status(batch), Batch)
        assert_type(client.list_batches(page_size=10), Iterator[Batch])
        assert_type(client.update_batch(batch, priority=1), Batch)
        assert_type(client.cancel_batch(batch), Batch)
        client.delete_batch(batch)
        assert_type(client.embed_content("text", task_type=TaskType.RETRIEVAL_QUERY), ContentEmbedding)
        assert_type(client.batch_embed_contents(iter(texts)), list[ContentEmbedding])
        assert_type(client.batches(page_size=10), Iterator[Batch])
        assert_type(client.models(), Iterator[Model])
        for model in client.list_models():
            assert_type(model.name, str)
            assert_type(model.max_tokens, int | None)
        for seen in client.watch(batch, poll_interval=1.0, timeout=math.inf):
            assert_type(seen, Batch)
        assert_type(client.with_options(timeout=5, max_retries=0), Client)
        assert_type(client.count_tokens(texts), int)
    Client("http://host:8080", api_key="key", model="m")
    Client(data=Path("folder"))
    Client("gemini", base_url="https://gateway", timeout=2.5, max_retries=1, http_client=httpx2.Client())
    Client("vertex", project="p", location="us-central1", staging="gs://bucket/folder")
    # A mistake that a checker finds is one that nobody runs into.
    client.async_batch_embed_contents(texts)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    AsyncClient(http_client=httpx2.Client())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.async_batch_embed_contents((Request("a", key="k"), "b"), display_name="mixed")
    client.async_batch_embed_contents([1], display_name="no")  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    client.embed_content(Request("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def coming() -> AsyncIterator[str | Request | None]:
    """Yield what is to be embedded."""
    yield "a"
    yield Request("b", key="b")
    yield None


async def tell(batch: Batch) -> None:
    """Be told of a poll."""
    assert_type(batch.batch_stats.progress_percentage, float)


async def everything_awaited(texts: list[str]) -> None:
    """Use the client for asyncio."""
    async with AsyncClient("gemini", api_key="key") as client:
        assert_type(client, AsyncClient)
        batch = await client.async_batch_embed_contents(texts, display_name="Knowledge base")
        assert_type(batch, Batch)
        assert_type(await client.await_batch_completion(batch, on_progress=repr), Batch)
        assert_type(await client.get_batch_embeddings(batch.name), BatchResult)
        assert_type(await client.async_batch_embed_contents(coming(), display_name="Streamed"), Batch)
        assert_type(await client.await_batch_completion(batch, on_progress=tell), Batch)
        assert_type(client.list_batches(), AsyncIterator[Batch])
        assert_type(client.models(), AsyncIterator[Model])
        assert_type(client.with_options(timeout=5), AsyncClient)
        async for seen in client.watch(batch):
            assert_type(seen, Batch)
        async for one in client.list_batches():
            assert_type(one, Batch)
        await client.delete_batch(batch.name)
        assert_type(await client.embed_content("text"), ContentEmbedding)


def values(batch: Batch, embedding: ContentEmbedding) -> None:
    """Use what comes back."""
    assert_type(batch.state, State)
    assert_type(batch.done, bool)
    assert_type(batch.display_name, str | None)
    assert_type(batch.batch_stats, BatchStats)
    assert_type(batch.batch_stats.success_rate, float)
    assert_type(embedding.values, NDArray[np.float32])
    assert_type(embedding.normalize(), ContentEmbedding)
    assert_type(embedding.cosine_similarity(embedding), float)
    try:
        raise BatchTimeout("late")
    except EmbatchError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.field, str | None)
