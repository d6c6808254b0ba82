"""Vertex's words: states, lines of results in either family's form, jobs with what the service leaves out."""

from __future__ import annotations

import base64
import io

import numpy as np
import orjson
import pytest

from embatch import Code, Internal, Request, State, TaskType
from embatch.wire.vertex import read_responses, routes, storage, write_requests
from embatch.wire.vertex.states import STATES

NAME = "projects/123456789012/locations/us-central1/batchPredictionJobs/8127"


def job(**said: object) -> read_responses.Job:
    """Return what is read of a job."""
    model = "publishers/google/models/gemini-embedding-001"
    return read_responses.parse_job(orjson.dumps({"name": NAME, "model": model, **said}))


@pytest.mark.parametrize(
    ("word", "state", "noted"),
    [
        ("QUEUED", State.PENDING, "queued"),
        ("PENDING", State.PENDING, None),
        ("RUNNING", State.PROCESSING, None),
        ("UPDATING", State.PROCESSING, "updated"),
        ("PAUSED", State.PROCESSING, "paused"),
        ("CANCELLING", State.PROCESSING, "cancelled"),
        ("SUCCEEDED", State.COMPLETED, None),
        ("PARTIALLY_SUCCEEDED", State.COMPLETED, "partially"),
        ("FAILED", State.FAILED, None),
        ("CANCELLED", State.CANCELLED, None),
        ("EXPIRED", State.EXPIRED, None),
    ],
)
def test_every_state_has_its_meaning(word: str, state: State, noted: str | None) -> None:
    """What our states cannot say stands in a note."""
    found = job(state=f"JOB_STATE_{word}").batch
    assert found.state is state
    assert (found.note is None) if noted is None else (noted in (found.note or ""))
    assert f"JOB_STATE_{word}" in STATES


def test_a_job_without_a_state_waits_and_one_with_a_new_word_is_an_error() -> None:
    """Zeros are left out; what nobody knows is not guessed."""
    assert job().batch.state is State.PENDING
    assert job(state="JOB_STATE_UNSPECIFIED").batch.state is State.PENDING
    with pytest.raises(Internal, match="does not know"):
        job(state="JOB_STATE_DREAMING")


def test_a_job_is_read_as_a_batch() -> None:
    """Its name is the last part of the long one; counts are text, at times below 0 for unknown."""
    found = job(
        state="JOB_STATE_SUCCEEDED",
        displayName="Index",
        labels={"embatch": "a", "odd": 7},
        createTime="2026-06-01T10:00:00.123456789Z",
        endTime="2026-06-01T11:00:00Z",
        inputConfig={"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://b/in.jsonl"]}},
        outputInfo={"gcsOutputDirectory": "gs://b/out/x"},
        completionStats={"successfulCount": "7", "failedCount": "2", "incompleteCount": "-1"},
    )
    batch, stats = found.batch, found.batch.batch_stats
    assert (batch.name, batch.model) == ("batches/8127", "models/gemini-embedding-001")
    assert (batch.display_name, found.labels) == ("Index", {"embatch": "a"})
    assert (found.source, found.output, batch.input_file) == (
        "gs://b/in.jsonl",
        "gs://b/out/x",
        "gs://b/in.jsonl",
    )
    assert (stats.request_count, stats.successful_request_count, stats.failed_request_count) == (9, 7, 2)
    assert batch.create_time is not None
    assert batch.create_time.microsecond == 123456
    assert batch.error is None
    refused = job(error={"code": 8, "message": "no\nquota"}, state="JOB_STATE_FAILED").batch
    assert (refused.error, refused.error_code) == ("no\\nquota", Code.RESOURCE_EXHAUSTED)
    several = job(inputConfig={"gcsSource": {"uris": ["gs://b/1", "gs://b/2"]}})
    assert (several.source, several.output) == (None, None)


@pytest.mark.parametrize("name", ["", "batches/1", "projects/p/locations/l/batchPredictionJobs/"])
def test_what_names_no_job_is_an_error(name: str) -> None:
    """As is an answer of something else."""
    with pytest.raises(Internal, match="no batch prediction job"):
        read_responses.parse_job(orjson.dumps({"name": name}))


def line(said: object) -> read_responses.ResultLine:
    """Return what is read of a line."""
    return read_responses.parse_line(orjson.dumps(said))


def test_lines_of_both_families_are_read() -> None:
    """With a key, or with the instance; tokens, and whether the text was cut, where the line says so."""
    values = {"embedding": {"values": [0.5, 1]}, "usageMetadata": {"promptTokenCount": 3}}
    keyed = line({"key": "r-0", "request": {}, "response": values, "status": ""})
    assert (keyed.row.key, keyed.row.tokens, keyed.row.error, keyed.instance) == ("r-0", 3, None, None)
    assert np.array_equal(keyed.row.values, [0.5, 1])  # type: ignore[arg-type]
    statistics = {"token_count": 2048, "truncated": True}
    embeddings = {"values": [1, 2], "statistics": statistics}
    instance = line({"instance": {"content": "a"}, "predictions": [{"embeddings": embeddings}], "status": ""})
    assert (instance.row.tokens, instance.row.truncated, instance.instance) == (2048, True, {"content": "a"})
    assert np.array_equal(instance.row.values, [1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ({"status": orjson.dumps({"code": 3, "message": "empty"}).decode()}, Code.INVALID_ARGUMENT, "empty"),
        ({"status": '{"error": {"code": 429, "message": "slow"}}'}, Code.RESOURCE_EXHAUSTED, "slow"),
        ({"status": "Bad Request: odd"}, Code.INTERNAL, "Bad Request: odd"),
        ({"status": {"code": 400, "message": "odd"}}, Code.INVALID_ARGUMENT, "odd"),
        ({"error": {"code": 13, "message": "ours"}}, Code.INTERNAL, "ours"),
        ({"error": "[]", "response": {}}, Code.INTERNAL, "[]"),
        (
            {"instance": {"content": ""}, "predictions": [], "status": '{"code": 3}'},
            Code.INVALID_ARGUMENT,
            None,
        ),
        ({"response": {"embedding": {"values": []}}, "status": ""}, Code.INTERNAL, "neither"),
        ({"predictions": [], "status": ""}, Code.INTERNAL, "neither"),
        ({}, Code.INTERNAL, "neither"),
        ([], Code.DATA_LOSS, "damaged"),
    ],
)
def test_a_line_that_failed_says_so_in_many_ways(said: object, code: Code, message: str | None) -> None:
    """In `error` or `status`, as an object, as JSON in a text, or in words; with HTTP's codes or gRPC's."""
    row = line(said).row
    assert row.values is None
    assert row.error is not None
    assert row.error.code is code
    assert message is None or message in row.error.message


def test_a_status_that_all_is_well_beside_a_vector_is_none() -> None:
    """Code 0, and HTTP's 200; any other counts, and its vector does not."""
    response = {"embedding": {"values": [1]}}
    for number in (0, 200):
        assert line({"key": "a", "response": response, "status": {"code": number}}).row.error is None
    row = line({"key": "a", "response": response, "status": '{"code": 8}'}).row
    assert (row.values, row.error and row.error.code) == (None, Code.RESOURCE_EXHAUSTED)


def test_requests_are_written_as_each_family_takes_them() -> None:
    """What a request does not say is left out; an older model's key is kept beside the instance."""
    bare, full = Request("a", "k"), Request("b", "k", None, TaskType.RETRIEVAL_DOCUMENT, "T", 128)
    assert orjson.loads(write_requests.keyed_line(bare)) == {
        "key": "k",
        "request": {"content": {"parts": [{"text": "a"}]}},
    }
    assert orjson.loads(write_requests.keyed_line(full))["request"]["embed_content_config"] == {
        "task_type": "RETRIEVAL_DOCUMENT",
        "title": "T",
        "output_dimensionality": 128,
    }
    kept = write_requests.kept_line(full)
    instance = {"content": "b", "task_type": "RETRIEVAL_DOCUMENT", "title": "T", "outputDimensionality": 128}
    assert orjson.loads(kept) == {"key": "k", "instance": instance}
    assert orjson.loads(write_requests.instance_line(kept)) == instance
    assert [write_requests.is_kept(one) for one in (kept, write_requests.keyed_line(full))] == [True, False]
    assert orjson.loads(write_requests.predict_body([full, full])) == {
        "instances": [{name: instance[name] for name in ("content", "task_type", "title")}] * 2,
        "parameters": {"outputDimensionality": 128},
    }


def test_addresses_by_location() -> None:
    """Single regions, the whole world, and the two that are several regions."""
    assert routes.address("us-central1") == "https://us-central1-aiplatform.googleapis.com"
    assert routes.address("global") == "https://aiplatform.googleapis.com"
    assert routes.address("eu") == "https://aiplatform.eu.rep.googleapis.com"
    assert routes.model_resource("publishers/other/models/x") == "publishers/other/models/x"
    assert routes.model_name(routes.model_resource("x")) == "x"
    assert routes.model_name("projects/7/locations/us-central1/publishers/google/models/x") == "x"


def test_how_much_of_an_upload_arrived() -> None:
    """Whole granules count: what is sent twice is left out by the service, what is left out is lost."""
    assert storage.arrived({}) == 0
    assert storage.arrived({"range": "bytes=0-0"}) == 0
    assert storage.arrived({"range": f"bytes=0-{2 * storage.GRANULE - 1}"}) == 2 * storage.GRANULE
    assert storage.arrived({"range": f"bytes=0-{2 * storage.GRANULE + 5}"}) == 2 * storage.GRANULE
    assert storage.arrived({"range": "bytes=5-9"}) == 0


def test_objects_are_read() -> None:
    """Size is text, the digest is base64, and what is neither is not known."""
    digest = base64.b64encode(b"0123456789abcdef").decode()
    found = storage.parse_object(
        orjson.dumps({"name": "a/b", "size": "7", "md5Hash": digest, "generation": "9"})
    )
    assert found == storage.StoredObject("a/b", 7, b"0123456789abcdef", "9")
    assert storage.parse_object(b'{"name": "a", "md5Hash": "#"}') == storage.StoredObject("a", 0, None, None)
    with pytest.raises(Internal, match="no object"):
        storage.parse_object(b"{}")
    assert storage.bucket_and_name("gs://b/a/c d") == ("b", "a/c d")
    with pytest.raises(Internal, match="none in Cloud Storage"):
        storage.bucket_and_name("bq://x")
    assert storage.object_path("b", "a/c d") == "/storage/v1/b/b/o/a%2Fc%20d"


def test_lines_of_ours_are_whole() -> None:
    """Each line ends, so that a file is as many lines as requests."""
    file = io.BytesIO()
    file.writelines(write_requests.kept_line(Request("a\nb", str(at))) for at in range(3))
    assert file.getvalue().count(b"\n") == 3
