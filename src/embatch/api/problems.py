"""Errors on their way out: each becomes an envelope, names its field, and says when to come back."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from embatch.errors import Code, EmbatchError, Unavailable
from embatch.events import BugAnswered, FaultAnswered, emit
from embatch.wire.gemini import write_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

_RETURN_SECONDS: Final = 5.0
"""How long a service that ends may take until it is there again, with its models not yet loaded."""


def install(app: FastAPI) -> None:
    """Make the application answer every error in the envelope."""
    app.add_exception_handler(EmbatchError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)


def answer(error: EmbatchError) -> Response:
    """Return the answer to an error of ours, its field as it stands on the wire."""
    return _response(write_errors.answer(error))


def leaving() -> Unavailable:
    """Return the error of a call that the end of the service cuts short: the next start answers it."""
    return Unavailable(
        "the service is ending: ask again once it has been started anew",
        reason="SHUTTING_DOWN",
        retry_after=_RETURN_SECONDS,
    )


def _response(made: write_errors.ErrorAnswer, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        made.body, made.http, headers={**(headers or {}), **made.headers}, media_type="application/json"
    )


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, EmbatchError)  # noqa: S101  (registered for it)
    if error.code in (Code.INTERNAL, Code.DATA_LOSS):
        emit(FaultAnswered(status=error.code.name, message=error.message))
    return answer(error)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 405:
        words = f"{request.method} is not a method of this address"
    else:
        words = f"{HTTPStatus(error.status_code).phrase}: there is nothing at this address"
    return _response(write_errors.plain(error.status_code, words), error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    details = [write_errors.violation(field, first["msg"])]
    return _response(write_errors.plain(400, f"{field}: {first['msg']}", details))


async def _bug(_: Request, error: Exception) -> Response:
    return bug(error)


def bug(error: Exception) -> Response:
    """Tell of an error that is nobody's; return the answer to it."""
    emit(BugAnswered(kind=type(error).__name__, exception=error))
    return _response(write_errors.plain(500, "an error of the service: its log says more"))
