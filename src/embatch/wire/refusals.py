"""What an answer other than 2xx means: Google's envelope, or whatever a proxy put in its place."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import (
    AlreadyExists,
    Code,
    DataLoss,
    EmbatchError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS: Final[Mapping[Code, type[EmbatchError]]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.OUT_OF_RANGE: InvalidArgument,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.RESOURCE_EXHAUSTED: ResourceExhausted,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: Unavailable,
    Code.ABORTED: Unavailable,
    Code.DATA_LOSS: DataLoss,
}
_BY_STATUS: Final = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    409: AlreadyExists,
    413: TooLarge,
    429: ResourceExhausted,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def parse_error(status: int, headers: Mapping[str, str], body: bytes) -> EmbatchError:
    """Return the error that an answer means, whatever its body is.

    Args:
        status: the HTTP status, not 2xx.
        headers: names in lower case.
        body: Google's envelope, or whatever a proxy put in its place.
    """
    said = _envelope(body)
    code = Code.__members__.get(str(said.get("status")))
    if status == 413:
        kind: type[EmbatchError] = TooLarge
    elif code is not None:
        kind = _KINDS.get(code, Internal)
    else:
        kind = _BY_STATUS.get(status, InvalidArgument if 400 <= status < 500 else Internal)
    details = [one for one in _list(said.get("details")) if isinstance(one, dict)]
    violations = [v for one in details for v in _list(one.get("fieldViolations")) if isinstance(v, dict)]
    violation = violations[0] if violations else {}
    reason = violation.get("reason") or next((one["reason"] for one in details if "reason" in one), None)
    message = said.get("message")
    return kind(
        message
        if isinstance(message, str) and message
        else f"the service answered HTTP {status} without a word",
        field=_text(violation.get("field")),
        reason=_text(reason),
        retry_after=_retry_after(headers, details),
    )


def _envelope(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict) else {}


def _retry_after(headers: Mapping[str, str], details: list[dict[str, Any]]) -> float | None:
    """Return the wait that RetryInfo asks for, else the header, which knows whole seconds only."""
    waits = []
    for one in details:
        delay = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)s", str(one.get("retryDelay")))
        if delay is not None:
            waits.append(float(delay[1]))
    header = "" if waits else headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header):
        waits.append(float(header))
    elif header:
        try:
            until = parsedate_to_datetime(header)
            # The service's own clock tells what its date means.
            now = parsedate_to_datetime(headers["date"])
        except (ValueError, TypeError, KeyError):
            pass
        else:
            waits.append((until - now).total_seconds())
    return max((wait for wait in waits if wait > 0), default=None)


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _text(said: object) -> str | None:
    return said if isinstance(said, str) and said else None
