"""google-genai in Vertex mode against the Vertex stand-in, as far as it goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials
from hosted.plain import MODEL, jsonl
from hosted.vertex import NUMBER, VertexStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.hosted, pytest.mark.filterwarnings("ignore:.*experimental.*")]

LEGACY = "text-embedding-005"


@pytest.fixture(scope="module")
def served() -> Iterator[VertexStandIn]:
    """One stand-in."""
    with VertexStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def google(served: VertexStandIn) -> VertexStandIn:
    """The stand-in on a good day."""
    return served


def _client(
    google: VertexStandIn, credentials: Credentials | None, location: str = "us-central1"
) -> genai.Client:
    plain = {"verify": False}  # there is no TLS
    options = types.HttpOptions(base_url=google.url, client_args=plain, async_client_args=plain)
    return genai.Client(
        vertexai=True,
        project=google.project,
        location=location,
        credentials=credentials,
        http_options=options,
    )


@pytest.fixture
def sdk(google: VertexStandIn) -> Iterator[genai.Client]:
    """Google's client with a token."""
    client = _client(google, Credentials(token=google.tokens.issue()))  # type: ignore[no-untyped-call]
    yield client
    client.close()


def _create(google: VertexStandIn, sdk: genai.Client, content: bytes, model: str = MODEL) -> types.BatchJob:
    google.storage.write("in/rows.jsonl", content)
    config = types.CreateBatchJobConfig(display_name="mine", dest=f"{google.bucket}/out")
    return sdk.batches.create(model=model, src=f"{google.bucket}/in/rows.jsonl", config=config)


def _rows(texts: list[str]) -> bytes:
    lines = [
        {"key": str(at), "request": {"content": {"parts": [{"text": text}]}}} for at, text in enumerate(texts)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_batch(google: VertexStandIn, sdk: genai.Client) -> None:
    """A job is created, followed, listed and deleted, and its statistics and its folder are told."""
    job = _create(google, sdk, _rows(["one", " ", "three"]))
    assert job.state == types.JobState.JOB_STATE_PENDING
    assert str(job.name).startswith(f"projects/{NUMBER}/")
    for _ in range(2):
        job = sdk.batches.get(name=str(job.name))
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    assert job.completion_stats is not None
    assert (job.completion_stats.successful_count, job.completion_stats.failed_count) == (2, 1)
    assert job.output_info is not None
    folder = str(job.output_info.gcs_output_directory).removeprefix(f"{google.bucket}/")
    assert google.storage.names(folder) == [f"{folder}/predictions.jsonl"]
    lines = [
        json.loads(line) for line in (google.storage.read(f"{folder}/predictions.jsonl") or b"").splitlines()
    ]
    assert [line["key"] for line in lines] == ["0", "1", "2"]
    assert [bool(line["status"]) for line in lines] == [False, True, False]
    assert np.allclose(lines[0]["response"]["embedding"]["values"], google.vectors("one", MODEL))
    assert job.name in [one.name for one in sdk.batches.list()]
    assert sdk.batches.delete(name=str(job.name)).done
    assert job.name not in [one.name for one in sdk.batches.list()]


def test_cancel(google: VertexStandIn, sdk: genai.Client) -> None:
    """A job that is cancelled is CANCELLING first."""
    name = str(_create(google, sdk, _rows(["one"])).name)
    sdk.batches.cancel(name=name)
    assert [one.state for one in sdk.batches.list() if one.name == name] == [
        types.JobState.JOB_STATE_CANCELLING
    ]
    assert sdk.batches.get(name=name).state == types.JobState.JOB_STATE_CANCELLED


def test_developer_lines_fail(google: VertexStandIn, sdk: genai.Client) -> None:
    """Options beside the content, as the Developer API has them, fail line by line."""
    job = _create(google, sdk, jsonl(["one"]))
    for _ in range(2):
        job = sdk.batches.get(name=str(job.name))
    assert job.completion_stats is not None
    assert job.completion_stats.failed_count == 1


def test_embed_content(google: VertexStandIn, sdk: genai.Client) -> None:
    """One text goes to embedContent, several of a legacy model to predict, of a Gemini one nowhere."""
    config = types.EmbedContentConfig(output_dimensionality=128)
    one = sdk.models.embed_content(model=MODEL, contents="one", config=config)
    assert np.allclose((one.embeddings or [])[0].values or [], google.vectors("one", MODEL, 128))
    both = sdk.models.embed_content(model=LEGACY, contents=["one", "two"], config=config)
    found = [np.array(each.values) for each in both.embeddings or []]
    assert all(
        np.allclose(a, google.vectors(t, LEGACY, 128)) for a, t in zip(found, ["one", "two"], strict=True)
    )
    with pytest.raises(errors.ClientError, match="404"):
        sdk.models.embed_content(model=MODEL, contents=["one", "two"], config=config)
    google.behave(serves_many=True)
    many = sdk.models.embed_content(model=MODEL, contents=["one", "two"], config=config)
    google.behave(serves_many=False)
    assert many is not None
    assert google.calls["embed_many"] == 2


def test_credentials_are_refreshed(google: VertexStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials of both kinds get tokens from the stand-in, and a new one by and by."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", google.project)
    for file in (google.service_account(), google.workload_identity()):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        client = _client(google, None)
        before = len(google.tokens.issued)
        [*client.batches.list()]
        assert len(google.tokens.issued) == before + 1
        google.tokens.expire()
        with pytest.raises(errors.ClientError, match="401"):
            [*client.batches.list()]
        client.close()


def test_tokens_that_are_short_are_asked_for_again(
    google: VertexStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that lives for seconds is replaced by google-auth before each call."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", google.project)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.workload_identity()))
    google.behave(token_seconds=1)
    client = _client(google, None)
    before = len(google.tokens.issued)
    for _ in range(3):
        [*client.batches.list()]
        google.tokens.expire()
    google.behave(token_seconds=3600)
    client.close()
    assert len(google.tokens.issued) == before + 3
