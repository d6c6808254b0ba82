"""Every argument of every method, given something that it cannot be: the error names the argument."""

from __future__ import annotations

import asyncio
import copy
import decimal
import inspect
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from client_scripts import play, scripted, session, wired, wired_async

from embatch import (
    AsyncClient,
    Batch,
    Client,
    ContentEmbedding,
    FailedPrecondition,
    FailedRows,
    Internal,
    InvalidArgument,
    Request,
    State,
)
from embatch.client import flows
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.payload import blocks
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.client.results import ResultBuilder
from embatch.errors import Code, Reason, RequestError
from embatch.wire.gemini import read_responses

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "batches/b"
GOOD: dict[str, dict[str, Any]] = {
    "async_batch_embed_contents": {"requests": ["a"], "display_name": "x"},
    "get_batch_status": {"name": NAME},
    "await_batch_completion": {"name": NAME},
    "get_batch_embeddings": {"batch": NAME},
    "retry_failed": {"batch": NAME, "requests": ["a"]},
    "list_batches": {},
    "update_batch": {"name": NAME, "priority": 1},
    "cancel_batch": {"name": NAME},
    "delete_batch": {"name": NAME},
    "embed_content": {"text": "a"},
    "batch_embed_contents": {"requests": ["a"]},
    "count_tokens": {"texts": ["a"]},
    "watch": {"name": NAME},
}
"""What each method must have."""
LISTS = ("list_batches", "watch")
"""What is iterated over."""
WRONG: dict[str, list[object]] = {
    "requests": [5, None, {"a": "b"}, {"a"}, "a", b"a", [5], [["a"]], [b"a"], [object()]],
    "texts": [5, None, "a", [5], [None], {"a": "b"}],
    "text": [5, None, b"a", ["a"], "a\ud800"],
    "display_name": [5, b"x", ["x"], "x\ud800"],
    "model": [5, b"m", ["m"], "", "models/", "m\ud800"],
    "task_type": [5, "no such", ["RETRIEVAL_QUERY"], b"RETRIEVAL_QUERY"],
    "output_dimensionality": ["8", 8.0, 0, -1, True, 1 << 40, [8]],
    "priority": ["high", 1.0, True, 1 << 63, -(1 << 63) - 1, [1], decimal.Decimal(1)],
    "idempotency_key": [5, "", "a\nb", b"k", "schl\u00fcssel"],
    "name": [5, "b", "batches/", b"batches/b", ["batches/b"]],
    "batch": [5, "b", b"batches/b"],
    "poll_interval": ["1", -1, float("nan"), True, [1]],
    "timeout": ["1", -1, float("nan"), True, 1j],
    "on_progress": ["print", 5],
    "partial": ["yes", 1, 0.0],
    "page_size": ["10", 0, -1, 10.0, True],
    "title": [5, b"t", "t\ud800"],
    "journal": ["yes", 1, 0.0],
}
CASES = [
    (method, argument, value)
    for method, good in GOOD.items()
    for argument in inspect.signature(getattr(Client, method)).parameters
    if argument != "self"
    for value in WRONG[argument]
    if not (method == "retry_failed" and isinstance(value, list))  # which of them are sent, results tell
]


def refused(run: Callable[[], object], argument: str) -> None:
    """Demand that a call is refused before anything is sent, and that the error names its argument."""
    with pytest.raises(InvalidArgument) as error:
        run()
    named = "name" if argument == "batch" else argument
    assert (error.value.field or "").partition("[")[0] == named
    assert named in str(error.value).replace("a batch is named", "name"), str(error.value)


@pytest.mark.parametrize(("method", "argument", "value"), CASES)
def test_a_wrong_argument_is_named_in_both_colours(method: str, argument: str, value: object) -> None:
    """Nothing is sent; the other arguments are as they should be."""
    given = {**GOOD[method], argument: value}

    def sync() -> object:
        handle, _ = scripted([])
        with Client("http://service", model="m", http_client=wired(handle)) as client:
            found = getattr(client, method)(**given)
            return list(found) if method in LISTS else found

    async def other() -> object:
        handle, _ = scripted([])
        async with AsyncClient("http://service", model="m", http_client=wired_async(handle)) as client:
            found = getattr(client, method)(**given)
            return [one async for one in found] if method in LISTS else await found

    refused(sync, argument)
    refused(lambda: asyncio.run(other()), argument)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("target", 5), ("target", None), ("api_key", 5), ("data", 5), ("model", 5), ("model", "")],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_wrong_argument_of_the_client_itself(kind: type, argument: str, value: object) -> None:
    """At once, and not with the first call."""
    refused(lambda: kind(**{argument: value}), argument)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("text", {"text": 5}),
        ("key", {"text": "a", "key": 5}),
        ("title", {"text": "a", "title": b"t"}),
        ("task_type", {"text": "a", "task_type": 5}),
        ("task_type", {"text": "a", "task_type": "no such"}),
        ("output_dimensionality", {"text": "a", "output_dimensionality": "8"}),
        ("output_dimensionality", {"text": "a", "output_dimensionality": 0}),
        ("metadata", {"text": "a", "metadata": [1]}),
    ],
)
def test_a_wrong_field_of_a_request_is_named_with_its_place(field: str, said: dict[str, Any]) -> None:
    """Inline and in a file alike."""
    with pytest.raises(InvalidArgument, match=rf"requests\[1\]\.{field}"):
        list(blocks(["a", Request(**said)], Request("")))


def test_numbers_of_numpy_and_words_for_task_types_are_taken() -> None:
    """As they come out of a table."""
    given: list[Any] = [Request("a", task_type="clustering", output_dimensionality=np.int32(8))]  # type: ignore[arg-type]
    (block,) = blocks(given, Request(""))
    assert (block[0].task_type, block[0].output_dimensionality) == ("CLUSTERING", 8)
    labels = BatchOptions("x", np.int64(5)).checked()  # type: ignore[arg-type]
    assert type(labels.priority) is int


class NAType:
    """As pandas has it: a comparison has no answer."""

    def __eq__(self, other: object) -> Any:
        return self

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), np.float64("nan"), NAType()])
def test_a_missing_text_is_sent_as_none_and_fails_alone(missing: Any) -> None:
    """As a table has it: its neighbours are embedded."""
    for given in (missing, Request(missing, key="k")):
        (block,) = blocks(["a", given], Request(""))
        assert [one.text for one in block] == ["a", None]
        flow = flows.submit(session(), ["a", given], RequestDefaults("m"), BatchOptions("x"))
        played = play(flow, [operation()])
        assert b'{"text":null}' in played.calls[0].body


def operation() -> Any:
    """Return the answer to a submit."""
    from client_scripts import json_reply

    return json_reply({"name": NAME, "metadata": {"name": NAME, "model": "models/m"}})


def test_a_text_for_somebody_who_waits_is_refused_with_its_reason() -> None:
    """All or nothing: what would fail alone in a batch is the error of the call."""
    handle, _ = scripted([])
    with Client("http://service", model="m", http_client=wired(handle)) as client:
        for bad, reason in ((None, "NOT_TEXT"), ("\ud800", "BAD_UNICODE")):
            with pytest.raises(InvalidArgument, match=r"requests\[1\]") as error:
                client.batch_embed_contents(["a", bad])  # type: ignore[list-item]
            assert error.value.reason == reason


@pytest.mark.parametrize("model", ["BAAI/bge-small-en-v1.5", "/home/me/my model"])
def test_a_model_that_the_service_of_the_folder_lacks_says_what_to_type(model: str, tmp_path: Any) -> None:
    """Somebody runs a service there, which takes no models: the name, and two ways on."""
    from client_scripts import json_reply, problem

    local = Target("http://localhost", EMBATCH, data=tmp_path)
    missing = json_reply(problem(404, "NOT_FOUND"), 404)
    served = json_reply({"models": [{"name": "models/all-MiniLM-L6-v2"}]})
    script = [missing, missing, served] if model.startswith("B") else [missing, served]
    played = play(flows.submit(session(local), ["a"], RequestDefaults(model), BatchOptions("x")), script)
    assert played.error is not None
    said = played.error.message
    typed = f"'{model}'" if " " in model else model
    for words in (
        f"{model} is not served here",
        "all-MiniLM-L6-v2",
        f"start it with `--model {typed}` too",
        str(tmp_path),
        "--data",
    ):
        assert words in said
    assert "--alias" not in said


def result(*values: list[float] | None) -> Any:
    """Return a result with these embeddings; `None` stands for a failed request."""
    columns = ResultBuilder(len(values), 2)
    for index, one in enumerate(values):
        if one is None:
            columns.errors[index] = RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "empty")
        else:
            columns.matrix[index], columns.widths[index] = one, 2
    return columns.result(Batch(NAME, "models/m", State.COMPLETED, "b", 0, None, None, None))


def test_rows_of_failed_requests_are_told_of() -> None:
    """A word by default, none where they are meant, an error where they may not be."""
    found = result([1, 2], None, [3, 4], None)
    with pytest.warns(FailedRows, match=r"2 of 4 requests failed, the first at 1 \(EMPTY_TEXT\)") as told:
        found.to_numpy()
    assert told[0].filename == __file__
    assert np.isnan(found.to_numpy(failed="nan")[1]).all()
    with pytest.raises(FailedPrecondition, match="failed_responses"):
        found.to_numpy(failed="raise")
    with pytest.raises(InvalidArgument, match="failed"):
        found.to_numpy(failed="drop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert result([1, 2]).to_numpy().tolist() == [[1, 2]]


def test_what_is_printed_is_short() -> None:
    """A thousand numbers in a terminal hide what was asked for."""
    embedding = ContentEmbedding(np.linspace(-1, 1, 3072, dtype=np.float32))
    assert repr(embedding) == "<ContentEmbedding of 3072 dimensions: -1, -0.9993, -0.9987, …>"
    assert repr(ContentEmbedding([0.5])) == "<ContentEmbedding of 1 dimensions: 0.5>"
    row = read_responses.parse_line(b'{"response": {"embedding": {"values": [' + b"0.125," * 999 + b"1]}}}")
    assert len(repr(row)) < 200
    assert len(repr(result([1, 2]))) < 200


def test_an_error_says_which_field_it_means() -> None:
    """Where its words do not: a service's `this must be a whole number` stands beside the field."""
    assert str(InvalidArgument("this must be a whole number", field="batch.priority")) == (
        "this must be a whole number (batch.priority)"
    )
    assert str(InvalidArgument("priority must be small", field="priority")) == "priority must be small"
    assert str(Internal("oh")) == "oh"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_client_is_not_copied(kind: type, way: Callable[[object], object]) -> None:
    """A copy would share connections with it, and close them: the error says what to do instead."""
    with pytest.raises(TypeError, match="make one in each process"):
        way(kind("http://service"))
