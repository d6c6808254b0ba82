"""How a face puts its handlers under the routes of a protocol, and answers a message in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from fastapi import APIRouter, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from embatch.wire.gemini.routes import Route

Handler: TypeAlias = "Callable[..., Any]"


def router(table: Iterable[tuple[Route, Handler, str]]) -> APIRouter:
    """Return the routes of a table, in its order: each with its handler and what it is for."""
    made = APIRouter()
    for route, handler, summary in table:
        for pattern in route.patterns():
            made.add_api_route(pattern, handler, methods=list(route.methods), summary=summary)
    return made


def json_answer(message: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a message as the answer."""
    return Response(orjson.dumps(message), headers=dict(headers or {}), media_type="application/json")
