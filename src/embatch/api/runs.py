"""What a run asks besides batches: the reference path, and the end of the run. Additions of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response

from embatch.api.bodies import large_body
from embatch.wire.gemini import read_requests, write_responses

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.api.threads import Threads
    from embatch.engine.models import ServedModel
    from embatch.service.application import Service
    from embatch.settings import Settings
    from embatch.shard import RequestRow


def router(service: Service, settings: Settings, threads: Threads, versions: tuple[str, ...]) -> APIRouter:
    """Return the routes over a service."""
    face = _Runs(service, settings, threads)
    routes = APIRouter()
    table: tuple[tuple[str, Callable[..., Any], str], ...] = (
        ("/models/{model:path}:embedReference", face.reference, "Embed by the reference path"),
        ("/runs/{run}:publish", face.publish, "Let a run's vectors answer later runs"),
    )
    for version in versions:
        for path, handler, summary in table:
            routes.add_api_route(f"/{version}{path}", handler, methods=["POST"], summary=summary)
    return routes


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
        found = self._service.interactive.reference(served.name, rows())
        about = found.compared
        engine = {
            "name": about.engine,
            "identity": about.identity,
            "precision": about.precision,
            "maxTokens": about.max_tokens,
            "files": dict(about.files),
        }
        said = write_responses.reference(found.results, found.tokens, found.cpu_seconds, engine)
        return Response(said, media_type="application/json")

    async def publish(self, run: str) -> dict[str, str]:
        """Answer the end of a run."""
        return {"newVectorCount": str(await to_thread.run_sync(self._service.publish, run))}
