"""Errors on their way out: Google's envelope, and what is wrong told in Google's words.

    {"error": {"code": 400, "message": …, "status": "INVALID_ARGUMENT", "details": [BadRequest?, RetryInfo?]}}

The service names its own fields (`requests[3].task_type`) and tells facts (a file is not there). Which path a
field has on the wire depends on what was asked for, and so does what a missing file is.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import Code, EmbatchError, NoSuchFile, PermissionDenied, TooLarge
from embatch.wire.gemini import routes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embatch.wire.gemini.routes import Route

_TYPE: Final = "type.googleapis.com/google.rpc."
_DOMAIN: Final = "embatch"
_CODES: Final[Mapping[int, Code]] = {
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    408: Code.DEADLINE_EXCEEDED,
    503: Code.UNAVAILABLE,
}
"""What the HTTP status of a refusal means where it is another than the request being wrong."""

_ENTRY: Final = re.compile(r"requests\[([0-9]+)\](?:\.([a-z_]+))?")
_SPELLINGS: Final = {
    "auto_truncate": "autoTruncate",
    "output_dimensionality": "outputDimensionality",
    "task_type": "taskType",
}
"""Names of ours that stand in messages, in Google's spelling."""
_NAMED: Final = re.compile(rf"(?:^|(?<= ))(?:{'|'.join(_SPELLINGS)})(?= )")
"""One as a word of a sentence. With a dot, a quote or a colon it is somebody's own spelling, which stays."""
_FIELDS: Final[Mapping[str, str]] = {
    **_SPELLINGS,
    "idempotency_key": routes.IDEMPOTENCY_KEY,
    "page_size": routes.PAGE_SIZE,
    "page_token": routes.PAGE_TOKEN,
    "run": routes.RUN,
    "text": "content",
}
"""Fields that have the same name wherever they stand; all others are spelled as ours are."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where fields of ours stand in the message of one route."""

    fields: Mapping[str, str] = field(default_factory=dict)
    requests: str = "requests"
    """The list of requests."""
    entry: str = "requests[{at}]{field}"
    """A request in it, and its field with the dot before it."""


_BATCH: Final = {"display_name": "batch.displayName", "priority": "batch.priority"}
_REQUESTS: Final = "batch.inputConfig.requests.requests"
_PLACES: Final[Mapping[Route, _Places]] = {
    routes.EMBED: _Places(entry="{field}"),
    routes.CREATE_BATCH: _Places(
        {**_BATCH, "input_file": "batch.inputConfig.fileName"},
        _REQUESTS,
        f"{_REQUESTS}[{{at}}].request{{field}}",
    ),
    routes.UPDATE_BATCH: _Places(_BATCH),
    routes.UPLOAD: _Places(
        {
            "display_name": "file.displayName",
            "file_id": "file.name",
            "offset": routes.UPLOAD_OFFSET,
            "size": "file.sizeBytes",
        }
    ),
}
_NOWHERE: Final = _Places()


@contextmanager
def in_words_of(route: Route) -> Iterator[None]:
    """Let errors of the service go on as what they are on the wire, in answer to what was asked for."""
    try:
        yield
    except EmbatchError as error:
        raise on_the_wire(error, route) from error


def on_the_wire(error: EmbatchError, route: Route) -> EmbatchError:
    """Return an error of the service in Google's words: a field is one of the route's message or headers."""
    place = None if error.field is None else _place(error.field, _PLACES.get(route, _NOWHERE))
    if isinstance(error, NoSuchFile):
        return PermissionDenied(_not_there(error.file_id), field=place, reason=error.reason)
    message = spelled(error.message)
    return type(error)(message, field=place, reason=error.reason, retry_after=error.retry_after)


def _place(name: str, places: _Places) -> str:
    if (entry := _ENTRY.fullmatch(name)) is not None:
        at, inner = entry.groups()
        spelling = "" if inner is None else _FIELDS.get(inner, inner)
        return places.entry.format(at=at, field=spelling and f".{spelling}").removeprefix(".")
    if name == "requests":
        return places.requests
    return places.fields.get(name) or _FIELDS.get(name, name)


def _not_there(file_id: str | None) -> str:
    """Return Google's words for a file that is missing, which it does not tell from one that is not yours."""
    if file_id is None:
        return (
            "You do not have permission to access the File or it may not exist: a file is named files/{id}."
        )
    return f"You do not have permission to access the File {file_id[:64]} or it may not exist."


def spelled(message: str) -> str:
    """Return a message of ours with the names of fields in Google's spelling."""
    return _NAMED.sub(lambda name: _SPELLINGS[name[0]], message)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What goes out in place of what was asked for."""

    http: int
    body: bytes
    """JSON."""
    headers: Mapping[str, str]


def answer(error: EmbatchError) -> ErrorAnswer:
    """Return the answer to an error; `field` is where it stands on the wire."""
    details: list[dict[str, Any]] = []
    if error.field is not None or error.reason is not None:
        details.append(violation(error.field or "", error.message, error.reason))
    http = 413 if isinstance(error, TooLarge) else error.code.http
    return _answer(http, error.message, error.code, details, error.retry_after)


def refusal(http: int, message: str, reason: str, retry_after: float | None = None) -> ErrorAnswer:
    """Return the answer to what is not read any further: a request refused for its form, size or time."""
    details = [{"@type": f"{_TYPE}ErrorInfo", "reason": reason, "domain": _DOMAIN}]
    return _answer(http, message, _CODES.get(http, Code.INVALID_ARGUMENT), details, retry_after)


def plain(http: int, message: str, details: Sequence[dict[str, Any]] = ()) -> ErrorAnswer:
    """Return the answer to an HTTP error of no reason of ours."""
    code = _CODES.get(http, Code.INVALID_ARGUMENT if http in (400, 413) else Code.INTERNAL)
    return _answer(http, message, code, details)


def violation(field: str, description: str, reason: str | None = None) -> dict[str, Any]:
    """Return the detail that names the field at fault."""
    fault = {"field": field, "description": description}
    if reason is not None:
        fault["reason"] = reason
    return {"@type": f"{_TYPE}BadRequest", "fieldViolations": [fault]}


def _answer(
    http: int, message: str, code: Code, details: Sequence[dict[str, Any]], retry_after: float | None = None
) -> ErrorAnswer:
    error: dict[str, Any] = {"code": http, "message": message, "status": code.name}
    headers = {}
    if retry_after is not None:
        details = [*details, {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{retry_after:.3f}s"}]
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if details:
        error["details"] = details
    return ErrorAnswer(http, orjson.dumps({"error": error}), headers)
