"""The steps that are alike for all who speak Gemini's protocol: Google itself, and an embatch service."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from embatch.client.calls import SLOW, Call, Exchange
from embatch.client.providers.provider import Provider
from embatch.client.upload import send_file
from embatch.wire.gemini import read_responses, routes, write_requests
from embatch.wire.google import read_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embatch.batch import Batch, Model, Page, Request
    from embatch.client.calls import Flow, Reply, Sender, T
    from embatch.client.upload import FileUpload
    from embatch.errors import EmbatchError
    from embatch.vectors import ContentEmbedding
    from embatch.wire.gemini.routes import Route

JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class GeminiProtocol(Provider, ABC):
    """Who speaks it says how requests are written, what a submit carries beside, and how results come."""

    version: str = field(kw_only=True)
    """First part of every path."""

    def sign(self, key: str | None) -> Mapping[str, str]:
        """Send the key in Google's header."""
        return {} if key is None else {routes.API_KEY: key}

    def read_error(self, reply: Reply) -> EmbatchError:
        """Read Google's envelope, or what a proxy put in its place."""
        return read_errors.parse_error(reply.status, reply.headers, reply.body, reply.via)

    def upload(self, sender: Sender, upload: FileUpload) -> Flow[str]:
        """Upload in chunks that survive broken connections."""
        return (yield from send_file(sender, upload, self.version))

    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Write the requests as JSON."""
        return write_requests.create_body(model_path(model), display_name, priority, requests)

    def file_body(self, model: str, display_name: str, priority: int, file: str) -> bytes:
        """Name the file."""
        return write_requests.create_from_file_body(model_path(model), display_name, priority, file)

    def create(
        self, model: str, body: bytes, idempotency_key: str | None, run: str | None
    ) -> Exchange[Batch]:
        """Submit a body under its model."""
        headers = {**JSON, **self.create_headers(idempotency_key, run)}
        call = self.call(routes.CREATE_BATCH, model_path(model), headers=headers, body=body)
        return Exchange(call, self.read_batch)

    def create_headers(self, idempotency_key: str | None, run: str | None) -> Mapping[str, str]:  # noqa: ARG002
        """Return what a submit carries in its headers."""
        return {}

    def batches(self, size: int | None, token: str | None) -> Exchange[Page[Batch]]:
        """Ask for a page of operations."""
        return Exchange(self._list(routes.LIST_BATCHES, size, token), self._read_batches)

    def update(self, name: str, display_name: str | None, priority: int | None) -> Exchange[Batch]:
        """Change what is named in the field mask."""
        mask, body = write_requests.update_body(display_name, priority)
        call = self.call(routes.UPDATE_BATCH, name, {routes.UPDATE_MASK: mask}, headers=JSON, body=body)
        return Exchange(call, lambda body: self.shown(read_responses.parse_batch(body)))

    def shown(self, batch: Batch) -> Batch:
        """Return a batch as its user knows it."""
        return batch

    def read_batch(self, body: bytes) -> Batch:
        """Read an operation."""
        return self.shown(read_responses.parse_operation(body))

    def _read_batches(self, body: bytes) -> Page[Batch]:
        page = read_responses.parse_batches(body)
        return replace(page, items=tuple(map(self.shown, page.items)))

    def cancel(self, name: str) -> Call:
        """Stop a batch; the answer is empty."""
        return self.call(routes.CANCEL_BATCH, name)

    def delete(self, name: str) -> Call:
        """Delete a batch; the answer is empty."""
        return self.call(routes.DELETE_BATCH, name)

    def models(self, size: int | None, token: str | None) -> Exchange[Page[Model]]:
        """Ask for a page of models."""
        return Exchange(self._list(routes.LIST_MODELS, size, token), read_responses.parse_models)

    def embed(self, model: str, request: Request) -> Exchange[ContentEmbedding]:
        """Embed one text."""
        body = write_requests.embed_body(model_path(model), request)
        return self.at_once(routes.EMBED, model, body, read_responses.parse_embedding)

    def embed_many(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        """Embed a few texts."""
        body = write_requests.embed_many_body(model_path(model), requests)
        return self.at_once(routes.EMBED_MANY, model, body, read_responses.parse_embeddings)

    def count_tokens(self, model: str, texts: Sequence[str]) -> Exchange[int]:
        """Count tokens."""
        body = write_requests.count_body(model_path(model), texts)
        return self.at_once(routes.COUNT_TOKENS, model, body, read_responses.parse_count)

    def call(
        self,
        route: Route,
        name: str | None = None,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Call:
        """Return the call of a route; `name` is the resource's, `None` where there is only one."""
        return Call(route.method, route.path(self.version, name), query or {}, headers or {}, body)

    def at_once(self, route: Route, model: str, body: bytes, read: Callable[[bytes], T]) -> Exchange[T]:
        """Return an interactive call of a model."""
        call = self.call(route, model_path(model), headers=JSON, body=body)
        return Exchange(replace(call, patience=SLOW), read)

    def _list(self, route: Route, size: int | None, token: str | None) -> Call:
        query = {} if size is None else {routes.PAGE_SIZE: str(size)}
        if token is not None:
            query[routes.PAGE_TOKEN] = token
        return self.call(route, query=query)


def model_path(model: str) -> str:
    """Return `models/{model}` as it stands in a path."""
    return "models/" + quote(model, safe="/")
