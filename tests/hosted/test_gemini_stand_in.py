"""The Gemini stand-in answers in the captured shapes, and misbehaves as it is told."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hosted.behaviour import Behaviour
from hosted.gemini import TYPE, GeminiStandIn
from hosted.plain import MODEL, Plain, good, inline, items, jsonl, refused, request
from hosted.vectors import Vectors

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.hosted

HOUR = 3600.0


@pytest.fixture
def google() -> Iterator[GeminiStandIn]:
    """A stand-in on a good day."""
    with GeminiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def http(google: GeminiStandIn) -> Plain:
    """Who asks it."""
    return Plain(google)


def _texts(count: int) -> list[str]:
    return [f"text number {at}" for at in range(count)]


def _values(line: Any) -> list[float]:
    return list(line["response"]["embedding"]["values"])


def test_imports_nothing_of_ours() -> None:
    """No stand-in knows the package that it tests, so that a misreading cannot be shared."""
    files = sorted(set(Path(__file__).parent.glob("*.py")) - set(Path(__file__).parent.glob("test_*.py")))
    assert len(files) > 10
    for file in files:
        tree = ast.parse(file.read_text("utf-8"))
        modules = [one.module or "" for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)]
        modules += [name.name for one in ast.walk(tree) if isinstance(one, ast.Import) for name in one.names]
        assert "embatch" not in {module.partition(".")[0] for module in modules}, file


def test_the_life_of_an_inline_batch(http: Plain) -> None:
    """`done` is absent until the end, counters are strings and absent at zero, results come twice."""
    first = good(
        http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", inline("one", " ", priority="-3"))
    )
    metadata = first["metadata"]
    assert first.keys() == {"name", "metadata"}
    assert len(first["name"].removeprefix("batches/")) == 36
    assert (metadata["@type"], metadata["state"]) == (TYPE, "BATCH_STATE_PENDING")
    assert metadata["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}
    assert (metadata["priority"], metadata["createTime"]) == ("-3", "2026-06-01T10:00:00.000000000Z")
    assert not {"endTime", "output", "inputConfig"} & metadata.keys()
    running = http.get(first["name"])
    assert (running["metadata"]["state"], "done" in running) == ("BATCH_STATE_RUNNING", False)
    ended = http.get(first["name"])
    assert ended["done"] is True
    assert ended["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert ended["metadata"]["batchStats"] == {
        "requestCount": "2",
        "successfulRequestCount": "1",
        "failedRequestCount": "1",
    }
    good_one, bad_one = items(ended)
    assert good_one["metadata"] == {"key": "0"}
    assert good_one["response"]["tokenCount"] == "1"
    assert bad_one == {"metadata": {"key": "1"}, "error": {"code": 3, "message": "content is empty"}}


def test_a_batch_from_a_file(http: Plain) -> None:
    """The file is echoed, the results have a name of more than 40 characters that is no File, and keys."""
    name = http.create_from(jsonl(["one", "", "three"]) + b"\n no JSON\r\n", "files/embatch-in")
    ended = http.ended(name)
    assert ended["metadata"]["inputConfig"] == {"fileName": "files/embatch-in"}
    file = ended["response"]["responsesFile"]
    assert ended["metadata"]["output"] == {"responsesFile": file}
    lines = http.lines(file)
    assert [line.get("key") for line in lines] == ["0", "1", "2", None]
    assert [line.get("error", {}).get("code") for line in lines] == [None, 3, None, 3]
    assert lines[0]["response"]["usageMetadata"] == {"promptTokenCount": 1}
    refused(http.ask("GET", file), 400, "INVALID_ARGUMENT")
    refused(http.ask("GET", "files/embatch-in:download?alt=media"), 400, "INVALID_ARGUMENT")


def test_deleting_the_input_leaves_the_batch(http: Plain) -> None:
    """A file that was deleted or has grown too old is refused; the batch that was made from it goes on."""
    name = http.create_from(jsonl(["one"]), "files/in")
    good(http.ask("DELETE", "files/in"))
    refused(http.ask("GET", "files/in"), 403, "PERMISSION_DENIED")
    assert len(http.lines(http.ended(name)["response"]["responsesFile"])) == 1
    http.upload(b"{}", "files/old")
    http.google.clock.advance(49 * HOUR)
    refused(http.ask("GET", "files/old"), 403, "PERMISSION_DENIED")
    assert http.upload(b"{}", "files/old")["name"] == "files/old"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"batch": {}}, "Exactly one"),
        ({"batch": {"inputConfig": {"requests": {"requests": []}}}}, "no requests"),
        ({"batch": {"inputConfig": {"requests": {"requests": []}, "fileName": "files/x"}}}, "Exactly one"),
        ({"batch": {"src": 1}}, 'Unknown name "src"'),
        ({"texts": []}, 'Unknown name "texts"'),
        (inline("x", display_name="twice"), "set twice"),
        (b"{", "Invalid JSON"),
        (
            {"batch": {"inputConfig": {"requests": {"requests": [{"request": {"text": "x"}}]}}}},
            'Unknown name "text"',
        ),
    ],
)
def test_bodies_that_are_refused(http: Plain, body: object, says: str) -> None:
    """What Google does not know is refused by name, and nothing is created."""
    error = refused(http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", body), 400, "INVALID_ARGUMENT")
    assert says in error["message"]
    assert http.google.creates == 0


def test_both_spellings(http: Plain) -> None:
    """Snake case, camel case and the nested options are read alike."""
    content = {"parts": [{"text": "one"}]}
    spellings: list[dict[str, Any]] = [
        {"outputDimensionality": 4, "taskType": "CLUSTERING"},
        {"output_dimensionality": 4, "task_type": "CLUSTERING"},
        {"embed_content_config": {"output_dimensionality": 4, "task_type": "CLUSTERING"}},
    ]
    found = [
        good(http.ask("POST", f"models/{MODEL}:embedContent", {"content": content, **options}))
        for options in spellings
    ]
    assert found[0] == found[1] == found[2]
    plain = good(http.ask("POST", f"models/{MODEL}:embedContent", request("one", 4)))
    assert plain["embedding"] != found[0]["embedding"], "the task makes another vector"


@pytest.mark.parametrize("width", [-1, 0, 3073, "4"])
def test_dimensions_out_of_range(http: Plain, width: object) -> None:
    """A width that the model has not is refused at once, and line by line in a batch."""
    wrong = {"content": {"parts": [{"text": "x"}]}, "outputDimensionality": width}
    refused(http.ask("POST", f"models/{MODEL}:embedContent", wrong), 400, "INVALID_ARGUMENT")


def test_keys_and_queries(http: Plain) -> None:
    """A wrong key, none, a key in the query, and a query parameter that the method does not have."""
    error = refused(http.ask("GET", "batches", x_goog_api_key="wrong"), 400, "INVALID_ARGUMENT")
    assert error["details"][0]["reason"] == "API_KEY_INVALID"
    refused(http.ask("GET", "batches", x_goog_api_key=""), 403, "PERMISSION_DENIED")
    good(http.ask("GET", f"batches?key={http.google.key}", x_goog_api_key=""))
    refused(http.ask("GET", "batches?view=FULL"), 400, "INVALID_ARGUMENT")
    refused(http.ask("GET", "nothing"), 404, "NOT_FOUND")


def test_accounts_see_their_own() -> None:
    """Keys of one project see the same batches, those of another one none of them."""
    with GeminiStandIn(keys={"a": "p", "b": "p", "c": "q"}) as google:
        http = Plain(google)
        name = http.create("one")
        assert good(http.ask("GET", name, x_goog_api_key="b"))["name"] == name
        refused(http.ask("GET", name, x_goog_api_key="c"), 404, "NOT_FOUND")
        assert good(http.ask("GET", "batches", x_goog_api_key="c")) == {}


def test_names_of_files(http: Plain) -> None:
    """Forty characters are a name, more are none, nor is what is taken."""
    good_name = "embatch-" + "a" * 32
    assert http.upload(b"x", f"files/{good_name}")["name"] == f"files/{good_name}"
    refused(http.start(1, f"files/{good_name}"), 409, "ALREADY_EXISTS")
    for name in (f"files/{good_name}x", "files/-a", "files/A"):
        refused(http.start(1, name), 400, "INVALID_ARGUMENT")
    assert http.google.files.uploads == 1


def test_list(http: Plain) -> None:
    """Pages are newest first, as large as the service likes, each batch once; entries have no results."""
    names = [http.create(text) for text in _texts(5)]
    http.google.finish()
    http.google.behave(list_size=2, stale_lists=True)
    seen: list[Any] = []
    token = ""
    while True:
        page = http.get(f"batches?pageSize=100&pageToken={token}")
        seen += page["operations"]
        if not (token := page.get("nextPageToken", "")):
            break
    assert [one["name"] for one in seen] == names[::-1]
    assert http.google.calls["list"] == 3
    assert all(one["done"] and "response" not in one and "output" not in one["metadata"] for one in seen)
    assert seen[0]["metadata"]["batchStats"] == {"requestCount": "1", "pendingRequestCount": "1"}
    refused(http.ask("GET", "batches?pageToken=no"), 400, "INVALID_ARGUMENT")
    refused(http.ask("GET", "batches?returnPartialSuccess=true"), 501, "UNIMPLEMENTED")


def test_late_lists(http: Plain) -> None:
    """A batch can be asked for at once, and is in the list only when the time has come."""
    http.google.behave(lists_late_seconds=90)
    name = http.create("one")
    assert http.get(name)["name"] == name
    http.google.clock.advance(89)
    assert http.get("batches") == {}
    http.google.clock.advance(1)
    assert [one["name"] for one in http.get("batches")["operations"]] == [name]


def test_update(http: Plain) -> None:
    """A patch of a name or a priority returns the bare batch; another field is refused."""
    name = http.create("one")
    path = f"{name}:updateEmbedContentBatch?updateMask="
    body = {"displayName": "new", "priority": 7}
    said = good(http.ask("PATCH", f"{path}displayName,priority", body))
    assert (said["displayName"], said["priority"], "@type" in said, "metadata" in said) == (
        "new",
        "7",
        False,
        False,
    )
    refused(http.ask("PATCH", f"{path}state", {"state": "x"}), 400, "INVALID_ARGUMENT")


def test_cancel(http: Plain) -> None:
    """What waits ends CANCELLED with code 13; what runs SUCCEEDED, and what was not served has code 1."""
    waiting, running = http.create("one"), http.create(*_texts(4))
    http.get(running)
    for name in (waiting, running, waiting):
        assert good(http.ask("POST", f"{name}:cancel")) == {}
    ended = http.get(waiting)
    assert (ended["metadata"]["state"], ended["error"]["code"]) == ("BATCH_STATE_CANCELLED", 13)
    ended = http.get(running)
    assert ended["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert [one.get("error", {}).get("code") for one in items(ended)] == [None, None, 1, 1]
    assert ended["metadata"]["batchStats"]["failedRequestCount"] == "2"
    assert http.google.cancelled == [waiting, running, waiting]


def test_staying(http: Plain) -> None:
    """A batch that stays goes on when the test says so; others go on as ever."""
    http.google.behave(stays="RUNNING", staying_batches=(1,))
    stuck, other = http.create("one"), http.create("two")
    http.ended(other)
    for _ in range(5):
        assert http.get(stuck)["metadata"]["state"].endswith(("PENDING", "RUNNING"))
    http.google.release(stuck)
    assert http.get(stuck)["done"]
    http.google.behave(stays="PENDING", staying_batches=())
    third = http.create("three")
    http.google.clock.advance(49 * HOUR)
    ended = http.get(third)
    assert ended["metadata"]["state"] == "BATCH_STATE_EXPIRED"
    assert not {"response", "error"} & ended.keys()
    assert "output" not in ended["metadata"]


def test_the_clock_ends_batches(http: Plain) -> None:
    """With `seconds_to_end` looks change nothing, and time does."""
    http.google.behave(seconds_to_end=60)
    name = http.create("one")
    for _ in range(5):
        assert http.get(name)["metadata"]["state"] == "BATCH_STATE_PENDING"
    http.google.clock.advance(59)
    assert http.get(name)["metadata"]["state"] == "BATCH_STATE_RUNNING"
    http.google.clock.advance(1)
    assert http.get(name)["done"]


def test_limits_of_what_is_in_flight(http: Plain) -> None:
    """Too many tokens are refused with Help only or with RetryInfo, until a batch has ended."""
    http.google.behave(enqueued_tokens=5)
    first = http.create("one two three")
    error = refused(
        http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", inline("four five six")),
        429,
        "RESOURCE_EXHAUSTED",
    )
    assert [one["@type"].rpartition(".")[2] for one in error["details"]] == ["Help"]
    http.google.behave(enqueued_details="retry")
    error = refused(
        http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", inline("four five six")),
        429,
        "RESOURCE_EXHAUSTED",
    )
    assert error["details"][0]["retryDelay"] == "30s"
    http.ended(first)
    http.create("four five six")
    http.google.behave(enqueued_tokens=None, concurrent_batches=1)
    refused(
        http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", inline("x")), 429, "RESOURCE_EXHAUSTED"
    )
    assert http.google.creates == 2


def test_quota_after_acceptance(http: Plain) -> None:
    """A batch beyond the limit is accepted, counts as a create, and fails with code 8."""
    http.google.behave(failing_tokens=3)
    fine, fails = http.create("one two"), http.create("three four")
    assert http.ended(fine)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    ended = http.ended(fails)
    assert (ended["metadata"]["state"], ended["error"]["code"]) == ("BATCH_STATE_FAILED", 8)
    assert http.google.creates == 2


def test_late_results(http: Plain) -> None:
    """SUCCEEDED is said before the results are, and their file is named before it is there."""
    http.google.behave(late_results=2, late_files=1)
    name = http.create_from(jsonl(["one"]))
    ended = http.ended(name)
    assert ended["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert "response" not in ended
    assert "response" not in http.get(name)
    file = http.get(name)["response"]["responsesFile"]
    refused(http.ask("GET", f"{file}:download?alt=media"), 403, "PERMISSION_DENIED")
    assert len(http.lines(file)) == 1


def test_places_and_words_of_results(http: Plain) -> None:
    """Results in one place only, `status` for `error`, and zeros that are said."""
    http.google.behave(results_in="metadata", status_lines=True, zeros=True)
    name = http.create_from(jsonl(["", "refused"]))
    assert http.get(name)["done"] is False
    ended = http.get(name)
    assert "response" not in ended
    assert ended["metadata"]["batchStats"]["pendingRequestCount"] == "0"
    lines = http.lines(ended["metadata"]["output"]["responsesFile"])
    assert [line.get("status", {}).get("code") for line in lines] == [3, None]
    http.google.behave(results_in="response", refused_word="refused")
    ended = http.ended(http.create("refused", "fine"))
    assert "output" not in ended["metadata"]
    found = ended["response"]["inlinedResponses"]["inlinedResponses"]
    assert [one.get("error", {}).get("code") for one in found] == [3, None]


def test_interactive_quota(http: Plain) -> None:
    """Texts count one by one, and the reply says when there is room again."""
    http.google.behave(items_a_minute=3)
    two = {"requests": [{"model": f"models/{MODEL}", **request(text)} for text in ("one", "two")]}
    good(http.ask("POST", f"models/{MODEL}:batchEmbedContents", two))
    http.google.clock.advance(20)
    error = refused(http.ask("POST", f"models/{MODEL}:batchEmbedContents", two), 429, "RESOURCE_EXHAUSTED")
    assert error["details"][-1]["retryDelay"] == "40s"
    http.google.clock.advance(40)
    good(http.ask("POST", f"models/{MODEL}:batchEmbedContents", two))
    assert http.google.items == 4


def test_interactive_replies_that_are_wrong(http: Plain) -> None:
    """A vector too few, a width that was not asked for, and vectors that scatter from call to call."""
    many = {
        "requests": [{"model": f"models/{MODEL}", **request(text, 768)} for text in ("one", "two", "three")]
    }
    http.google.behave(short_replies=1, scatter=0.2, ignore_dimensions=True)
    found = good(http.ask("POST", f"models/{MODEL}:batchEmbedContents", many))["embeddings"]
    assert [len(one["values"]) for one in found] == [3072, 3072]
    again = good(http.ask("POST", f"models/{MODEL}:batchEmbedContents", many))["embeddings"]
    one, other = np.array(found[0]["values"]), np.array(again[0]["values"])
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 0.9 < cosine < 0.99


def _damaged(behaviour: Behaviour, texts: list[str]) -> tuple[GeminiStandIn, list[Any]]:
    with GeminiStandIn(behaviour) as google:
        http = Plain(google)
        return google, http.lines(http.ended(http.create_from(jsonl(texts, 64)))["response"]["responsesFile"])


def _whose(google: GeminiStandIn, texts: list[str], line: Any) -> int | None:
    found = np.array(_values(line), np.float32)
    for at, text in enumerate(texts):
        if np.allclose(google.vectors(text, MODEL, 64), found):
            return at
    return None


def test_damage_is_what_it_says() -> None:
    """Every kind of damage happens to as many rows as asked, and the stand-in knows which."""
    texts = _texts(60)
    behaviour = Behaviour(
        seed=3,
        reorder=True,
        swap_pairs=2,
        drop=3,
        double=2,
        double_differently=2,
        shift=5,
        reverse=4,
        shuffle=6,
        same_vector=3,
        foreign=2,
    )
    google, lines = _damaged(behaviour, texts)
    hurt = google.jobs[0].hurt
    assert (len(hurt.dropped), len(hurt.doubled), len(hurt.doubled_differently)) == (3, 2, 2)
    keys = [int(line["key"]) for line in lines]
    assert keys != sorted(keys)
    assert set(range(60)) - set(keys) == set(hurt.dropped)
    assert {key for key in keys if keys.count(key) == 2} == {*hurt.doubled, *hurt.doubled_differently}
    seen: set[int] = set()
    for key, line in zip(keys, lines, strict=True):
        whose = _whose(google, texts, line)
        if key in hurt.foreign:
            assert whose is None
        elif key in seen and key in hurt.doubled_differently:
            assert whose == hurt.doubled_differently[key] != key
        else:
            assert whose == hurt.sources.get(key, key)
        seen.add(key)
    moved = [at for at, source in hurt.sources.items() if at != source]
    assert len(moved) >= 4 + 5 + 4 + 2
    assert google.jobs[0].hurt.misplaced == sorted({*hurt.sources, *hurt.foreign})


def test_damage_repeats_by_seed_and_keeps_to_its_batches() -> None:
    """The same seed damages alike, another one otherwise, and a batch that is not named not at all."""
    texts = _texts(40)
    found = [_damaged(Behaviour(seed=seed, swap_pairs=1), texts)[0].jobs[0].hurt for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    _, lines = _damaged(Behaviour(swap_pairs=5, drop=5, damaged_batches=(2,)), texts)
    assert [int(line["key"]) for line in lines] == [*range(40)]


def test_a_large_inline_batch_is_refused(http: Plain) -> None:
    """More than 20 MB in a create is refused."""
    refused(
        http.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", b" " * (20 * 2**20 + 1)),
        400,
        "INVALID_ARGUMENT",
    )


def test_vectors() -> None:
    """Vectors are of unit length at the native width and begin alike below; local ones know neighbours."""
    for vectors in (Vectors("hash"), Vectors("local")):
        native = vectors("some words of a text", MODEL)
        assert native.shape == (3072,)
        assert native.dtype == np.float32
        assert np.isclose(np.linalg.norm(native), 1, atol=1e-5)
        short = vectors("some words of a text", MODEL, 768)
        assert np.array_equal(short, native[:768])
        assert np.linalg.norm(short) < 0.9
        assert np.isclose(np.linalg.norm(vectors("some words", "gemini-embedding-2", 768)), 1, atol=1e-5)
        assert not np.allclose(vectors("x", MODEL), vectors("x", MODEL, task="CLUSTERING"))
        assert np.array_equal(vectors("x", MODEL), Vectors(vectors.kind)("x", MODEL))
        assert not np.array_equal(vectors("x", MODEL), Vectors(vectors.kind, 1)("x", MODEL))
    local = Vectors("local")
    words = ["rain", "falls", "on", "the", "quiet", "harbour", "while", "ships", "wait", "for", "morning"]
    chosen = random.Random(1)
    base = local(" ".join(words), MODEL)
    near = local(" ".join(chosen.sample(words, len(words))[:-2]), MODEL)
    far = local("annual reports list every customer invoice by region", MODEL)
    assert base @ near > 0.5
    assert base @ far < 0.2
