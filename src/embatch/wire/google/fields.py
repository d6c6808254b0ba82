"""Fields of an answer of Google's, read tolerantly: what is left out, or is of another kind, is no error."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch import jsontext
from embatch.errors import Code, Internal, Reason, RequestError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.vectors import Vectors

_INT64: Final = range(-(1 << 63), 1 << 63)


def whole_object(body: bytes) -> dict[str, Any]:
    """Return the object that an answer is. Raises `Internal` for anything else."""
    try:
        said = jsontext.loads(body)
    except ValueError:  # also an integer of more digits than Python reads
        said = None
    if not isinstance(said, dict):
        raise Internal(
            "the service's answer is not a JSON object: is this the address of an embatch service?"
        )
    return said


def mapping(said: object) -> dict[str, Any]:
    """Return an object, empty for anything else."""
    return said if isinstance(said, dict) else {}


def items(said: object) -> list[Any]:
    """Return a list, empty for anything else."""
    return said if isinstance(said, list) else []


def text(said: object) -> str | None:
    """Return a text that is not empty."""
    return said if isinstance(said, str) and said else None


def count(said: object) -> int:
    """Return an int64, which stands in JSON as a string, or as a number, or not at all."""
    if isinstance(said, bool):
        return 0
    try:
        number = int(said)  # type: ignore[call-overload]  # what is no number is caught
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if number in _INT64 else 0


def time(said: object) -> datetime | None:
    """Return a time of RFC 3339 in UTC; digits beyond microseconds are cut."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", text(said) or "")
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(match[1] + match[3]).astimezone(UTC)
    except (ValueError, OverflowError):  # the first and last hours of all time are none in UTC
        return None
    return whole + timedelta(microseconds=int((match[2] or ".")[1:7].ljust(6, "0")))


def values(said: object) -> Vectors | None:
    """Return the numbers of an embedding; `None` where there is none."""
    numbers = said.get("values") if isinstance(said, dict) else None
    if not isinstance(numbers, list) or not numbers:
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(numbers, np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    # None reads as NaN, and what float32 cannot hold as infinity: neither is an embedding.
    return array if array.ndim == 1 and np.isfinite(array).all() else None


def request_error(said: Mapping[str, Any]) -> RequestError:
    """Return why one request failed, from a `google.rpc.Status`."""
    code = Code.of_number(count(said.get("code")))
    message = printable(text(said.get("message")) or f"the service said {code.name} and no more")
    reasons = [one.get("reason") for one in items(said.get("details")) if isinstance(one, dict)]
    reason = next((Reason(word) for word in map(text, reasons) if word in Reason.__members__), None)
    return RequestError(code, reason, message)
