"""What Google's models ask of a client: tasks in words, a vector for each text, vectors of length 1."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import orjson
import pytest
from client_scripts import unhurried, wired
from fake_gemini import KEY, FakeGemini, vector

from embatch import Client, Internal, Request, TaskType
from embatch.runs.identity import request_note

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW = "gemini-embedding-2"
MANY = 1_100
"""More requests than go inline."""
TASKS = {
    "RETRIEVAL_QUERY": "task: search result | query: a text",
    "RETRIEVAL_DOCUMENT": "title: none | text: a text",
    "SEMANTIC_SIMILARITY": "task: sentence similarity | query: a text",
    "CLASSIFICATION": "task: classification | query: a text",
    "CLUSTERING": "task: clustering | query: a text",
    "QUESTION_ANSWERING": "task: question answering | query: a text",
    "FACT_VERIFICATION": "task: fact checking | query: a text",
    "CODE_RETRIEVAL_QUERY": "task: code retrieval | query: a text",
}


@contextmanager
def gemini(**behaviour: Any) -> Iterator[tuple[Client, FakeGemini]]:
    """Return a client and the fake it talks to."""
    fake = FakeGemini(**behaviour)
    with Client("gemini", api_key=KEY, http_client=wired(fake)) as client:
        unhurried(client)
        yield client, fake


def sent(fake: FakeGemini, name: str) -> list[dict[str, Any]]:
    """Return what a batch was asked to embed."""
    return [one["request"] for one in fake.jobs[name].requests]


def said(request: dict[str, Any]) -> str:
    """Return the one text of a request's one part."""
    (part,) = request["content"]["parts"]
    text: str = part["text"]
    return text


def test_every_task_has_its_documented_words() -> None:
    """All that the guide knows; none is left to a field that the model does not read."""
    assert TASKS.keys() == set(TaskType)
    with gemini() as (client, fake):
        for task, words in TASKS.items():
            client.embed_content("a text", model=NEW, task_type=task)
            body = orjson.loads(fake.seen[-1].content)
            assert said(body) == words
            assert not {"taskType", "title"} & body.keys()


def test_an_output_says_what_stood_around_its_texts() -> None:
    """Where the task is written into the text; a field of the request leaves the text as it was."""
    with gemini() as (client, _):
        for task, words in TASKS.items():
            told = request_note(client, {"task type": task}, f"models/{NEW}")
            assert (told["task_type"], told["prompt"]) == (task, words.replace("a text", "{text}"))
            assert request_note(client, {"task type": task}, "gemini-embedding-001")["prompt"] is None
        assert request_note(client, {"task type": None}, NEW)["prompt"] is None


@pytest.mark.parametrize("model", [NEW, f"models/{NEW}", "gemini-embedding-001"])
@pytest.mark.parametrize("count", [4, MANY])
def test_a_batch_says_its_tasks_as_its_model_takes_them(model: str, count: int) -> None:
    """Inline and in a file: task and title in the text for the one, in their fields for the other."""
    requests: list[str | Request | None] = [
        Request("one", title="The title"),
        Request("two", task_type=TaskType.CLUSTERING, output_dimensionality=3),
        *(f"text {number}" for number in range(count - 3)),
        None,
    ]
    with gemini() as (client, fake):
        batch = client.async_batch_embed_contents(
            requests, display_name="Test", model=model, task_type="RETRIEVAL_DOCUMENT"
        )
        one, two, three, *_, none = sent(fake, batch.name)
    if "embedding-2" in model:
        assert said(one) == "title: The title | text: one"
        assert said(two) == "task: clustering | query: two"
        assert said(three) == "title: none | text: text 0"
        assert none["content"]["parts"] == [{"text": None}]
        assert all(not {"taskType", "title"} & request.keys() for request in (one, two, three, none))
    else:
        assert (said(one), one["title"], one["taskType"]) == ("one", "The title", "RETRIEVAL_DOCUMENT")
        assert (said(two), two["taskType"]) == ("two", "CLUSTERING")
    assert two["outputDimensionality"] == 3


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_text_without_a_word_is_not_made_into_one(text: str) -> None:
    """With its task before it, it would be embedded, and stand among the others as if it said something."""
    with gemini() as (client, _):
        batch = client.async_batch_embed_contents(
            ["one", text], display_name="Test", model=NEW, task_type="RETRIEVAL_QUERY"
        )
        batch = client.await_batch_completion(batch, poll_interval=0.0)
        result = client.get_batch_embeddings(batch)
    assert [at for at, _ in result.failed_responses] == [1]


def test_without_a_task_nothing_is_added() -> None:
    """The text is what its user gave."""
    with gemini() as (client, fake):
        batch = client.async_batch_embed_contents(["one"], display_name="Test", model=NEW)
        assert said(sent(fake, batch.name)[0]) == "one"


def test_texts_are_contents_of_their_own() -> None:
    """The model makes one vector of all parts of a content: there is never more than one."""
    with gemini() as (client, fake):
        found = client.batch_embed_contents(["one", "two"], model=NEW)
        body = orjson.loads(fake.seen[-1].content)
    assert [said(one) for one in body["requests"]] == ["one", "two"]
    assert [one.values.tolist() for one in found] == [vector("one"), vector("two")]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_vectors_than_of_texts_is_an_error(count: int) -> None:
    """Whoever fuses texts, or leaves one out, gives no list that anything could be matched by."""

    def fused(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"embeddings": [{"values": vector("one")}] * count})

    with gemini(faults=[fused]) as (client, _), pytest.raises(Internal, match="2 texts came back as"):
        client.batch_embed_contents(["one", "two"], model=NEW)


@pytest.mark.parametrize("count", [3, MANY])
def test_fewer_dimensions_come_back_at_length_1(count: int) -> None:
    """Google normalises the native ones alone: a dot product would compare lengths."""
    texts = [f"text {number}" for number in range(count)]
    with gemini(scale=0.75) as (client, _):
        batch = client.async_batch_embed_contents(texts, display_name="Test", output_dimensionality=3)
        batch = client.await_batch_completion(batch, poll_interval=0.0)
        found = client.get_batch_embeddings(batch).to_numpy()
        some = client.batch_embed_contents(texts[:3], output_dimensionality=3)
        one = client.embed_content(texts[0], output_dimensionality=3)
    assert np.allclose(found, [vector(text, 3) for text in texts], rtol=0, atol=1e-6)
    assert np.allclose([each.norm for each in (*some, one)], 1.0, rtol=0, atol=1e-6)
    assert np.allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1.0, rtol=0, atol=1e-6)


def test_what_has_length_1_comes_through_to_the_bit() -> None:
    """Native vectors are not touched."""
    with gemini() as (client, _):
        assert client.embed_content("one").values.tolist() == vector("one")
