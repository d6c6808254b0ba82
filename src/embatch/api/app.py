"""The application: Google's face, files, health, and for a private service the route that keeps it alive."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from embatch.api import files, gemini, private, private_models, problems, runs
from embatch.api.threads import Threads
from embatch.events import RequestEnded, emit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embatch.api.auth import Caller
    from embatch.api.private import Attached
    from embatch.service.application import Service
    from embatch.service.registry import Registry
    from embatch.settings import Settings


def create_app(
    service: Service,
    settings: Settings,
    *,
    attached: Attached | None = None,
    registry: Registry | None = None,
    threads: Threads | None = None,
) -> FastAPI:
    """Return the application over a service.

    A private one has two more routes: `attached` is what keeps it alive, and `registry` serves what models
    its clients ask for. All faces share `threads`, those of the whole application; `None` makes the usual
    number. Limits of size and time are the connection's (`api.limits`): an app called in-process has none.
    """
    app = FastAPI(
        title="embatch",
        version=version("embatch"),
        description="Asynchronous batch embeddings in Google's wire protocol.",
        redirect_slashes=False,  # a path with a slash too many is another path
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    app.include_router(_health(service))
    threads = threads or Threads()
    app.include_router(files.router(service, threads))
    app.include_router(gemini.router(service, settings, threads))
    app.include_router(runs.router(service, settings, threads))
    if attached is not None:
        app.include_router(private.router(attached))
    if registry is not None:
        app.include_router(private_models.router(registry))
    app.add_middleware(RequestLog)
    return app


def _health(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz", summary="Whether the process answers", include_in_schema=False)
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    @routes.get("/readyz", summary="Whether the service can work", include_in_schema=False)
    async def readyz(request: Request) -> Response:
        health = await anyio.to_thread.run_sync(service.health)
        said: dict[str, Any] = {"status": "ready" if health.ready else "unready"}
        caller = _caller(request.scope)
        # A stranger may ask whether it works, and not what its models are called.
        if not health.ready and (caller is None or caller.key is not None):
            said["reasons"] = list(health.reasons)
        return Response(
            orjson.dumps(said), status_code=200 if health.ready else 503, media_type="application/json"
        )

    return routes


def _caller(scope: Scope) -> Caller | None:
    """Return who asks; `None` where nobody is asked for a key."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    return caller


class RequestLog:
    """Logs a line for every request, by its route and not by its path: what a client wrote stays out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log how it ended; one whose client has gone ends here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, received, sent, whole = time.monotonic(), 0, 0, 0, False
        caller = _caller(scope)

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent, whole
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            status = 499
        except asyncio.CancelledError:  # the service ends, and the connection says so
            status = status or 503
            raise
        except Exception:
            status = 500
            raise
        finally:
            emit(
                RequestEnded(
                    method=scope["method"] if scope["method"].isalpha() else "?",
                    route=getattr(scope.get("route"), "path", None),
                    status=status,
                    ms=round(1000 * (time.monotonic() - begun), 1),
                    bytes_in=received,
                    bytes_out=sent,
                    key=None if caller is None else caller.key,
                    torn=not whole and status not in (499, 500, 503),
                )
            )
