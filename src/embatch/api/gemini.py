"""Google's face: models, interactive embedding, batches; the same under /v1, /v1beta and /v1alpha.

What is ours and additive: the header `Idempotency-Key` on create, `view=BASIC` on get (no output), and
`GET batches/{id}/embeddings`, the results as an Arrow stream in the dimensions and numbers asked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread
from fastapi import Request, Response

from embatch.api import routing
from embatch.api.bodies import large_body, small_body
from embatch.api.routing import json_answer
from embatch.api.streaming import StreamedResponse, begun
from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument, NotFound
from embatch.service.intake import Draft
from embatch.states import State
from embatch.wire import arrow
from embatch.wire.arrow import write_results
from embatch.wire.gemini import read_queries, read_requests, routes, write_responses
from embatch.wire.gemini.write_errors import in_words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import APIRouter

    from embatch.api.threads import Threads
    from embatch.batch import Batch
    from embatch.engine.models import ServedModel
    from embatch.service.application import Service
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.wire.gemini.routes import Route

_BATCHES_A_PAGE: Final = (50, 1000)
_MODELS_A_PAGE: Final = (50, 1000)


def router(service: Service, settings: Settings, threads: Threads) -> APIRouter:
    """Return the routes over a service."""
    face = _Face(service, settings, threads)
    return routing.router(
        (
            (routes.EMBED, face.embed, "Embed one text now"),
            (routes.EMBED_MANY, face.embed_many, "Embed a few texts now"),
            (routes.COUNT_TOKENS, face.count_tokens, "Count the tokens of texts"),
            (routes.CREATE_BATCH, face.create, "Submit a batch"),
            (routes.LIST_MODELS, face.models, "List models"),
            (routes.GET_MODEL, face.model, "Look a model up"),
            (routes.LIST_BATCHES, face.list, "List batches"),
            (routes.CANCEL_BATCH, face.cancel, "Cancel a batch"),
            (routes.UPDATE_BATCH, face.update, "Change display name or priority"),
            (routes.READ_EMBEDDINGS, face.embeddings, "Read results as an Arrow stream"),
            (routes.GET_BATCH, face.get, "Look a batch up"),
            (routes.DELETE_BATCH, face.delete, "Delete a batch"),
        )
    )


class _Face:
    """The handlers."""

    def __init__(self, service: Service, settings: Settings, threads: Threads) -> None:
        self._service = service
        self._settings = settings
        self._engines, self._bodies, self._results = threads.engines, threads.bodies, threads.results

    # interactive

    async def embed(self, request: Request, model: str) -> Response:
        """Answer `embedContent`."""
        body = await large_body(request)
        served = self._service.model(model)
        same = self._service.naming(served)
        row = await self._bodies.read(
            request, len(body), lambda _: read_requests.embed(body, same, self._settings.text_bytes)
        )
        return await self._engines.run(f"query {served.name}", self._embed, row, served)

    def _embed(self, row: Callable[[], RequestRow], served: ServedModel) -> Response:
        return self._embedded(served, [row()], routes.EMBED)

    async def embed_many(self, request: Request, model: str) -> Response:
        """Answer `batchEmbedContents`."""
        body = await large_body(request)
        served = self._service.model(model)
        same, most = self._service.naming(served), self._settings.interactive_requests
        rows = await self._bodies.read(
            request,
            len(body),
            lambda pulse: read_requests.embed_many(
                body, same, most, text_bytes=self._settings.text_bytes, pulse=pulse
            ),
        )
        return await self._engines.run(f"query {served.name}", self._embed_many, rows, served)

    def _embed_many(self, read: Callable[[], list[RequestRow]], served: ServedModel) -> Response:
        return self._embedded(served, read(), routes.EMBED_MANY)

    def _embedded(self, served: ServedModel, rows: list[RequestRow], route: Route) -> Response:
        with in_words_of(route):
            part = self._service.interactive.embed(served.name, rows)
        said = write_responses.embeddings(part, single=route is routes.EMBED)
        return Response(said, media_type="application/json")

    async def count_tokens(self, request: Request, model: str) -> Response:
        """Answer `countTokens`: as many contents as an inline batch may hold."""
        body = await large_body(request)
        served, most = self._service.model(model), self._settings.inline_requests
        rows = await self._bodies.read(
            request,
            len(body),
            lambda pulse: read_requests.count_tokens(
                body, most, text_bytes=self._settings.text_bytes, pulse=pulse
            ),
        )
        count = await self._engines.run(_bulk(served), self._count_tokens, rows, served)
        return json_answer(write_responses.counted(count))

    def _count_tokens(self, rows: Callable[[], list[RequestRow]], served: ServedModel) -> int:
        return int(self._service.interactive.count(served.name, rows()).sum())

    # batches

    async def create(self, request: Request, model: str) -> Response:
        """Answer `asyncBatchEmbedContent`."""
        body = await large_body(request)
        key = request.headers.get(routes.IDEMPOTENCY_KEY)
        run = request.headers.get(routes.RUN)
        served = self._service.model(model)

        def read(pulse: Callable[[], None]) -> tuple[read_requests.Created, Draft]:
            same, most = self._service.naming(served), self._settings.inline_requests
            made = read_requests.create(
                body, model, same, most=most, text_bytes=self._settings.text_bytes, pulse=pulse
            )
            digest = None if key is None else _digest(served.name, body)
            return made, Draft(
                served.name, made.display_name, made.priority, key, digest, asked_model=model, run=run
            )

        made, draft = await to_thread.run_sync(await self._bodies.read(request, len(body), read))
        if self._service.waits_for_engine(draft, made.rows or ()):
            return json_answer(await self._engines.run(_bulk(served), self._create, draft, made))
        return json_answer(await to_thread.run_sync(self._create, draft, made))

    def _create(self, draft: Draft, made: read_requests.Created) -> dict[str, Any]:
        with in_words_of(routes.CREATE_BATCH):
            if made.rows is not None:
                batch = self._service.submit_inline(draft, made.rows)
            else:
                assert made.file_name is not None  # noqa: S101  (inputs.create gives one of the two)
                batch = self._service.submit_file(draft, made.file_name)
        return write_responses.operation(batch, output=False)

    async def get(self, request: Request, id: str) -> Response:  # noqa: A002  (the path's name for it)
        """Answer a batch; with its output once it is final, unless `view=BASIC`."""
        basic = read_queries.is_basic(request.query_params.get(routes.VIEW))
        batch, inline = await to_thread.run_sync(self._get, f"batches/{id}")
        if basic or not inline:
            return json_answer(write_responses.operation(batch, output=True))
        pieces = await self._results.run(self._with_items, batch)
        return StreamedResponse(self._results.stream(pieces), media_type="application/json")

    def _get(self, name: str) -> tuple[Batch, bool]:
        """Return a batch, and whether its results stand in the answer: a poll reads none."""
        batch = self._service.get(name)
        readable = batch.done and batch.state is not State.FAILED
        return batch, readable and self._service.inline(name)

    def _with_items(self, batch: Batch) -> Iterator[bytes]:
        return write_responses.operation_with_items(batch, begun(self._service.results(batch.name).parts))

    async def list(self, request: Request) -> Response:
        """Answer one page of batches, newest first, without output."""
        if request.query_params.get(routes.FILTER):
            raise InvalidArgument("filtering is not offered: leave filter out", field=routes.FILTER)
        size = read_queries.page_size(request.query_params.get(routes.PAGE_SIZE), *_BATCHES_A_PAGE)
        token = request.query_params.get(routes.PAGE_TOKEN) or None
        with in_words_of(routes.LIST_BATCHES):
            page = await to_thread.run_sync(self._service.list, size, token)
        operations = (write_responses.operation(one, output=False) for one in page.items)
        return json_answer(write_responses.page("operations", operations, page.next_page_token))

    async def cancel(self, id: str) -> Response:  # noqa: A002
        """Cancel a batch; one that is final already stays as it is."""
        await to_thread.run_sync(self._service.cancel, f"batches/{id}")
        return json_answer({})

    async def delete(self, id: str) -> Response:  # noqa: A002
        """Delete a final batch."""
        # What a run computed is kept under the identity of its engine, which only loading tells.
        await self._engines.run("delete", self._service.delete, f"batches/{id}")
        return json_answer({})

    async def update(self, request: Request, id: str) -> Response:  # noqa: A002
        """Change display name or priority; answer the bare batch, as Google does."""
        body = await small_body(request, "an update of a batch")
        mask = request.query_params.get(routes.UPDATE_MASK)
        read = await self._bodies.read(request, len(body), lambda _: read_requests.update(body, mask))

        def run() -> Batch:
            change = read()
            with in_words_of(routes.UPDATE_BATCH):
                return self._service.update(
                    f"batches/{id}", display_name=change.display_name, priority=change.priority
                )

        return json_answer(write_responses.batch_message(await to_thread.run_sync(run)))

    async def embeddings(self, request: Request, id: str) -> Response:  # noqa: A002
        """Answer the results as an Arrow stream."""
        numbers = request.query_params.get(routes.NUMBERS, "float32")
        if numbers not in set(Dtype):
            raise InvalidArgument(f"numbers is one of {', '.join(Dtype)}", field=routes.NUMBERS)
        dimensions = read_queries.integer(request.query_params.get(routes.DIMENSIONS), routes.DIMENSIONS)
        pieces = await self._results.run(self._embeddings, f"batches/{id}", dimensions, numbers)
        return StreamedResponse(self._results.stream(pieces), media_type=arrow.MEDIA_TYPE)

    def _embeddings(self, name: str, dimensions: int | None, numbers: str) -> Iterator[bytes]:
        results = self._service.results(name)
        if dimensions is not None and not 1 <= dimensions <= results.native:
            raise InvalidArgument(f"dimensions is from 1 to {results.native}", field="dimensions")
        # Without a wish, what all requests asked for; where they differ, the native number.
        size = dimensions or (results.dimensions if results.dimensions > 0 else None)
        return write_results.results_stream(begun(results.parts), results.native, size, numbers)

    # models

    async def models(self, request: Request) -> Response:
        """Answer the served models, the default first."""
        read_queries.page_size(request.query_params.get(routes.PAGE_SIZE), *_MODELS_A_PAGE)
        if request.query_params.get(routes.PAGE_TOKEN):
            raise InvalidArgument(
                "this page token is not one of ours: all models are on one page", field=routes.PAGE_TOKEN
            )
        served = await to_thread.run_sync(self._service.models)
        return json_answer(write_responses.page("models", map(_model, served)))

    async def model(self, model: str) -> Response:
        """Answer one model, under the name it was asked for."""
        if ":" in model:
            raise NotFound("there is no such method of a model")
        served = await to_thread.run_sync(self._service.model, model)
        return json_answer({**_model(served), "name": f"models/{model}"})


def _digest(model: str, body: bytes | bytearray) -> str:
    digest = hashlib.sha256(model.encode() + b"\0")
    digest.update(body)
    return digest.hexdigest()


def _bulk(served: ServedModel) -> str:
    return f"bulk {served.name}"


def _model(served: ServedModel) -> dict[str, Any]:
    return write_responses.model_message(
        served.name, served.dimensions, served.max_tokens, served.spec.engine
    )
