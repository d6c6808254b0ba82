"""What an answer other than 2xx means: Google's envelope, or whatever a proxy put in its place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.backoff import seconds, wait_asked
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
    printable,
)
from embatch.wire.google import fields

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
_WORD: Final = 200
"""Most characters of the name of a field or a reason."""
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


def parse_error(status: int, headers: Mapping[str, str], body: bytes, via: str = "") -> EmbatchError:
    """Return the error that an answer means, whatever its body is.

    Args:
        status: the HTTP status, not 2xx.
        headers: names in lower case.
        body: Google's envelope, or whatever a proxy put in its place; what stands in it is cut, and shown
            without control characters.
        via: what to say of the way where there is no envelope, so that it may have been somebody on it who
            answered.
    """
    said = _envelope(body)
    code = Code.__members__.get(fields.text(said.get("status")) or "")
    if status == 413:
        kind: type[EmbatchError] = TooLarge
    elif code is not None:
        kind = _KINDS.get(code, Internal)
    else:
        kind = _BY_STATUS.get(status, InvalidArgument if 400 <= status < 500 else Internal)
    details = [one for one in fields.items(said.get("details")) if isinstance(one, dict)]
    violations = [
        v for one in details for v in fields.items(one.get("fieldViolations")) if isinstance(v, dict)
    ]
    violation = violations[0] if violations else {}
    reason = violation.get("reason") or next((one["reason"] for one in details if "reason" in one), None)
    message = fields.text(said.get("message"))
    return kind(
        f"the service answered HTTP {status} without a word{via}" if message is None else printable(message),
        field=_word(violation.get("field")),
        reason=_word(reason),
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
    delays = [re.fullmatch(r"([0-9.]{1,1000})s", fields.text(one.get("retryDelay")) or "") for one in details]
    waits = [wait for delay in delays if delay and (wait := seconds(delay[1])) is not None]
    return max(waits) if waits else wait_asked(headers)


def _word(said: object) -> str | None:
    text = fields.text(said)
    return None if text is None else printable(text, _WORD)
