"""Google's face, row by row of the conformance table: the unmodified google-genai client, and plain HTTP.

One real service with the hashing engine, slowed a little so that batches can be met while they run.
"""

from __future__ import annotations

import json
import time
import warnings
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from google import genai
from google.genai import errors as genai_errors
from serving import MODEL, Served, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*")

SLOW = "embatch-test-slow"
VERSIONS = ("v1", "v1beta")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all rows: two models, the second reachable under Google's name too."""
    folder = tmp_path_factory.mktemp("face") / "data"
    flags = ("--engine-option", "delay=0.02", "--engine", "hashing", "--model", MODEL, "--model", "org/other",
             "--alias", f"gemini-embedding-001={MODEL}")  # fmt: skip
    with serving(folder, *flags) as served:
        yield served


@pytest.fixture(params=VERSIONS)
def sdk(service: Served, request: pytest.FixtureRequest) -> genai.Client:
    """Google's client, once for each version of the protocol."""
    options = {"base_url": service.url, "api_version": request.param}
    return genai.Client(api_key="any", http_options=options)  # type: ignore[arg-type]  # a dict is documented


@pytest.fixture(params=VERSIONS)
def http(service: Served, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A plain client below the version."""
    with httpx2.Client(base_url=f"{service.url}/{request.param}/", headers=JSON, timeout=60) as client:
        yield client


def _entry(text: str, **more: Any) -> dict[str, Any]:
    return {"request": {"content": {"parts": [{"text": text}]}, **more}}


def _body(entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"batch": {"inputConfig": {"requests": {"requests": entries}}, **more}}


def _create(http: httpx2.Client, body: dict[str, Any], model: str = MODEL, **headers: str) -> httpx2.Response:
    return http.post(f"models/{model}:asyncBatchEmbedContent", content=json.dumps(body), headers=headers)


def _done(http: httpx2.Client, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found: dict[str, Any] = http.get(name).json()
        if found.get("done"):
            return found
    raise AssertionError(f"{name} did not end")


def _refused(answer: httpx2.Response, status: int, word: str, field: str | None = None) -> dict[str, Any]:
    """Check Google's envelope and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == status
    assert error["status"] == word
    assert error["message"]
    if field is not None:
        assert error["details"][0]["fieldViolations"][0]["field"] == field
    return error


def _sdk_batch(sdk: genai.Client, contents: list[str], **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = sdk.batches.create_embeddings(
            model=MODEL,
            src={"inlined_requests": {"contents": contents}},
            config=config or None,  # type: ignore[arg-type]
        )
    deadline = time.monotonic() + 60
    while not job.done and time.monotonic() < deadline:
        job = sdk.batches.get(name=str(job.name))
    return job


def _vector(answer: httpx2.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["embedding"]["values"])


def test_g01_sdk_embeds_two_strings(sdk: genai.Client) -> None:
    """Two strings come back as two embeddings of 16 dimensions, in order."""
    both = sdk.models.embed_content(
        model=MODEL, contents=["one", "two"], config={"output_dimensionality": 16}
    )
    again = sdk.models.embed_content(model=MODEL, contents=["two"], config={"output_dimensionality": 16})
    assert both.embeddings is not None
    assert again.embeddings is not None
    assert [len(one.values or []) for one in both.embeddings] == [16, 16]
    assert both.embeddings[1].values == again.embeddings[0].values


def test_g02_every_spelling_gives_the_same_vector(http: httpx2.Client) -> None:
    """camelCase, snake_case and embedContentConfig mean the same."""
    content = {"parts": [{"text": "same"}]}
    layouts = [
        {"content": content, "taskType": "RETRIEVAL_DOCUMENT", "title": "T", "outputDimensionality": 8},
        {"content": content, "task_type": "RETRIEVAL_DOCUMENT", "title": "T", "output_dimensionality": "8"},
        {
            "content": content,
            "embedContentConfig": {
                "taskType": "RETRIEVAL_DOCUMENT",
                "title": "T",
                "outputDimensionality": 8.0,
            },
        },
        {
            "content": content,
            "embed_content_config": {
                "task_type": "RETRIEVAL_DOCUMENT",
                "title": "T",
                "output_dimensionality": 8,
            },
        },
    ]
    vectors = [_vector(http.post(f"models/{MODEL}:embedContent", json=layout)) for layout in layouts]
    assert len(vectors[0]) == 8
    assert all(vector == vectors[0] for vector in vectors)


def test_g03_more_than_100_at_once_are_refused(http: httpx2.Client) -> None:
    """101 interactive requests are a 400 that names the limit; 100 are served."""
    one = {"content": {"parts": [{"text": "x"}]}}
    answer = http.post(f"models/{MODEL}:batchEmbedContents", json={"requests": [one] * 101})
    assert "at most 100 requests" in _refused(answer, 400, "INVALID_ARGUMENT", "requests")["message"]
    fine = http.post(f"models/{MODEL}:batchEmbedContents", json={"requests": [one] * 100})
    assert len(fine.json()["embeddings"]) == 100


def test_g04_an_unknown_model_is_not_found(http: httpx2.Client) -> None:
    """The message names the models that are served and the alias flag."""
    answer = http.post("models/nope:embedContent", json={"content": {"parts": [{"text": "x"}]}})
    message = _refused(answer, 404, "NOT_FOUND")["message"]
    assert MODEL in message
    assert "--alias" in message


def test_g05_a_model_with_a_slash_and_an_alias_are_routed(http: httpx2.Client) -> None:
    """org/name works, and so does the alias."""
    body = {"content": {"parts": [{"text": "x"}]}}
    other = _vector(http.post("models/org/other:embedContent", json=body))
    mine = _vector(http.post(f"models/{MODEL}:embedContent", json=body))
    alias = _vector(http.post("models/gemini-embedding-001:embedContent", json=body))
    assert other != mine
    assert alias == mine


def test_g07_malformed_json_and_unknown_fields_are_named(http: httpx2.Client) -> None:
    """Neither is ever HTML or a 500."""
    _refused(
        http.post(f"models/{MODEL}:embedContent", content=b'{"content": '), 400, "INVALID_ARGUMENT", "body"
    )
    answer = http.post(
        f"models/{MODEL}:embedContent", json={"content": {"parts": [{"text": "x"}]}, "colour": 1}
    )
    assert 'Unknown name "colour"' in _refused(answer, 400, "INVALID_ARGUMENT", "colour")["message"]


def test_b01_sdk_creates_an_inline_batch(http: httpx2.Client) -> None:
    """The answer is an Operation: named, typed, PENDING, counters as strings, `done` absent."""
    answer = _create(http, _body([_entry(SLOW + str(at)) for at in range(3)], displayName="three"))
    operation = answer.json()
    assert operation["name"].startswith("batches/")
    assert operation["metadata"]["@type"].endswith("EmbedContentBatch")
    assert operation["metadata"]["state"] == "BATCH_STATE_PENDING"
    assert operation["metadata"]["batchStats"]["requestCount"] == "3"
    assert operation["metadata"]["displayName"] == "three"
    assert "done" not in operation


def test_b01_b09_sdk_follows_an_inline_batch_to_its_end(sdk: genai.Client) -> None:
    """google-genai submits, polls and reads the embeddings in input order."""
    job = _sdk_batch(sdk, ["a", "b", "c"], display_name="sdk")
    assert str(job.state) == "JobState.JOB_STATE_SUCCEEDED"
    found = [one.response.embedding.values for one in job.dest.inlined_embed_content_responses]
    direct = sdk.models.embed_content(model=MODEL, contents=["a", "b", "c"]).embeddings or []
    assert found == [one.values for one in direct]


def test_b02_a_display_name_is_optional(sdk: genai.Client) -> None:
    """The wire does not require one."""
    assert str(_sdk_batch(sdk, ["a"]).state) == "JobState.JOB_STATE_SUCCEEDED"


def test_b04_both_sources_neither_and_none_are_refused(http: httpx2.Client) -> None:
    """Each names its field, and nothing is created."""
    before = http.get("batches").json()
    both = {"batch": {"inputConfig": {"requests": {"requests": [_entry("x")]}, "fileName": "files/x"}}}
    _refused(_create(http, both), 400, "INVALID_ARGUMENT", "batch.inputConfig")
    _refused(_create(http, {"batch": {"inputConfig": {}}}), 400, "INVALID_ARGUMENT", "batch.inputConfig")
    _refused(_create(http, _body([])), 400, "INVALID_ARGUMENT", "batch.inputConfig.requests.requests")
    assert [one["name"] for one in http.get("batches").json()["operations"]] == [
        one["name"] for one in before["operations"]
    ]


def test_b05_a_missing_file_is_a_403_as_googles(http: httpx2.Client) -> None:
    """Google answers a file that is not there with PERMISSION_DENIED."""
    answer = _create(http, {"batch": {"inputConfig": {"fileName": "files/not-there"}}})
    _refused(answer, 403, "PERMISSION_DENIED")


def test_b06_a_body_over_the_limit_is_refused(http: httpx2.Client) -> None:
    """21 MiB inline is a 413 with the envelope."""
    answer = http.post(f"models/{MODEL}:asyncBatchEmbedContent", content=b" " * (21 << 20))
    _refused(answer, 413, "INVALID_ARGUMENT")


def test_b07_priority_is_text_number_or_negative(http: httpx2.Client) -> None:
    """Each form is echoed as a string; what is no int64 is refused by name."""
    for given, shown in (("7", "7"), ("-3", "-3"), (5, "5"), (None, "0")):
        operation = _create(http, _body([_entry("x")], priority=given)).json()
        assert operation["metadata"]["priority"] == shown
    for wrong in ("high", 1.5, str(1 << 63), True):
        answer = _create(http, _body([_entry("x")], priority=wrong))
        _refused(answer, 400, "INVALID_ARGUMENT", "batch.priority")


def test_b07_higher_priority_runs_first(http: httpx2.Client) -> None:
    """A later batch of higher priority ends before a long one that was there first."""
    long = _create(http, _body([_entry(f"{SLOW} {at} " + "word " * 400) for at in range(2000)])).json()[
        "name"
    ]
    urgent = _create(http, _body([_entry("now")], priority="9")).json()["name"]
    ended = _done(http, urgent)["metadata"]["endTime"]
    assert not http.get(long, params={"view": "BASIC"}).json().get("done")
    assert http.post(f"{long}:cancel").status_code == 200
    assert ended


def test_b08_counters_add_up_while_it_runs(http: httpx2.Client) -> None:
    """In every poll the counters sum to the total; zeros are left out; progress is visible before the end."""
    name = _create(http, _body([_entry(f"{SLOW} {at} " + "word " * 300) for at in range(1500)])).json()[
        "name"
    ]
    states, seen = set(), 0
    while True:
        operation = http.get(name, params={"view": "BASIC"}).json()
        states.add(operation["metadata"]["state"])
        stats = {key: int(value) for key, value in operation["metadata"]["batchStats"].items()}
        parts = ("successfulRequestCount", "failedRequestCount", "pendingRequestCount")
        assert sum(stats.get(part, 0) for part in parts) == stats["requestCount"] == 1500
        assert 0 not in stats.values()
        seen = max(seen, stats.get("uncommittedRequestCount", 0))
        if operation.get("done"):
            break
    assert "BATCH_STATE_RUNNING" in states
    assert seen > 0


def test_b09_output_stands_twice_with_the_doubled_key(http: httpx2.Client) -> None:
    """metadata.output and response hold the same items."""
    operation = _done(http, _create(http, _body([_entry("a"), _entry("b")])).json()["name"])
    items = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert operation["response"]["inlinedResponses"]["inlinedResponses"] == items
    assert operation["done"] is True
    assert len(items) == 2
    assert all(len(item["response"]["embedding"]["values"]) == 64 for item in items)


def test_b10_one_bad_item_fails_alone(sdk: genai.Client, http: httpx2.Client) -> None:
    """The batch succeeds; the item carries code and message and no details, and the SDK parses it."""
    job = _sdk_batch(sdk, ["good", "  ", "fine"])
    responses = job.dest.inlined_embed_content_responses
    assert [one.error is None for one in responses] == [True, False, True]
    assert responses[1].error.code == 3
    assert responses[1].error.details is None
    assert http.get(job.name).json()["metadata"]["batchStats"]["failedRequestCount"] == "1"


def test_b11_all_items_bad_still_succeeds(sdk: genai.Client) -> None:
    """The batch is SUCCEEDED; the SDK finds the errors under inlined_responses."""
    job = _sdk_batch(sdk, ["", " "])
    assert str(job.state) == "JobState.JOB_STATE_SUCCEEDED"
    assert [one.error.code for one in job.dest.inlined_responses] == [3, 3]


def test_b12_metadata_is_echoed_unchanged(http: httpx2.Client) -> None:
    """Nested JSON comes back on the same item, also on a failed one."""
    metadata = {"id": 7, "deep": {"list": [1, "zwei", None, {"x": 1.5}]}, "text": "Ünïcödé 🧪"}
    entries = [{**_entry("a"), "metadata": metadata}, {**_entry(""), "metadata": {"n": 2}}, _entry("c")]
    operation = _done(http, _create(http, _body(entries)).json()["name"])
    items = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert items[0]["metadata"] == metadata
    assert items[1]["metadata"] == {"n": 2}
    assert "metadata" not in items[2]


def _upload(sdk: genai.Client, tmp_path: Any, lines: list[bytes]) -> str:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    file = sdk.files.upload(file=str(path), config={"mime_type": "application/jsonl"})
    return str(file.name)


def _line(key: str | None, text: str, **more: Any) -> bytes:
    line = {"request": {"content": {"parts": [{"text": text}]}, **more}}
    return json.dumps(line if key is None else {"key": key, **line}).encode()


def test_b03_b13_a_file_batch_gives_a_file(sdk: genai.Client, http: httpx2.Client, tmp_path: Any) -> None:
    """Both spellings of fileName; the results are JSONL, one line an input line, keys echoed."""
    file = _upload(sdk, tmp_path, [_line(f"k{at}", f"text {at}") for at in range(5)])
    for spelling in ("fileName", "file_name"):
        operation = _create(http, {"batch": {"inputConfig": {spelling: file}}}).json()
        assert operation["metadata"]["inputConfig"]["fileName"] == file
        operation = _done(http, operation["name"])
        made = f"files/batch-{operation['name'].removeprefix('batches/')}"
        assert operation["metadata"]["output"] == {"responsesFile": made}
    job = sdk.batches.create_embeddings(model=MODEL, src={"file_name": file})
    deadline = time.monotonic() + 60
    while not job.done and time.monotonic() < deadline:
        job = sdk.batches.get(name=str(job.name))
    assert job.dest is not None
    assert job.dest.file_name is not None
    lines = [json.loads(line) for line in sdk.files.download(file=job.dest.file_name).splitlines()]
    assert [line["key"] for line in lines] == [f"k{at}" for at in range(5)]
    assert all(len(line["response"]["embedding"]["values"]) == 64 for line in lines)


def test_b14_bad_lines_fail_alone(sdk: genai.Client, http: httpx2.Client, tmp_path: Any) -> None:
    """No key, a key twice, no JSON, blank, CRLF, UTF-8, no last line end: the count of lines is kept."""
    lines = [
        b"\xef\xbb\xbf" + _line(None, "no key"),
        _line("a", "first") + b"\r",
        _line("a", "again"),
        b"{broken",
        b"",
        _line("ü", "Ünïcödé 🧪"),
        b'{"key": "s", "request": {"content": {"parts": [{"text": "\\ud800"}]}}}',
        b'"text alone"',
        b'{"key": "f", "request": {"colour": 1}}',
        b'{"custom_id": "last", "request": {"content": {"parts": [{"text": "end"}]}}}',
    ]
    file = _upload(sdk, tmp_path, lines)
    operation = _done(http, _create(http, {"batch": {"inputConfig": {"fileName": file}}}).json()["name"])
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"] == {
        "requestCount": "9",
        "successfulRequestCount": "4",
        "failedRequestCount": "5",
    }
    content = sdk.files.download(file=operation["metadata"]["output"]["responsesFile"])
    found = [json.loads(line) for line in content.splitlines()]
    assert [line.get("key") for line in found] == [None, "a", "a", None, "ü", None, None, "f", "last"]
    assert ["error" in line for line in found] == [False, False, True, True, False, True, True, True, False]
    assert "line 4" in found[3]["error"]["message"]
    assert "stands earlier" in found[2]["error"]["message"]
    assert "colour" in found[7]["error"]["message"]


def test_b15_option_layouts_of_lines_agree(sdk: genai.Client, http: httpx2.Client, tmp_path: Any) -> None:
    """Flat camel, flat snake and embed_content_config give identical vectors."""
    options: list[dict[str, Any]] = [
        {"outputDimensionality": 8, "taskType": "CLUSTERING"},
        {"output_dimensionality": 8, "task_type": "CLUSTERING"},
        {"embed_content_config": {"output_dimensionality": 8, "task_type": "CLUSTERING"}},
    ]
    file = _upload(sdk, tmp_path, [_line(str(at), "same", **one) for at, one in enumerate(options)])
    operation = _done(http, _create(http, {"batch": {"inputConfig": {"fileName": file}}}).json()["name"])
    content = sdk.files.download(file=operation["metadata"]["output"]["responsesFile"])
    vectors = [json.loads(line)["response"]["embedding"]["values"] for line in content.splitlines()]
    assert len(vectors[0]) == 8
    assert vectors[0] == vectors[1] == vectors[2]


def test_b16_b17_cancel_keeps_what_was_finished(http: httpx2.Client) -> None:
    """A running batch stops: CANCELLED, done, code 1; unserved items say so; the counts are frozen."""
    name = _create(http, _body([_entry(f"{SLOW} {at} " + "word " * 400) for at in range(3000)])).json()[
        "name"
    ]
    while http.get(name, params={"view": "BASIC"}).json()["metadata"]["state"] != "BATCH_STATE_RUNNING":
        pass
    assert http.post(f"{name}:cancel").json() == {}
    operation = http.get(name).json()
    assert operation["done"] is True
    assert operation["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert operation["error"]["code"] == 1
    items = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    unserved = [item for item in items if item.get("error", {}).get("code") == 1]
    stats = operation["metadata"]["batchStats"]
    assert len(items) == 3000
    assert len(unserved) == int(stats["failedRequestCount"]) > 0
    assert "pendingRequestCount" not in stats
    assert http.get(name, params={"view": "BASIC"}).json()["metadata"]["batchStats"] == stats


def test_b18_cancelling_again_or_late_changes_nothing(http: httpx2.Client) -> None:
    """Both answer 200; a finished batch stays finished."""
    name = _create(http, _body([_entry("x")])).json()["name"]
    _done(http, name)
    for _ in range(2):
        assert http.post(f"{name}:cancel").status_code == 200
    assert http.get(name).json()["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_b19_b20_delete(http: httpx2.Client) -> None:
    """A running batch is refused, a finished one goes once, then everything is 404."""
    running = _create(http, _body([_entry(f"{SLOW} {at} " + "word " * 400) for at in range(2000)])).json()[
        "name"
    ]
    _refused(http.delete(running), 400, "FAILED_PRECONDITION")
    http.post(f"{running}:cancel")
    assert http.delete(running).json() == {}
    _refused(http.delete(running), 404, "NOT_FOUND")
    _refused(http.get(running), 404, "NOT_FOUND")


def test_b21_listing_pages_through_each_once(sdk: genai.Client, http: httpx2.Client) -> None:
    """Pages of two, newest first, no output in entries; the SDK's iteration sees the same."""
    names = [_create(http, _body([_entry("x")])).json()["name"] for _ in range(5)]
    found, token = [], ""
    while True:
        page = http.get("batches", params={"pageSize": 2, "pageToken": token}).json()
        assert all("output" not in one["metadata"] and "response" not in one for one in page["operations"])
        found += [one["name"] for one in page["operations"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert len(found) == len(set(found))
    assert found[:5] == names[::-1]
    assert [job.name for job in sdk.batches.list(config={"page_size": 2})] == found


@pytest.mark.parametrize("token", ["nonsense", "W10=", "e30="])
def test_b22_a_forged_page_token_is_refused(http: httpx2.Client, token: str) -> None:
    """The message says where tokens come from."""
    _refused(http.get("batches", params={"pageToken": token}), 400, "INVALID_ARGUMENT", "pageToken")


@pytest.mark.parametrize("name", ["batches/unknown", "batches/..%2Fetc", "batches/" + "x" * 5000])
def test_b23_unknown_ids_are_404(http: httpx2.Client, name: str) -> None:
    """However they are spelled."""
    _refused(http.get(name), 404, "NOT_FOUND")


def test_b24_update_changes_name_and_priority_only(http: httpx2.Client) -> None:
    """The answer is the bare batch; another mask is refused."""
    name = _create(http, _body([_entry("x")], displayName="old", priority=1)).json()["name"]
    path = f"{name}:updateEmbedContentBatch"
    answer = http.patch(
        path, params={"updateMask": "displayName,priority"}, json={"display_name": "new", "priority": "8"}
    )
    assert answer.json()["displayName"] == "new"
    assert answer.json()["priority"] == "8"
    assert "metadata" not in answer.json()
    answer = http.patch(
        path, params={"updateMask": "priority"}, json={"displayName": "ignored", "priority": 9}
    )
    assert (answer.json()["displayName"], answer.json()["priority"]) == ("new", "9")
    refused = http.patch(path, params={"updateMask": "state"}, json={"priority": 1})
    _refused(refused, 400, "INVALID_ARGUMENT", "updateMask")


def test_b27_an_idempotency_key_gives_the_same_batch(http: httpx2.Client) -> None:
    """Without a key the same create makes two batches; with one, one; another body under it is refused."""
    body = _body([_entry("x")])
    assert _create(http, body).json()["name"] != _create(http, body).json()["name"]
    key = f"key-{time.time_ns()}"
    first = _create(http, body, **{"Idempotency-Key": key}).json()["name"]
    assert _create(http, body, **{"Idempotency-Key": key}).json()["name"] == first
    answer = _create(http, _body([_entry("y")]), **{"Idempotency-Key": key})
    _refused(answer, 409, "ALREADY_EXISTS", "Idempotency-Key")


def test_b29_b30_times_and_statuses(http: httpx2.Client) -> None:
    """Every time is RFC 3339 in UTC with nine digits, and every success is exactly 200."""
    created = _create(http, _body([_entry("x")]))
    assert created.status_code == 200
    operation = _done(http, created.json()["name"])
    for name in ("createTime", "updateTime", "endTime"):
        value = operation["metadata"][name]
        assert value.endswith("Z")
        assert len(value.partition(".")[2]) == 10
        assert datetime.fromisoformat(value[:26] + "+00:00").year >= 2026


def test_m01_models_say_what_they_can(sdk: genai.Client, http: httpx2.Client) -> None:
    """Both models are listed; one is found by name and by alias; its limits are numbers."""
    assert [model.name for model in sdk.models.list()] == [f"models/{MODEL}", "models/org/other"]
    for name in (MODEL, "org/other", "gemini-embedding-001"):
        model = http.get(f"models/{name}").json()
        assert {"embedContent", "asyncBatchEmbedContent"} <= set(model["supportedGenerationMethods"])
        assert model["inputTokenLimit"] == 512
    found = sdk.models.get(model=MODEL)
    assert found.supported_actions is not None
    assert "asyncBatchEmbedContent" in found.supported_actions


def test_n01_fewer_dimensions_are_leading_ones_at_length_one(http: httpx2.Client) -> None:
    """Truncated, then normalised; native ones are of length 1 already."""
    body = {"content": {"parts": [{"text": "x"}]}}
    native = np.array(_vector(http.post(f"models/{MODEL}:embedContent", json=body)))
    short = np.array(
        _vector(http.post(f"models/{MODEL}:embedContent", json={**body, "outputDimensionality": 9}))
    )
    assert np.linalg.norm(native) == pytest.approx(1, abs=1e-5)
    assert short == pytest.approx(native[:9] / np.linalg.norm(native[:9]), abs=1e-6)


@pytest.mark.parametrize("dimensions", [0, -1, 65, 768.5, True, "many", 1 << 40])
def test_n02_impossible_dimensions_are_refused_by_name(http: httpx2.Client, dimensions: Any) -> None:
    """Interactive and inline alike; above the native number the message names it."""
    body = {"content": {"parts": [{"text": "x"}]}, "outputDimensionality": dimensions}
    answer = http.post(f"models/{MODEL}:embedContent", json=body)
    _refused(answer, 400, "INVALID_ARGUMENT", "outputDimensionality")
    field = "batch.inputConfig.requests.requests[1].request.outputDimensionality"
    answer = _create(http, _body([_entry("a"), _entry("b", outputDimensionality=dimensions)]))
    error = _refused(answer, 400, "INVALID_ARGUMENT", field)
    if dimensions == 65:
        assert "64" in error["message"]


def test_n03_an_over_long_text_is_cut_and_flagged(http: httpx2.Client) -> None:
    """The Arrow stream says which texts were cut; the embedding is that of the head."""
    import pyarrow as pa

    name = _create(http, _body([_entry("word " * 2000), _entry("short")])).json()["name"]
    _done(http, name)
    answer = http.get(f"{name}/embeddings")
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column("truncated").to_pylist() == [True, False]
    assert table.column("tokens").to_pylist()[0] == 512


@pytest.mark.parametrize("spelling", ["autoTruncate", "auto_truncate"])
def test_n03_an_over_long_text_fails_alone_where_cutting_is_refused(
    http: httpx2.Client, spelling: str
) -> None:
    """`autoTruncate: false` fails what would be cut, in a batch alone and interactively at once."""
    whole = {"embedContentConfig": {spelling: False}}
    long, short = _entry("word " * 2000), _entry("short")
    for entry in (long, short):
        entry["request"] |= whole
    again = _entry("word " * 2000)
    operation = _done(http, _create(http, _body([long, short, again])).json()["name"])
    items = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert [item.get("error", {}).get("code") for item in items] == [3, None, None]
    assert "autoTruncate" in items[0]["error"]["message"]
    assert operation["metadata"]["batchStats"]["failedRequestCount"] == "1"
    path = f"models/{MODEL}:embedContent"
    _refused(http.post(path, json=long["request"]), 400, "INVALID_ARGUMENT")
    assert http.post(path, json=again["request"]).status_code == 200
    wrong = {**short["request"], "embedContentConfig": {spelling: "no"}}
    _refused(http.post(path, json=wrong), 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_n04_empty_text_is_400_interactively(http: httpx2.Client, text: str) -> None:
    """In a batch it fails its request alone; alone it is a refusal."""
    answer = http.post(f"models/{MODEL}:embedContent", json={"content": {"parts": [{"text": text}]}})
    _refused(answer, 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("numbers", "width", "tolerance"), [("float32", 16, 0), ("float16", 16, 1e-3), ("int8", 16, 0.01)]
)
def test_arrow_results_in_each_form(http: httpx2.Client, numbers: str, width: int, tolerance: float) -> None:
    """Dimensions and number form are chosen when reading; values agree with the JSON's within the form."""
    import pyarrow as pa

    operation = _done(http, _create(http, _body([_entry("a"), _entry(""), _entry("c")])).json()["name"])
    items = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    answer = http.get(f"{operation['name']}/embeddings", params={"dimensions": 16, "numbers": numbers})
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.schema.field("embedding").type.list_size == width
    rows = table.to_pylist()
    assert [row["error_reason"] for row in rows] == [None, "EMPTY_TEXT", None]
    assert rows[1]["embedding"] is None
    for at in (0, 2):
        native = np.array(items[at]["response"]["embedding"]["values"])[:16]
        found = np.array(rows[at]["embedding"], np.float64) * (rows[at].get("scale") or 1.0)
        assert found == pytest.approx(native / np.linalg.norm(native), abs=max(tolerance, 1e-6))


def test_arrow_results_as_bits(http: httpx2.Client) -> None:
    """Eight signs a byte, most significant first."""
    import pyarrow as pa

    operation = _done(http, _create(http, _body([_entry("a")])).json()["name"])
    values = operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"][0]["response"][
        "embedding"
    ]
    answer = http.get(f"{operation['name']}/embeddings", params={"numbers": "bits"})
    (row,) = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    assert np.unpackbits(np.array(row["embedding"], np.uint8)).tolist() == [
        int(v > 0) for v in values["values"]
    ]


def test_results_of_a_running_batch_are_refused(http: httpx2.Client) -> None:
    """The Arrow stream says FAILED_PRECONDITION until the batch is final."""
    name = _create(http, _body([_entry(f"{SLOW} {at} " + "word " * 400) for at in range(2000)])).json()[
        "name"
    ]
    _refused(http.get(f"{name}/embeddings"), 400, "FAILED_PRECONDITION")
    http.post(f"{name}:cancel")


def test_sdk_errors_are_its_own_classes(sdk: genai.Client) -> None:
    """google-genai raises ClientError with our message."""
    with pytest.raises(genai_errors.ClientError, match="there is no batch"):
        sdk.batches.get(name="batches/unknown")
