"""What cannot be sent is refused by the client, before anything is, with the request and the field."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from embatch.batch import Request, TaskType
from embatch.client.payload import blocks, request
from embatch.errors import InvalidArgument
from embatch.wire import bodies

LIKE = Request("")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("key", {"key": "a\ud800"}),
        ("title", {"title": "\udfff", "task_type": TaskType.RETRIEVAL_DOCUMENT}),
        ("metadata", {"metadata": {"t": ["\ud800"]}}),
        ("metadata", {"metadata": {"\ud800": 1}}),
        ("metadata", {"metadata": {"s": {1, 2}}}),
        ("metadata", {"metadata": [1]}),
    ],
)
@pytest.mark.parametrize("count", [3, 1500])
def test_a_request_that_json_cannot_say(field: str, said: dict[str, Any], count: int) -> None:
    """However many there are: inline and in a file."""
    given: list[str | Request] = [Request(f"text {at}") for at in range(count)]
    given[2] = Request("two", **said)
    with pytest.raises(InvalidArgument, match=rf"requests\[2\]\.{field}") as refused:
        list(blocks(given, LIKE, 1000))
    assert refused.value.field == f"requests[2].{field}"


def test_a_text_with_a_lone_surrogate_still_fails_alone() -> None:
    """It is sent as no text; metadata may be any mapping."""
    metadata = MappingProxyType({"n": 10**20})
    kept = request(Request("\ud800", key="k", metadata=metadata), 0, LIKE)
    body = bodies.create_body("m", "d", 0, [kept])
    assert b'"text":null' in body
    assert b'"n":100000000000000000000' in body


def test_what_is_no_requests_is_refused_too() -> None:
    """A display name has the same letters."""
    with pytest.raises(InvalidArgument, match="lone surrogate"):
        bodies.create_body("m", "\ud800", 0, [Request("a")])
