"""Errors on their way out: every one becomes Google's envelope, names its field, and says when to come back.

{"error": {"code": 400, "message": …, "status": "INVALID_ARGUMENT", "details": [BadRequest?, RetryInfo?]}}
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from embatch.errors import Code, EmbatchError, TooLarge, Unavailable
from embatch.events import BugAnswered, FaultAnswered, emit

if TYPE_CHECKING:
    from collections.abc import Mapping

_RPC: Final = "type.googleapis.com/google.rpc."
_BY_HTTP: Final = {
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    413: Code.INVALID_ARGUMENT,
    400: Code.INVALID_ARGUMENT,
}
_RETURN_SECONDS: Final = 5.0
"""How long a service that ends may take until it is there again, with its models not yet loaded."""


def install(app: FastAPI) -> None:
    """Make the application answer every error in the envelope."""
    app.add_exception_handler(EmbatchError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)


def answer(error: EmbatchError) -> Response:
    """Return the answer to an error of ours."""
    details: list[dict[str, Any]] = []
    if error.field is not None or error.reason is not None:
        violation = {"field": error.field or "", "description": error.message}
        if error.reason is not None:
            violation["reason"] = error.reason
        details.append({"@type": f"{_RPC}BadRequest", "fieldViolations": [violation]})
    headers = {}
    if error.retry_after is not None:
        details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{error.retry_after:.3f}s"})
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    http = 413 if isinstance(error, TooLarge) else error.code.http
    return envelope(http, error.message, error.code, details, headers)


def leaving() -> Unavailable:
    """Return the error of a call that the end of the service cuts short: the next start answers it."""
    return Unavailable(
        "the service is ending: ask again once it has been started anew",
        reason="SHUTTING_DOWN",
        retry_after=_RETURN_SECONDS,
    )


def envelope(
    http: int,
    message: str,
    code: Code,
    details: list[dict[str, Any]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return Google's error envelope."""
    error: dict[str, Any] = {"code": http, "message": message, "status": code.name}
    if details:
        error["details"] = details
    return Response(
        orjson.dumps({"error": error}), http, headers=dict(headers or {}), media_type="application/json"
    )


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, EmbatchError)  # noqa: S101  (registered for it)
    if error.code in (Code.INTERNAL, Code.DATA_LOSS):
        emit(FaultAnswered(status=error.code.name, message=error.message))
    return answer(error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    words = HTTPStatus(error.status_code).phrase
    code = _BY_HTTP.get(error.status_code, Code.INTERNAL)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        return envelope(405, f"{request.method} is not a method of this address", code, headers=headers)
    return envelope(error.status_code, f"{words}: there is nothing at this address", code, headers=headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    violation = {"field": field, "description": first["msg"]}
    details = [{"@type": f"{_RPC}BadRequest", "fieldViolations": [violation]}]
    return envelope(400, f"{field}: {first['msg']}", Code.INVALID_ARGUMENT, details)


async def _bug(_: Request, error: Exception) -> Response:
    return bug(error)


def bug(error: Exception) -> Response:
    """Tell of an error that is nobody's; return the answer to it."""
    emit(BugAnswered(kind=type(error).__name__, exception=error))
    return envelope(500, "an error of the service: its log says more", Code.INTERNAL)
