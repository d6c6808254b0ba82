"""The models that clients ask a private service for: never on one that others share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from embatch.api.bodies import small_body
from embatch.api.routing import json_answer
from embatch.engine.references import ModelReference
from embatch.wire import private

if TYPE_CHECKING:
    from embatch.service.registry import Registry


def router(registry: Registry) -> APIRouter:
    """Return the route over a registry."""
    routes = APIRouter()

    @routes.post(private.MODELS, include_in_schema=False)
    async def serve(request: Request) -> Response:
        """Serve a model, or say how far its files are."""
        wanted = private.read_wanted(await small_body(request, "what is asked of a model"))
        reference = ModelReference(
            wanted.folder, wanted.model, wanted.revision, wanted.engine, wanted.precision, wanted.options
        )
        serving = await to_thread.run_sync(registry.serve, reference)
        answer = private.ModelAnswer(serving.name, serving.fetched, serving.total)
        return json_answer(private.write_answer(answer))

    return routes
