"""What a stand-in answers, and Google's error envelope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hosted.behaviour import Details

WORDS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
MESSAGES = {
    429: "You exceeded your current quota, please check your plan and billing details.",
    500: "Internal error encountered.",
    503: "The service is currently unavailable.",
    504: "The request timed out. Please try again.",
}
_TYPE = "type.googleapis.com/google.rpc."


@dataclass
class Reply:
    """An answer; a body that is a path is that file's content."""

    status: int = 200
    body: bytes | Path = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


def say(value: object, status: int = 200, **headers: str) -> Reply:
    """Answer JSON; `_` in the names of headers stands for a hyphen."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


class Refused(Exception):
    """A call ends with an error of the service."""

    def __init__(
        self, status: int, message: str = "", details: Sequence[dict[str, Any]] = (), word: str = ""
    ) -> None:
        super().__init__(message)
        self.reply = envelope(status, message, details, word)


def envelope(status: int, message: str = "", details: Sequence[dict[str, Any]] = (), word: str = "") -> Reply:
    """Write an error as Google does."""
    error: dict[str, Any] = {
        "code": status,
        "message": message or MESSAGES.get(status, "The request failed."),
        "status": word or WORDS[status],
    }
    return Reply(status, orjson.dumps({"error": {**error, **({"details": [*details]} if details else {})}}))


def details(kind: Details, seconds: float) -> list[dict[str, Any]]:
    """Return the details of a refusal for quota."""
    links = [
        {"description": "Learn more about Gemini API quotas", "url": "https://ai.google.dev/gemini-api/docs"}
    ]
    aid = {"@type": f"{_TYPE}Help", "links": links}
    again = {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"}
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/embed_content_requests",
        "quotaId": "EmbedContentRequestsPerMinutePerProjectPerModel",
        "quotaDimensions": {"location": "global", "model": "gemini-embedding-001"},
        "quotaValue": "3000",
    }
    failure = {"@type": f"{_TYPE}QuotaFailure", "violations": [violation]}
    kinds: dict[Details, list[dict[str, Any]]] = {
        "none": [],
        "help": [aid],
        "retry": [again],
        "quota": [failure, aid, again],
    }
    return kinds[kind]


def key_problem() -> Refused:
    """Return what a wrong API key is told."""
    info = {
        "@type": f"{_TYPE}ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    return Refused(400, "API key not valid. Please pass a valid API key.", [info])
