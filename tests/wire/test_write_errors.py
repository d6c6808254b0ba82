"""Errors of the service in Google's words: where a field stands, and what a fact is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from embatch.errors import (
    AlreadyExists,
    EmbatchError,
    InvalidArgument,
    NoSuchFile,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from embatch.wire.gemini import routes
from embatch.wire.gemini.write_errors import answer, in_words_of, on_the_wire, plain, refusal, spelled

if TYPE_CHECKING:
    from embatch.wire.gemini.routes import Route

REQUESTS = "batch.inputConfig.requests.requests"


@pytest.mark.parametrize(
    ("route", "field", "place"),
    [
        (routes.CREATE_BATCH, "requests", REQUESTS),
        (routes.CREATE_BATCH, "requests[3]", f"{REQUESTS}[3].request"),
        (routes.CREATE_BATCH, "requests[3].task_type", f"{REQUESTS}[3].request.taskType"),
        (
            routes.CREATE_BATCH,
            "requests[12].output_dimensionality",
            f"{REQUESTS}[12].request.outputDimensionality",
        ),
        (routes.CREATE_BATCH, "display_name", "batch.displayName"),
        (routes.CREATE_BATCH, "priority", "batch.priority"),
        (routes.CREATE_BATCH, "input_file", "batch.inputConfig.fileName"),
        (routes.CREATE_BATCH, "idempotency_key", "Idempotency-Key"),
        (routes.CREATE_BATCH, "run", "Embatch-Run"),
        (routes.CREATE_BATCH, "model", "model"),
        (routes.UPDATE_BATCH, "display_name", "batch.displayName"),
        (routes.EMBED_MANY, "requests[0].text", "requests[0].content"),
        (routes.EMBED_MANY, "requests[7].output_dimensionality", "requests[7].outputDimensionality"),
        (routes.EMBED_MANY, "requests", "requests"),
        (routes.EMBED, "requests[0].text", "content"),
        (routes.EMBED, "requests[0].output_dimensionality", "outputDimensionality"),
        (routes.LIST_BATCHES, "page_token", "pageToken"),
        (routes.LIST_FILES, "page_size", "pageSize"),
        (routes.UPLOAD, "file_id", "file.name"),
        (routes.UPLOAD, "size", "file.sizeBytes"),
        (routes.UPLOAD, "offset", "X-Goog-Upload-Offset"),
        (routes.GET_FILE, "name", "name"),
    ],
)
def test_a_field_stands_where_the_route_has_it(route: Route, field: str, place: str) -> None:
    """The same field of ours has another path in each message; all else of the error stays."""
    error = TooLarge("too much", field=field, reason="WHY", retry_after=2.0)
    told = on_the_wire(error, route)
    assert (type(told), told.field, told.message) == (TooLarge, place, "too much")
    assert (told.reason, told.retry_after) == ("WHY", 2.0)


def test_a_file_that_is_missing_is_not_told_from_one_of_somebody_else() -> None:
    """As Google does it: 403, and no word on which of the two; a model or batch stays a 404."""
    missing = on_the_wire(NoSuchFile("there is no file files/f", file_id="f", field="name"), routes.GET_FILE)
    assert (type(missing), missing.field) == (PermissionDenied, "name")
    assert missing.message == "You do not have permission to access the File f or it may not exist."
    no_name = on_the_wire(NoSuchFile("no such file", field="input_file"), routes.CREATE_BATCH)
    assert (type(no_name), no_name.field) == (PermissionDenied, "batch.inputConfig.fileName")
    assert no_name.message.endswith("may not exist: a file is named files/{id}.")
    assert type(on_the_wire(NotFound("no such batch"), routes.GET_BATCH)) is NotFound


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("task_type is one of A, B", "taskType is one of A, B"),
        ("title counts with task_type A only", "title counts with taskType A only"),
        ("output_dimensionality is from 1 to 8", "outputDimensionality is from 1 to 8"),
        ("shorten it, or leave auto_truncate out", "shorten it, or leave autoTruncate out"),
        ('line 2, task_type: Unknown name "task_type": Cannot find field.', None),
        ("line 2, request.task_type: this must be a string", None),
        ("my_task_type is no field", None),
    ],
)
def test_messages_name_fields_as_the_wire_does(message: str, told: str | None) -> None:
    """A name as a word of our sentence; what repeats how somebody spelled it stays."""
    assert spelled(message) == (message if told is None else told)


def test_what_the_service_raises_leaves_in_googles_words() -> None:
    """With what it was as the cause; an error of another kind is left alone."""
    with pytest.raises(InvalidArgument) as caught, in_words_of(routes.LIST_FILES):
        raise InvalidArgument("not one of ours", field="page_token")
    assert caught.value.field == "pageToken"
    assert isinstance(caught.value.__cause__, InvalidArgument)
    with pytest.raises(ValueError, match="other"), in_words_of(routes.LIST_FILES):
        raise ValueError("other")


@pytest.mark.parametrize(
    ("error", "http", "word"),
    [
        (InvalidArgument("wrong"), 400, "INVALID_ARGUMENT"),
        (TooLarge("much"), 413, "INVALID_ARGUMENT"),
        (AlreadyExists("taken"), 409, "ALREADY_EXISTS"),
        (Unavailable("later"), 503, "UNAVAILABLE"),
    ],
)
def test_the_envelope(error: EmbatchError, http: int, word: str) -> None:
    """Status, code and word agree, and details stand there only where there is something to say."""
    made = answer(error)
    assert made.http == http
    assert orjson.loads(made.body) == {"error": {"code": http, "message": error.message, "status": word}}
    assert not made.headers


def test_the_details_of_the_envelope() -> None:
    """The field at fault with its reason, and when to come back, which a header says in whole seconds."""
    made = answer(Unavailable("later", field="f", reason="BUSY", retry_after=0.25))
    fault = {"field": "f", "description": "later", "reason": "BUSY"}
    assert orjson.loads(made.body)["error"]["details"] == [
        {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [fault]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.250s"},
    ]
    assert made.headers == {"Retry-After": "1"}


def test_what_is_not_read_has_the_same_envelope() -> None:
    """A refusal says why by a reason of ours; what is nobody's error says nothing more."""
    made = refusal(408, "slow", "TOO_SLOW", 5.0)
    error = orjson.loads(made.body)["error"]
    assert (made.http, error["status"], made.headers) == (408, "DEADLINE_EXCEEDED", {"Retry-After": "5"})
    assert error["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "TOO_SLOW",
        "domain": "embatch",
    }
    words = {
        http: orjson.loads(plain(http, "?").body)["error"]["status"] for http in (400, 404, 405, 418, 500)
    }
    assert words == {
        400: "INVALID_ARGUMENT",
        404: "NOT_FOUND",
        405: "UNIMPLEMENTED",
        418: "INTERNAL",
        500: "INTERNAL",
    }
