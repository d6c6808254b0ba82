"""Answers of services, tolerantly read: whatever comes, it is a value or an error of ours."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch import Code, EmbatchError, Internal, State, TooLarge, Unavailable
from embatch.wire.gemini import read_responses
from embatch.wire.gemini.states import WORDS
from embatch.wire.google.read_errors import parse_error

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = """
    name metadata state batchStats requestCount output response error code status embedding values
    inlinedResponses operations nextPageToken details createTime key models file reason fieldViolations
"""
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=5)
    ),
    max_leaves=25,
)
READERS: list[Callable[[bytes], Any]] = [
    read_responses.parse_operation,
    read_responses.parse_batch,
    read_responses.parse_batches,
    read_responses.parse_models,
    read_responses.parse_items,
    read_responses.parse_line,
    read_responses.parse_embedding,
    read_responses.parse_embeddings,
    read_responses.parse_file_name,
]


@given(JSON.filter(lambda said: not isinstance(said, int) or abs(said) < 2**63), st.sampled_from(READERS))
def test_no_answer_breaks_a_reader(said: object, read: Callable[[bytes], Any]) -> None:
    """A foreign or broken service leads to an error of ours, never to one of Python's."""
    try:
        body = orjson.dumps(said)
    except TypeError:  # an integer beyond 64 bits, deeper down
        return
    with contextlib.suppress(EmbatchError):
        read(body)


@given(st.binary(max_size=40), st.integers(300, 599), JSON)
def test_every_refusal_is_an_error_of_ours(body: bytes, status: int, said: object) -> None:
    """Whatever the body of a refusal is."""
    assert isinstance(parse_error(status, {}, body), EmbatchError)
    try:
        envelope = orjson.dumps({"error": said})
    except TypeError:
        return
    assert isinstance(parse_error(status, {}, envelope), EmbatchError)


def refusal(status: int, word: str | None = None, **headers: str) -> EmbatchError:
    """Return the error of a refusal."""
    body = b"" if word is None else orjson.dumps({"error": {"status": word, "message": "told so"}})
    return parse_error(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_refusals_without_an_envelope_go_by_their_status() -> None:
    """A proxy's page says nothing but its number."""
    assert [type(refusal(status)).__name__ for status in (400, 401, 403, 404, 408, 413, 418, 429)] == [
        "InvalidArgument",
        "Unauthenticated",
        "PermissionDenied",
        "NotFound",
        "Unavailable",
        "TooLarge",
        "InvalidArgument",
        "ResourceExhausted",
    ]
    assert [type(refusal(status)) for status in (500, 501, 502, 503, 504)] == [
        Internal,
        Internal,
        Unavailable,
        Unavailable,
        Unavailable,
    ]
    assert isinstance(refusal(413, "INVALID_ARGUMENT"), TooLarge)
    assert refusal(404).message == "the service answered HTTP 404 without a word"


def test_retry_after_as_a_date_is_read_by_the_services_clock() -> None:
    """Ours may be wrong by minutes."""
    date, later = "Mon, 01 Jun 2026 10:00:00 GMT", "Mon, 01 Jun 2026 10:00:30 GMT"
    assert refusal(503, date=date, retry_after=later).retry_after == 30.0
    assert refusal(503, date=later, retry_after=date).retry_after is None
    assert refusal(503, retry_after=later).retry_after is None
    assert refusal(503, retry_after="soon").retry_after is None


def test_the_field_and_reason_of_a_violation() -> None:
    """They come through as the service named them."""
    violation = {"field": "batch.inputConfig", "description": "…", "reason": "EMPTY_BATCH"}
    details = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}]
    body = orjson.dumps({"error": {"status": "INVALID_ARGUMENT", "message": "no", "details": details}})
    error = parse_error(400, {}, body)
    assert (error.field, error.reason) == ("batch.inputConfig", "EMPTY_BATCH")


def operation(**metadata: Any) -> bytes:
    """Return an operation."""
    return orjson.dumps({"name": "batches/b", "metadata": {"model": "models/m", **metadata}})


def test_words_for_states() -> None:
    """Google's own, and the SDK's for the same; an unknown one of an unfinished batch is an error."""
    read = {
        state: read_responses.parse_operation(operation(state=word)).state for state, word in WORDS.items()
    }
    assert read == {state: state for state in State}
    unspecified = operation(state="BATCH_STATE_UNSPECIFIED")
    assert read_responses.parse_operation(unspecified).state is State.PENDING
    assert read_responses.parse_operation(operation(state="JOB_STATE_RUNNING")).state is State.PROCESSING
    assert read_responses.parse_operation(operation()).state is State.PENDING
    with pytest.raises(Internal, match="does not know"):
        read_responses.parse_operation(operation(state="BATCH_STATE_PAUSED"))
    done = {"name": "batches/b", "done": True, "metadata": {"state": "BATCH_STATE_PARTIAL"}}
    assert read_responses.parse_operation(orjson.dumps(done)).state is State.COMPLETED
    assert read_responses.parse_operation(orjson.dumps({**done, "error": {"code": 8}})).state is State.FAILED


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-06-01T10:00:00Z", datetime(2026, 6, 1, 10, tzinfo=UTC)),
        ("2026-06-01T10:00:00.5Z", datetime(2026, 6, 1, 10, 0, 0, 500_000, UTC)),
        ("2026-06-01T10:00:00.123456789Z", datetime(2026, 6, 1, 10, 0, 0, 123_456, UTC)),
        ("2026-06-01T12:00:00+02:00", datetime(2026, 6, 1, 10, tzinfo=UTC)),
        ("2026-13-01T10:00:00Z", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_times(text: str | None, time: datetime | None) -> None:
    """RFC 3339 with any number of digits, in UTC; what is no time is none."""
    assert read_responses.parse_operation(operation(createTime=text)).create_time == time


def test_outcomes_of_single_requests() -> None:
    """Damaged lines, empty outcomes and a status that says all is well."""
    assert read_responses.parse_line(b'{"key": "a", "resp').error is not None
    nothing = read_responses.parse_line(b'{"key": "a"}')
    assert nothing.key == "a"
    assert nothing.error is not None
    assert nothing.error.code is Code.INTERNAL
    fine = read_responses.parse_line(
        b'{"key": "a", "status": {"code": 0}, "response": {"embedding": {"values": [1]}}}'
    )
    assert fine.error is None
    assert fine.values is not None
    for values in (b"[]", b"[null]", b"[1e39]", b'["x"]', b"[[1]]", b"{}"):
        empty = read_responses.parse_line(b'{"response": {"embedding": {"values": ' + values + b"}}}")
        assert empty.error is not None, values
    bare = read_responses.parse_line(b'{"error": {"code": 8}}')
    assert bare.error is not None
    assert (bare.error.code, bare.error.message) == (
        Code.RESOURCE_EXHAUSTED,
        "the service said RESOURCE_EXHAUSTED and no more",
    )


def test_output_under_every_name_it_comes_by() -> None:
    """Doubled, flat, under the key that Google's SDK also reads, under metadata or response."""
    rows = [{"response": {"embedding": {"values": [1.0]}}}]
    doubled = {"inlinedResponses": {"inlinedResponses": rows}}
    for output in (
        doubled,
        {"inlinedResponses": rows},
        {"inlinedEmbedContentResponses": doubled["inlinedResponses"]},
    ):
        for said in ({"metadata": {"output": output}}, {"metadata": {}, "response": output}):
            found = read_responses.parse_items(orjson.dumps(said))
            assert found is not None
            assert found[0].values is not None
    assert read_responses.parse_items(orjson.dumps({"metadata": {}})) is None
