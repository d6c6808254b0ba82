"""The client for asyncio: `Client` with other verbs. Whatever is decided is decided in the flows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Self

import httpx2

from embatch.client import flows, interactive, models
from embatch.client.base import BaseClient, ClientOptions
from embatch.client.calls import Await, Reply, Together, Work
from embatch.client.connection import AsyncConnection
from embatch.client.flows import RequestDefaults
from embatch.client.receiving import IncomingAnswer
from embatch.client.targets import UNSAID
from embatch.client.together import run_in_tasks

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType

    from embatch.batch import Batch, Model, Request, TaskType
    from embatch.client.calls import Flow, Step, T
    from embatch.client.results import BatchResult
    from embatch.vectors import ContentEmbedding


class AsyncClient(BaseClient):
    """As `Client`, for asyncio: the same names, awaited; `list_batches` and `list_models` by `async for`."""

    _connection: AsyncConnection

    def __init__(  # noqa: PLR0913  (options, by name)
        self,
        target: str = UNSAID,
        *,
        auth: Literal["gemini", "vertex_ai"] | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        rate: int | tuple[int, int] | None = None,
        http_client: httpx2.AsyncClient | None = None,
        data: str | os.PathLike[str] | None = None,
        model: str | None = None,
        project: str | None = None,
        location: str | None = None,
        staging: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        where = (project, location, staging)
        super().__init__(
            ClientOptions(target, base_url, api_key, data, model, timeout, max_retries, auth, *where, rate)
        )
        self._connection = AsyncConnection(self._session, http_client, transport)

    async def async_batch_embed_contents(  # noqa: PLR0913  (the guide's options, by name)
        self,
        requests: Iterable[str | Request | None] | AsyncIterable[str | Request | None],
        *,
        display_name: str,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> Batch:
        """As `Client.async_batch_embed_contents`."""
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        labels = flows.BatchOptions(display_name, priority, idempotency_key)
        return await self._run(flows.submit(self._session, requests, defaults, labels))

    async def get_batch_status(self, name: str | Batch) -> Batch:
        """As `Client.get_batch_status`."""
        return await self._run(flows.get(self._session, name))

    async def await_batch_completion(
        self,
        name: str | Batch,
        *,
        poll_interval: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (a limit of the batch, not of one await)
        on_progress: Callable[[Batch], object] | None = None,
    ) -> Batch:
        """As `Client.await_batch_completion`."""
        wait = flows.Wait(poll_interval, timeout)
        return await self._run(flows.await_batch(self._session, name, wait, on_progress))

    async def watch(
        self,
        name: str | Batch,
        *,
        poll_interval: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (as above)
    ) -> AsyncIterator[Batch]:
        """As `Client.watch`."""
        watch = flows.Watch(self._session, name, flows.Wait(poll_interval, timeout))
        done = False
        while not done:
            batch = await self._run(watch.change())
            done = batch.done
            yield batch

    async def get_batch_embeddings(
        self, batch: str | Batch, *, partial: bool = False, output_dimensionality: int | None = None
    ) -> BatchResult:
        """As `Client.get_batch_embeddings`."""
        return await self._run(flows.results(self._session, batch, output_dimensionality, partial=partial))

    async def retry_failed(
        self,
        batch: str | Batch,
        requests: Sequence[str | Request | None],
        *,
        display_name: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
    ) -> Batch:
        """As `Client.retry_failed`."""
        defaults = RequestDefaults(None, task_type, output_dimensionality)
        return await self._run(flows.retry_failed(self._session, batch, requests, defaults, display_name))

    async def list_batches(self, *, page_size: int | None = None) -> AsyncIterator[Batch]:
        """As `Client.list_batches`."""
        token: str | None = None
        while True:
            page = await self._run(flows.page(self._session, page_size, token))
            for batch in page.items:
                yield batch
            if (token := page.next_page_token) is None:
                return

    batches = list_batches

    async def update_batch(
        self, name: str | Batch, *, display_name: str | None = None, priority: int | None = None
    ) -> Batch:
        """As `Client.update_batch`."""
        return await self._run(flows.update(self._session, name, display_name, priority))

    async def cancel_batch(self, name: str | Batch) -> Batch:
        """As `Client.cancel_batch`."""
        return await self._run(flows.cancel(self._session, name))

    async def delete_batch(self, name: str | Batch) -> None:
        """As `Client.delete_batch`."""
        return await self._run(flows.delete(self._session, name))

    async def embed_content(
        self,
        text: str,
        *,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        title: str | None = None,
        output_dimensionality: int | None = None,
    ) -> ContentEmbedding:
        """As `Client.embed_content`."""
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        return await self._run(interactive.embed(self._session, text, title, defaults))

    async def batch_embed_contents(
        self,
        requests: Iterable[str | Request],
        *,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
    ) -> list[ContentEmbedding]:
        """As `Client.batch_embed_contents`."""
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        return await self._run(interactive.embed_many(self._session, requests, defaults))

    async def count_tokens(self, texts: Sequence[str], *, model: str | None = None) -> int:
        """As `Client.count_tokens`."""
        return await self._run(
            interactive.count_tokens(
                self._session, texts, RequestDefaults(self._model if model is None else model)
            )
        )

    async def list_models(self) -> AsyncIterator[Model]:
        """As `Client.list_models`."""
        token: str | None = None
        while True:
            page = await self._run(models.models(self._session, token))
            for model in page.items:
                yield model
            if (token := page.next_page_token) is None:
                return

    models = list_models

    async def close(self) -> None:
        """As `Client.close`."""
        if not self._is_copy:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._do(step)
                except Exception as error:  # noqa: BLE001  (the flow judges it, and raises it if it is final)
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _do(self, step: Step) -> Reply:
        if isinstance(step, Work):
            await asyncio.to_thread(step.do)
            return Reply()
        if isinstance(step, Await):
            await step.what
            return Reply()
        if isinstance(step, Together):
            await run_in_tasks(step, self._run)
            return Reply()
        if step.after > 0:
            await asyncio.sleep(step.after)
        try:
            http = await self._connection.http()
            async with http.stream(**self._request(step)) as response:
                answer = IncomingAnswer(step, response.status_code, response.headers)
                async for piece in response.aiter_bytes():
                    if not answer.feed(piece, response.num_bytes_downloaded):
                        break
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._translated(error, step) from error
        return answer.reply(self._connection.via)
