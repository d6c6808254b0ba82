"""What a run asks besides batches: the reference path, and the end of the run. Additions of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread
from fastapi import Request  # noqa: TC002  (read at run time, by FastAPI)
from fastapi.responses import Response

from embatch.api import routing
from embatch.api.bodies import large_body
from embatch.api.routing import json_answer
from embatch.wire.gemini import read_requests, routes, write_responses
from embatch.wire.gemini.write_errors import in_words_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from embatch.api.threads import Threads
    from embatch.engine.models import ServedModel
    from embatch.service.application import Service
    from embatch.settings import Settings
    from embatch.shard import RequestRow


def router(service: Service, settings: Settings, threads: Threads) -> APIRouter:
    """Return the routes over a service."""
    face = _Runs(service, settings, threads)
    return routing.router(
        (
            (routes.EMBED_REFERENCE, face.reference, "Embed by the reference path"),
            (routes.PUBLISH_RUN, face.publish, "Let a run's vectors answer later runs"),
        )
    )


class _Runs:
    """The handlers."""

    def __init__(self, service: Service, settings: Settings, threads: Threads) -> None:
        self._service, self._settings = service, settings
        self._engines, self._bodies = threads.engines, threads.bodies

    async def reference(self, request: Request, model: str) -> Response:
        """Answer `embedReference`: a few texts in float32, one at a time; none at all only get it ready."""
        body = await large_body(request)
        served = self._service.model(model)
        same, most = self._service.naming(served), self._settings.interactive_requests
        rows = await self._bodies.read(
            request,
            len(body),
            lambda pulse: read_requests.embed_many(
                body, same, most, least=0, text_bytes=self._settings.text_bytes, pulse=pulse
            ),
        )
        return await self._engines.run(f"reference {served.name}", self._reference, rows, served)

    def _reference(self, rows: Callable[[], list[RequestRow]], served: ServedModel) -> Response:
        requests = rows()
        with in_words_of(routes.EMBED_REFERENCE):
            found = self._service.interactive.reference(served.name, requests)
        about = found.compared
        engine = write_responses.engine_message(
            about.engine, about.identity, about.precision, about.max_tokens, about.files
        )
        said = write_responses.reference(found.results, found.tokens, found.cpu_seconds, engine)
        return Response(said, media_type="application/json")

    async def publish(self, run: str) -> Response:
        """Answer the end of a run."""
        with in_words_of(routes.PUBLISH_RUN):
            vectors = await to_thread.run_sync(self._service.publish, run)
        return json_answer(write_responses.published(vectors))
