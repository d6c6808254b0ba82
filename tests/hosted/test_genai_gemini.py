"""google-genai, which we did not write, finds in the Gemini stand-in what it finds at Google."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from hosted.behaviour import Behaviour, Fault
from hosted.gemini import GeminiStandIn
from hosted.plain import MODEL, jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.hosted, pytest.mark.filterwarnings("ignore:.*experimental.*")]

MIB = 2**20


@pytest.fixture
def google() -> Iterator[GeminiStandIn]:
    """A stand-in on a good day."""
    with GeminiStandIn() as stand_in:
        yield stand_in


@contextlib.contextmanager
def _client(google: GeminiStandIn, version: str | None = "v1beta", key: str = "") -> Iterator[genai.Client]:
    plain = {"verify": False}  # there is no TLS; the certificates of this machine take longer than the test
    options = types.HttpOptions(
        base_url=google.url, api_version=version, client_args=plain, async_client_args=plain
    )
    client = genai.Client(api_key=key or google.key, http_options=options)
    yield client
    client.close()


@pytest.fixture
def sdk(google: GeminiStandIn) -> Iterator[genai.Client]:
    """Google's client under the version that has files."""
    with _client(google) as client:
        yield client


def _ended(sdk: genai.Client, job: types.BatchJob) -> types.BatchJob:
    for _ in range(10):
        if job.done:
            return job
        job = sdk.batches.get(name=str(job.name))
    raise AssertionError("it did not end")


def _inline(sdk: genai.Client, contents: list[str], **config: Any) -> types.BatchJob:
    source = types.EmbeddingsBatchJobSource(
        inlined_requests=types.EmbedContentBatch(
            contents=contents, config=types.EmbedContentConfig(output_dimensionality=128)
        )
    )
    return sdk.batches.create_embeddings(
        model=MODEL, src=source, config=types.CreateEmbeddingsBatchJobConfig(**config)
    )


def test_versions_are_the_newest() -> None:
    """The client is a 3.6 or later: what an older one does says little about what users run."""
    assert tuple(map(int, genai.__version__.split(".")[:2])) >= (3, 6)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_inline_batch(google: GeminiStandIn, version: str) -> None:
    """Inline requests come back in order with their errors, under either version."""
    with _client(google, version) as sdk:
        job = _inline(sdk, ["one", "  ", "three"], display_name="mine")
        assert job.state == types.JobState.JOB_STATE_PENDING
        assert job.display_name == "mine"
        job = _ended(sdk, job)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    assert job.dest is not None
    found = job.dest.inlined_embed_content_responses or []
    assert [one.error.code if one.error else None for one in found] == [None, 3, None]
    values = [one.response.embedding.values for one in found if one.response and one.response.embedding]
    expected = [google.vectors(text, MODEL, 128).tolist() for text in ("one", "three")]
    assert np.allclose(np.array(values), np.array(expected))
    assert google.creates == 1


def test_batch_from_a_file(google: GeminiStandIn, sdk: genai.Client) -> None:
    """A file of 17 MiB goes up in three chunks, becomes a batch, and its results come down with the keys."""
    content = jsonl(["one", "two"], 3072) + b" " * (17 * MIB)
    file = sdk.files.upload(
        file=io.BytesIO(content), config=types.UploadFileConfig(name="files/embatch-x", mime_type="jsonl")
    )
    assert (file.name, file.size_bytes, file.state) == (
        "files/embatch-x",
        len(content),
        types.FileState.ACTIVE,
    )
    assert google.calls["upload.chunk"] == 3
    source = types.EmbeddingsBatchJobSource(file_name=file.name)
    job = _ended(sdk, sdk.batches.create_embeddings(model=MODEL, src=source))
    assert job.dest is not None
    lines = [json.loads(line) for line in sdk.files.download(file=str(job.dest.file_name)).splitlines()]
    assert [line["key"] for line in lines] == ["0", "1"]
    for line, text in zip(lines, ["one", "two"], strict=True):
        values = np.array(line["response"]["embedding"]["values"])
        assert np.allclose(values, google.vectors(text, MODEL))
        assert np.isclose(np.linalg.norm(values), 1)


def test_files(google: GeminiStandIn, sdk: genai.Client) -> None:
    """Files are listed in pages, found, deleted, and refused once they are gone, too long or taken."""
    config = types.UploadFileConfig(name="files/a", mime_type="jsonl", display_name="A")
    assert sdk.files.upload(file=io.BytesIO(b""), config=config).display_name == "A"
    sdk.files.upload(file=io.BytesIO(b"x"), config=types.UploadFileConfig(mime_type="text/plain"))
    assert len([*sdk.files.list(config=types.ListFilesConfig(page_size=1))]) == 2
    assert sdk.files.get(name="files/a").size_bytes == 0
    with pytest.raises(errors.ClientError, match="409 ALREADY_EXISTS"):
        sdk.files.upload(file=io.BytesIO(b"y"), config=config)
    with pytest.raises(errors.ClientError, match="400 INVALID_ARGUMENT"):
        sdk.files.get(name="files/batch-" + "x" * 36)
    with pytest.raises(errors.ClientError, match="Unsupported MIME"):
        sdk.files.upload(file=io.BytesIO(b"y"), config=types.UploadFileConfig(mime_type="bad/mime_type"))
    with pytest.raises(errors.ClientError, match="400"):
        sdk.files.download(file="files/a")
    sdk.files.delete(name="files/a")
    with pytest.raises(errors.ClientError, match="403 PERMISSION_DENIED"):
        sdk.files.get(name="files/a")


def test_files_are_not_in_v1(google: GeminiStandIn) -> None:
    """The version that google-genai speaks by default has no files, unless the stand-in is told otherwise."""
    with _client(google, None) as sdk:
        with pytest.raises(errors.ClientError, match="404"):
            [*sdk.files.list()]
        google.behave(files_in_v1=True)
        assert [*sdk.files.list()] == []


def test_list_and_delete(google: GeminiStandIn, sdk: genai.Client) -> None:
    """Batches are listed newest first in pages; one that has ended can be deleted, another cannot."""
    names = [str(_inline(sdk, [f"text {at}"]).name) for at in range(5)]
    listed = [one.name for one in sdk.batches.list(config=types.ListBatchJobsConfig(page_size=2))]
    assert listed == names[::-1]
    assert google.calls["list"] == 3
    with pytest.raises(errors.ClientError, match="400 FAILED_PRECONDITION"):
        sdk.batches.delete(name=names[0])
    google.finish(names[0])
    sdk.batches.delete(name=names[0])
    with pytest.raises(errors.ClientError, match="404 NOT_FOUND"):
        sdk.batches.get(name=names[0])


def test_cancel(google: GeminiStandIn, sdk: genai.Client) -> None:
    """What waits is cancelled; what runs succeeds with what it has done."""
    waiting, running = _inline(sdk, ["one"]), _inline(sdk, ["one", "two", "three"])
    sdk.batches.cancel(name=str(waiting.name))
    assert sdk.batches.get(name=str(waiting.name)).state == types.JobState.JOB_STATE_CANCELLED
    assert sdk.batches.get(name=str(running.name)).state == types.JobState.JOB_STATE_RUNNING
    sdk.batches.cancel(name=str(running.name))
    job = sdk.batches.get(name=str(running.name))
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    assert job.dest is not None
    found = job.dest.inlined_embed_content_responses or []
    assert [one.error.code if one.error else None for one in found] == [None, None, 1]


def test_all_failed(google: GeminiStandIn, sdk: genai.Client) -> None:
    """A batch all of whose requests fail succeeds, and the client finds its errors."""
    job = _ended(sdk, _inline(sdk, [" ", ""]))
    assert job.dest is not None
    assert job.dest.inlined_embed_content_responses is None
    assert [one.error.code for one in job.dest.inlined_responses or [] if one.error] == [3, 3]


def test_embed_content(google: GeminiStandIn, sdk: genai.Client) -> None:
    """Interactive vectors are those of batches, counted by text; the second model fuses a list into one."""
    config = types.EmbedContentConfig(output_dimensionality=768)
    reply = sdk.models.embed_content(model=MODEL, contents=["one", "two"], config=config)
    found = [np.array(one.values) for one in reply.embeddings or []]
    assert all(
        np.allclose(a, google.vectors(t, MODEL, 768)) for a, t in zip(found, ["one", "two"], strict=True)
    )
    assert np.isclose(np.linalg.norm(found[0]), (768 / 3072) ** 0.5)
    assert google.items == 2
    fused = sdk.models.embed_content(model="gemini-embedding-2", contents=["one", "two"], config=config)
    assert len(fused.embeddings or []) == 1
    alone = [types.Content(parts=[types.Part(text=text)]) for text in ("one", "two")]
    apart = sdk.models.embed_content(model="gemini-embedding-2", contents=alone, config=config)
    assert len(apart.embeddings or []) == 2
    assert np.isclose(np.linalg.norm((apart.embeddings or [])[0].values or []), 1)
    with pytest.raises(errors.ClientError, match="at most 100 requests"):
        sdk.models.embed_content(model=MODEL, contents=[*map(str, range(101))])
    assert sdk.models.count_tokens(model=MODEL, contents="two words").total_tokens == 2


def test_models(google: GeminiStandIn, sdk: genai.Client) -> None:
    """Models are listed with what they can do; another one is 404, another key 400."""
    found = {str(one.name): one for one in sdk.models.list()}
    assert found.keys() == {f"models/{MODEL}", "models/gemini-embedding-2"}
    assert "asyncBatchEmbedContent" in (found[f"models/{MODEL}"].supported_actions or [])
    assert sdk.models.get(model=MODEL).input_token_limit == 2048
    with pytest.raises(errors.ClientError, match="404 NOT_FOUND"):
        sdk.models.embed_content(model="no-such-model", contents="x")
    with (
        _client(google, key="another") as other,
        pytest.raises(errors.ClientError, match="API key not valid"),
    ):
        [*other.models.list()]


def test_faults_reach_the_client(google: GeminiStandIn, sdk: genai.Client) -> None:
    """A 429 with details, a 503 of a proxy and a 500 come out as the client's own errors."""
    google.behave(
        faults=(
            Fault("status", calls=(1,), status=429, details="quota", retry_seconds=34.07),
            Fault("status", calls=(2,), status=503, plain="<html>no</html>"),
            Fault("status", calls=(3,), status=500),
        )
    )
    job = _inline(sdk, ["one"])
    with pytest.raises(errors.ClientError) as caught:
        sdk.batches.get(name=str(job.name))
    assert caught.value.details["error"]["details"][-1]["retryDelay"] == "34.07s"
    for code in (503, 500):
        with pytest.raises(errors.ServerError) as refused:
            sdk.batches.get(name=str(job.name))
        assert refused.value.code == code
    assert sdk.batches.get(name=str(job.name)).name == job.name


def test_behaviour_of_results(google: GeminiStandIn, sdk: genai.Client) -> None:
    """What the client reads from `metadata.output` it finds there, and misses where it is elsewhere."""
    google.behave(results_in="response", ends=("EXPIRED", "FAILED_QUOTA"))
    assert _ended(sdk, _inline(sdk, ["one"])).state == types.JobState.JOB_STATE_EXPIRED
    assert _ended(sdk, _inline(sdk, ["one"])).state == types.JobState.JOB_STATE_FAILED
    job = _ended(sdk, _inline(sdk, ["one"]))
    assert job.dest is None or job.dest.inlined_embed_content_responses is None


def test_default_behaviour_is_good() -> None:
    """Every switch is off by default."""
    said = Behaviour()
    assert Behaviour.from_json(said.to_json()) == said
    assert not any(
        (said.faults, said.reorder, said.swap_pairs, said.drop, said.stays, said.ends, said.late_files)
    )
