"""The Vertex stand-in: jobs, lines and calls in the captured shapes, over a Cloud Storage that breaks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from hosted.behaviour import Fault
from hosted.plain import MODEL, PlainVertex, good, refused
from hosted.vertex import BUCKET, NUMBER, VertexStandIn
from pyarrow import fs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.hosted

LEGACY = "text-embedding-005"
GRANULE = 256 * 1024
BROKEN = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)


@pytest.fixture
def google() -> Iterator[VertexStandIn]:
    """A stand-in on a good day."""
    with VertexStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def http(google: VertexStandIn) -> PlainVertex:
    """Who asks it."""
    return PlainVertex(google)


def _keyed(texts: list[str]) -> bytes:
    config = {"output_dimensionality": 2, "task_type": "CLUSTERING"}
    requests = [{"content": {"parts": [{"text": text}]}, "embed_content_config": config} for text in texts]
    return _lines([{"key": str(at), "request": one} for at, one in enumerate(requests)])


def _lines(values: list[Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_a_job(http: PlainVertex) -> None:
    """Names have the project's number, labels are repeated, statistics are strings without zeros."""
    job = http.create(_keyed(["one", "", "three"]), labels={"embatch": "abc"})
    assert job["name"].startswith(f"projects/{NUMBER}/locations/us-central1/batchPredictionJobs/")
    assert (job["state"], job["labels"]) == ("JOB_STATE_PENDING", {"embatch": "abc"})
    assert not {"startTime", "endTime", "outputInfo", "completionStats", "error"} & job.keys()
    running = good(http.ask("GET", f"/v1beta1/{job['name']}"))
    assert (running["state"], "startTime" in running) == ("JOB_STATE_RUNNING", True)
    ended = http.ended(job["name"])
    assert ended["completionStats"] == {"successfulCount": "2", "failedCount": "1"}
    lines = http.lines(ended)
    assert [line["key"] for line in lines] == ["0", "1", "2"]
    assert lines[0]["status"] == ""
    assert json.loads(lines[1]["status"])["code"] == 3
    expected = http.google.vectors("three", MODEL, 2, "CLUSTERING")
    assert np.allclose(lines[2]["response"]["embedding"]["values"], expected)
    assert http.google.creates == 1


def test_files_and_lines_that_differ(http: PlainVertex) -> None:
    """Several files of other names, in any order, with the request echoed and `error` for `status`."""
    http.google.behave(output_files=3, output_name="part", reorder=True, echo_request=True, status_lines=True)
    ended = http.ended(http.create(_keyed([f"text {at}" for at in range(20)] + [""]))["name"])
    names = http.google.storage.names("out/")
    assert [name.rpartition("/")[2] for name in names] == [f"part-0000{at}-of-00003.jsonl" for at in range(3)]
    lines = http.lines(ended)
    keys = [int(line["key"]) for line in lines]
    assert keys != sorted(keys) == [*range(21)]
    assert all("request" in line for line in lines)
    assert [line["error"]["code"] for line in lines if "error" in line] == [3]


def test_legacy_models_echo_the_instance(http: PlainVertex) -> None:
    """Rows come back as they were sent, what the service does not know included."""
    instances = [
        {"content": "one", "task_type": "CLUSTERING", "outputDimensionality": 2, "key": 7},
        {"content": "", "title": "t"},
    ]
    ended = http.ended(http.create(_lines(instances), LEGACY)["name"])
    lines = http.lines(ended)
    assert [line["instance"] for line in lines] == instances
    found = lines[0]["predictions"][0]["embeddings"]
    assert found["statistics"] == {"token_count": 1, "truncated": False}
    assert np.allclose(found["values"], http.google.vectors("one", LEGACY, 2, "CLUSTERING"))
    assert (lines[1]["predictions"], bool(lines[1]["status"])) == ([], True)


def test_too_many_rows(http: PlainVertex) -> None:
    """Thirty thousand rows are what a legacy model takes; a job with more is created and fails."""
    row = json.dumps({"content": "x"}).encode() + b"\n"
    ended = http.ended(http.create(row * 30_001, LEGACY)["name"])
    assert (ended["state"], ended["error"]["code"]) == ("JOB_STATE_FAILED", 3)
    missing = good(http.ask("POST", "batchPredictionJobs", http.job("not-there.jsonl")))
    assert http.ended(missing["name"])["state"] == "JOB_STATE_FAILED"
    assert http.google.creates == 2


def test_ends(http: PlainVertex) -> None:
    """Succeeded in part with the first rows only, refused for quota, expired."""
    http.google.behave(ends=("PARTIALLY_SUCCEEDED", "FAILED_QUOTA"), partial=0.5)
    ended = http.ended(http.create(_keyed(["a", "b", "c", "d"]))["name"])
    assert ended["state"] == "JOB_STATE_PARTIALLY_SUCCEEDED"
    assert ended["completionStats"] == {"successfulCount": "2", "incompleteCount": "2"}
    assert [line["key"] for line in http.lines(ended)] == ["0", "1"]
    assert http.ended(http.create(_keyed(["a"]))["name"])["error"]["code"] == 8
    http.google.behave(stays="QUEUED")
    queued = http.create(_keyed(["a"]))["name"]
    assert good(http.ask("GET", f"/v1/{queued}"))["state"] == "JOB_STATE_QUEUED"
    http.google.behave(stays="PAUSED")
    assert good(http.ask("GET", f"/v1/{queued}"))["state"] == "JOB_STATE_PAUSED"
    http.google.clock.advance(73 * 3600)
    http.google.tokens.issue()
    assert good(http.ask("GET", f"/v1/{queued}"))["state"] == "JOB_STATE_EXPIRED"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"displayName": ""}, 400),
        ({"model": "publishers/google/models/none"}, 404),
        ({"labels": {"embatch": "Ä"}}, 400),
        ({"labels": {"embatch": "a" * 64}}, 400),
        ({"inputConfig": {"instancesFormat": "csv"}}, 400),
        ({"priority": "1"}, 400),
        ({"outputConfig": {"predictionsFormat": "jsonl"}}, 400),
    ],
)
def test_jobs_that_are_refused(http: PlainVertex, change: dict[str, Any], status: int) -> None:
    """What is missing or not known is refused, and nothing is created."""
    reply = http.ask("POST", "batchPredictionJobs", {**http.job("in.jsonl"), **change})
    assert reply.status_code == status, reply.text
    assert http.google.creates == 0


def test_regions(google: VertexStandIn) -> None:
    """A model is refused where it is not served, and jobs are listed where they are."""
    for location, model, status in (
        ("us-central1", "gemini-embedding-2", 400),
        ("global", "gemini-embedding-2", 200),
        ("global", MODEL, 400),
        ("us-west4", MODEL, 200),
        ("asia-east1", LEGACY, 200),
    ):
        http = PlainVertex(google, location)
        google.storage.write("in.jsonl", _keyed(["one"]))
        assert http.ask("POST", "batchPredictionJobs", http.job("in.jsonl", model)).status_code == status
    assert (
        len(good(PlainVertex(google, "global").ask("GET", "batchPredictionJobs"))["batchPredictionJobs"]) == 1
    )


def test_list(http: PlainVertex) -> None:
    """Pages, newest first, late, and filtered by label or name."""
    names = [http.create(_keyed(["x"]), labels={"embatch": f"f{at}"})["name"] for at in range(3)]
    page = good(http.ask("GET", "batchPredictionJobs?pageSize=2"))
    assert [one["name"] for one in page["batchPredictionJobs"]] == names[:0:-1]
    rest = good(http.ask("GET", f"batchPredictionJobs?pageSize=2&pageToken={page['nextPageToken']}"))
    assert [one["name"] for one in rest["batchPredictionJobs"]] == names[:1]
    assert "nextPageToken" not in rest
    found = good(http.ask("GET", 'batchPredictionJobs?filter=labels.embatch%3D"f1"'))
    assert [one["name"] for one in found["batchPredictionJobs"]] == names[1:2]
    refused(http.ask("GET", "batchPredictionJobs?filter=nonsense"), 400, "INVALID_ARGUMENT")
    http.google.behave(lists_late_seconds=5)
    assert good(http.ask("GET", "batchPredictionJobs")) == {}


def test_tokens(http: PlainVertex) -> None:
    """A token counts until it is old or all of them are expired; another project is refused."""
    good(http.ask("GET", "batchPredictionJobs"))
    http.google.clock.advance(3600)
    refused(http.ask("GET", "batchPredictionJobs"), 401, "UNAUTHENTICATED")
    http.google.tokens.issue()
    good(http.ask("GET", "batchPredictionJobs"))
    elsewhere = "/v1/projects/other/locations/us-central1/batchPredictionJobs"
    refused(http.ask("GET", elsewhere), 403, "PERMISSION_DENIED")
    http.google.tokens.expire()
    refused(http.ask("GET", "batchPredictionJobs"), 401, "UNAUTHENTICATED")
    http.google.behave(storage_wants_token=True)
    refused(http.ask("GET", f"/storage/v1/b/{BUCKET}/o"), 401, "UNAUTHENTICATED")
    http.google.tokens.issue()
    good(http.ask("GET", f"/storage/v1/b/{BUCKET}/o"))


def test_interactive(http: PlainVertex) -> None:
    """One text a call for Gemini models, up to 250 instances for legacy ones, and no batch of contents."""
    content = {"content": {"parts": [{"text": "one two"}]}, "embedContentConfig": {"outputDimensionality": 2}}
    reply = good(http.model("embedContent", content))
    assert np.allclose(reply["embedding"]["values"], http.google.vectors("one two", MODEL, 2))
    assert (reply["usageMetadata"]["promptTokenCount"], reply["truncated"]) == (2, False)
    refused(http.model("batchEmbedContents", {"requests": [content]}), 404, "NOT_FOUND")
    refused(http.model("embedContent", content, LEGACY), 404, "NOT_FOUND")
    two = {"instances": [{"content": "a"}, {"content": "b"}], "parameters": {"outputDimensionality": 2}}
    refused(http.model("predict", two), 400, "INVALID_ARGUMENT")
    assert len(good(http.model("predict", two, LEGACY))["predictions"]) == 2
    refused(http.model("predict", {"instances": [{"content": "a"}] * 251}, LEGACY), 400, "INVALID_ARGUMENT")
    long = {"instances": [{"content": "word " * 2049}], "parameters": {"autoTruncate": False}}
    refused(http.model("predict", long, LEGACY), 400, "INVALID_ARGUMENT")
    del long["parameters"]
    found = good(http.model("predict", long, LEGACY))["predictions"][0]["embeddings"]["statistics"]
    assert found == {"token_count": 2048, "truncated": True}
    assert good(http.model("countTokens", {"instances": [{"content": "a b"}]}))["totalTokens"] == 2
    assert http.google.items == 4


def test_cancel_and_delete(http: PlainVertex) -> None:
    """A job is CANCELLING before it is cancelled, and deleted only then."""
    name = http.create(_keyed(["x"]))["name"]
    refused(http.ask("DELETE", f"/v1/{name}"), 400, "FAILED_PRECONDITION")
    assert good(http.ask("POST", f"/v1/{name}:cancel")) == {}
    assert (
        good(http.ask("GET", "batchPredictionJobs"))["batchPredictionJobs"][0]["state"]
        == "JOB_STATE_CANCELLING"
    )
    assert good(http.ask("GET", f"/v1/{name}"))["state"] == "JOB_STATE_CANCELLED"
    assert good(http.ask("DELETE", f"/v1/{name}"))["done"]
    refused(http.ask("GET", f"/v1/{name}"), 404, "NOT_FOUND")


def test_results_that_are_late(http: PlainVertex) -> None:
    """The folder is named a look late, and its files are there a request late."""
    http.google.behave(late_results=1, late_files=2)
    name = http.create(_keyed(["x"]))["name"]
    assert "outputInfo" not in http.ended(name)
    ended = good(http.ask("GET", f"/v1/{name}"))
    assert ended["outputInfo"]
    listing = f"/storage/v1/b/{BUCKET}/o?prefix=out/"
    assert [len(good(http.ask("GET", listing))["items"]) for _ in range(3)] == [0, 0, 1]
    assert len(http.lines(ended)) == 1


def test_cloud_storage_for_pyarrow(google: VertexStandIn) -> None:
    """Another client of Cloud Storage writes, lists in pages and reads past the stand-in."""
    google.behave(list_size=2)
    store = fs.GcsFileSystem(
        anonymous=True, endpoint_override=google.url.removeprefix("http://"), scheme="http"
    )
    for at in range(5):
        with store.open_output_stream(f"{BUCKET}/in/{at}.jsonl") as file:
            file.write(b"x" * at)
    listed = store.get_file_info(fs.FileSelector(f"{BUCKET}/in"))
    assert sorted((one.base_name, one.size) for one in listed) == [(f"{at}.jsonl", at) for at in range(5)]
    with store.open_input_stream(f"{BUCKET}/in/4.jsonl") as file:
        assert file.read() == b"xxxx"
    assert google.calls["storage.list"] >= 3


def test_a_resumable_upload_that_breaks(http: PlainVertex) -> None:
    """Of a chunk that breaks off whole granules are kept; who asks is told and goes on."""
    content = bytes(range(256)) * (3 * GRANULE // 256) + b"the end"
    http.google.behave(faults=(Fault("storage.chunk", calls=(1,), cut="request", at=2 * GRANULE + 5),))
    base = f"{http.google.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name=big"
    with httpx2.Client(trust_env=False, timeout=60) as client:
        url = client.post(base, json={}).headers["location"]
        whole = f"bytes 0-{len(content) - 1}/{len(content)}"
        with pytest.raises(BROKEN):
            client.put(url, content=content, headers={"content-range": whole})
        asked = client.put(url, headers={"content-range": f"bytes */{len(content)}"})
        assert (asked.status_code, asked.headers["range"]) == (308, f"bytes=0-{2 * GRANULE - 1}")
        rest = f"bytes {2 * GRANULE}-{len(content) - 1}/{len(content)}"
        assert (
            client.put(url, content=content[2 * GRANULE :], headers={"content-range": rest}).status_code
            == 200
        )
    assert http.google.storage.read("big") == content


@pytest.mark.parametrize("cut", ["unread", "handled", "head", "body"])
def test_storage_breaks(http: PlainVertex, cut: str) -> None:
    """Reads and uploads of objects break as other calls do, and what was handled is there."""
    http.google.storage.write("a", b"content")
    google = http.google
    google.behave(faults=(Fault("storage.*", calls=(1,), cut=cut, at=1),))  # type: ignore[arg-type]
    with httpx2.Client(trust_env=False, timeout=60) as client:
        for _ in range(2):
            try:
                client.get(f"{google.url}/storage/v1/b/{BUCKET}/o/a?alt=media")
            except BROKEN:
                continue
            assert google.calls["storage.read"] == 2
        with pytest.raises(BROKEN):
            client.post(f"{google.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=b", content=b"x")
    assert google.storage.read("b") == (None if cut == "unread" else b"x")
