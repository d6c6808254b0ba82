"""Gemini over real sockets, against a service written from its captured shapes by somebody else's hand."""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from client_scripts import unhurried
from hosted.behaviour import Behaviour, Fault
from hosted.gemini import GeminiStandIn
from hosted.vectors import Vectors

from embatch import (
    BatchFailed,
    Client,
    Code,
    ConnectionFailed,
    EmbatchError,
    NotFound,
    Reason,
    Request,
    State,
)
from embatch.client.fingerprint import fingerprint
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from embatch import Batch, BatchResult

pytestmark = pytest.mark.hosted

WIDTH = 128
MODEL = "gemini-embedding-001"
FEW = [f"text number {number}" for number in range(40)]
MANY = [f"text number {number}" for number in range(1_050)]
"""More than go inline."""
BOTH = pytest.mark.parametrize("texts", [FEW, MANY], ids=["inline", "file"])
CUTS = ("unread", "request", "handled", "head", "body", "end")
MARK = fingerprint("here")


@contextmanager
def gemini(**behaviour: Any) -> Iterator[tuple[Client, GeminiStandIn]]:
    """Return a client that waits for nothing, and the service."""
    with (
        GeminiStandIn(Behaviour(**behaviour)) as google,
        Client("gemini", api_key=google.key, base_url=google.url) as client,
    ):
        unhurried(client)
        yield client, google


def expected(texts: list[str], width: int = WIDTH) -> NDArray[np.float64]:
    """Return what the service embeds, at length 1."""
    found = np.array([Vectors()(text, MODEL, width) for text in texts], np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float64)


def submitted(client: Client, texts: list[Any], **options: Any) -> Batch:
    """Submit."""
    return client.async_batch_embed_contents(
        texts, display_name="Test", output_dimensionality=WIDTH, **options
    )


def finished(client: Client, texts: list[Any], **options: Any) -> tuple[Batch, BatchResult]:
    """Submit, wait, read."""
    batch = client.await_batch_completion(submitted(client, texts, **options), poll_interval=0)
    return batch, client.get_batch_embeddings(batch, partial=True)


def right(result: BatchResult, texts: list[str]) -> set[int]:
    """Demand that each vector is its own text's; return the requests that have none."""
    failed = {at for at, _ in result.failed_responses}
    found = result.to_numpy(failed="nan").astype(np.float64)
    good = [at for at in range(len(texts)) if at not in failed]
    if good:
        assert np.allclose(found[good], expected([texts[at] for at in good]), rtol=0, atol=1e-6)
    return failed


@BOTH
def test_a_batch_from_submit_to_delete(texts: list[str]) -> None:
    """Keys, order, length 1, usage; then it is listed, renamed and deleted."""
    requests = [Request(text, key=f"doc/{at}") for at, text in enumerate(texts)]
    with gemini(reorder=True, seed=3) as (client, google):
        batch, result = finished(client, requests, priority=5)
        assert right(result, texts) == set()
        assert result.keys == [f"doc/{at}" for at in range(len(texts))]
        assert (batch.state, batch.batch_stats.success_rate, batch.priority) == (State.COMPLETED, 100.0, 5)
        assert result.tokens.min() > 0
        assert (batch.input_file is None) == (texts is FEW)
        assert [one.name for one in client.list_batches(page_size=1)] == [batch.name]
        assert client.update_batch(batch, display_name="New").display_name == "New"
        client.delete_batch(batch)
        with pytest.raises(NotFound):
            client.get_batch_status(batch)
        assert google.creates == 1


@pytest.mark.parametrize(
    ("texts", "seed"), [*((FEW, seed) for seed in range(8)), *((MANY, seed) for seed in range(8, 11))]
)
def test_whatever_the_results_are_like_each_vector_is_its_texts_or_none(texts: list[str], seed: int) -> None:
    """In any order, early and late, in one place or two, missing, twice, twice and unlike, in either word."""
    chance = random.Random(seed)
    words: dict[str, Any] = {
        "drop": chance.choice([0, 1, 5]),
        "double": chance.choice([0, 1, 5]),
        "double_differently": chance.choice([0, 1, 5]),
        "late_results": chance.choice([0, 1, 4]),
        "late_files": chance.choice([0, 1, 4]),
        "results_in": chance.choice(["both", "response", "metadata"]),
        "zeros": chance.random() < 0.5,
        "status_lines": chance.random() < 0.5,
        "refused_word": "17",
        "polls_to_end": chance.choice([1, 2, 5]),
    }
    with gemini(seed=seed, reorder=True, **words) as (client, google):
        batch, result = finished(client, texts)
        failed = right(result, texts)
        assert google.creates == 1
    refused = {at for at, text in enumerate(texts) if "17" in text}
    lost = {at for at, error in result.failed_responses if error.reason is Reason.DATA_LOSS}
    assert failed == refused | lost
    assert len(lost) <= words["drop"] + words["double_differently"]
    assert bool(lost) == bool(words["drop"] + words["double_differently"])
    assert all(error.retryable for at, error in result.failed_responses if at in lost)
    assert all(
        error.code is Code.INVALID_ARGUMENT for at, error in result.failed_responses if at in refused - lost
    )
    odd = ("drop", "double", "double_differently")
    assert len(result.batch.notes) == sum(bool(words[one]) for one in odd)
    assert batch.done


@pytest.mark.parametrize("end", ["EXPIRED", "CANCELLED"])
@BOTH
def test_a_batch_that_has_ended_without_its_results(texts: list[str], end: Any) -> None:
    """What was not served fails, to be tried again; what was is right."""
    with gemini(ends=(end,)) as (client, _):
        batch, result = finished(client, texts)
        assert (batch.state.value, len(result)) == (end, len(texts))
        assert len(right(result, texts)) > 0
        assert all(error.retryable for _, error in result.failed_responses)


@pytest.mark.parametrize("end", ["FAILED", "FAILED_QUOTA"])
def test_a_batch_that_has_failed_says_why(end: Any) -> None:
    """For quota after it was accepted, or otherwise."""
    with gemini(ends=(end,)) as (client, _), pytest.raises(BatchFailed, match="failed: "):
        finished(client, FEW)


def test_cancelled_in_the_midst() -> None:
    """What was done before stays readable."""
    with gemini(stays="RUNNING") as (client, _):
        batch = submitted(client, MANY)
        client.get_batch_status(batch)
        batch = client.cancel_batch(batch)
        batch = client.await_batch_completion(batch, poll_interval=0)
        result = client.get_batch_embeddings(batch, partial=True)
        assert 0 < len(right(result, MANY)) < len(MANY)


def test_lists_that_are_late_and_cut_into_pages() -> None:
    """A batch is in the list once the list knows of it, each once, with its mark."""
    with gemini(lists_late_seconds=30, list_size=2) as (client, google):
        marks = [fingerprint(number) for number in range(5)]
        for mark in marks:
            ForRuns(client).submit(FEW[:1], RequestDefaults(), BatchOptions("Test", fingerprint=mark))
        assert [*client.list_batches()] == []
        google.clock.advance(31)
        assert [one.fingerprint for one in client.list_batches()] == marks[::-1]


@pytest.mark.parametrize("mark", [None, MARK], ids=["unnamed", "named"])
@pytest.mark.parametrize(
    ("cut", "at"), [("request", 0), ("request", 70_001), ("request", 300_000), ("handled", 0), ("body", 5)]
)
def test_an_upload_that_breaks_goes_on_where_it_stopped(cut: Any, at: int, mark: str | None) -> None:
    """At any byte of a chunk, or before its answer is there: the file is whole, and once if it is named."""
    fault = Fault("upload.chunk", calls=(1,), cut=cut, at=at)
    texts = [f"{text} {'x' * 400}" for text in MANY]
    with gemini(faults=(fault,)) as (client, google):
        options = BatchOptions("Test", fingerprint=mark)
        batch = ForRuns(client).submit(texts, RequestDefaults(output_dimensionality=WIDTH), options)
        batch = client.await_batch_completion(batch, poll_interval=0)
        assert right(client.get_batch_embeddings(batch), texts) == set()
        inputs = [name for name in google.files.kept if not name.startswith("files/batch-")]
        assert google.creates == 1
        assert inputs == [f"files/embatch-{MARK}"] if mark else len(inputs) <= 2


@pytest.mark.parametrize("handled", [False, True])
def test_an_upload_goes_on_after_a_fault_of_the_service(*, handled: bool) -> None:
    """A chunk costs nothing: what the service answers with a 500 is asked for, and sent again if need be."""
    fault = Fault("upload.chunk", calls=(1,), status=500, handled=handled)
    with gemini(faults=(fault,)) as (client, google):
        batch = ForRuns(client).submit(
            MANY, RequestDefaults(output_dimensionality=WIDTH), BatchOptions("Test")
        )
        batch = client.await_batch_completion(batch, poll_interval=0)
        assert right(client.get_batch_embeddings(batch), MANY) == set()
        assert google.creates == 1


def test_an_upload_whose_create_was_lost_is_found() -> None:
    """The file goes up once; the batch that was created all the same is in the list."""
    with gemini(faults=(Fault("create", calls=(1,), cut="handled"),)) as (client, google):
        options = BatchOptions("Test", fingerprint=MARK)
        with pytest.raises(ConnectionFailed):
            ForRuns(client).submit(MANY, RequestDefaults(output_dimensionality=WIDTH), options)
        (lost,) = client.list_batches()
        assert (lost.fingerprint, lost.input_file) == (MARK, f"files/embatch-{MARK}")
        batch = client.await_batch_completion(lost, poll_interval=0)
        assert right(client.get_batch_embeddings(batch), MANY) == set()
        ForRuns(client).submit(MANY, RequestDefaults(output_dimensionality=WIDTH), options)
        assert google.files.uploads == 1
        client.get_batch_status(batch)
        ForRuns(client).clean_up(batch)
        assert f"files/embatch-{MARK}" not in google.files.kept


ROUTES = ("status", "list", "cancel", "delete", "update", "upload.start", "download", "embed", "embed_many")


def everything(client: Client) -> tuple[object, ...]:
    """Do all there is; return what came of it, which is the same whatever breaks on the way."""
    batch = submitted(client, MANY)
    result = client.get_batch_embeddings(client.await_batch_completion(batch, poll_interval=0))
    failed = right(result, MANY)
    listed = [one.name == batch.name for one in client.list_batches()]
    renamed = client.update_batch(batch, display_name="New").display_name
    many = client.batch_embed_contents(FEW[:3], output_dimensionality=WIDTH)
    one = client.embed_content(FEW[0], output_dimensionality=WIDTH)
    found = np.array([each.values for each in (*many, one)])
    near = np.allclose(found, expected([*FEW[:3], FEW[0]]), rtol=0, atol=1e-6)
    stopped = client.cancel_batch(submitted(client, FEW)).done
    client.delete_batch(batch)
    return failed, listed, renamed, near, stopped


@pytest.mark.parametrize("cut", CUTS)
def test_a_connection_that_breaks_anywhere_changes_nothing(cut: Any) -> None:
    """The first call of each route, before it is read, in it, after it, and in its answer at some byte."""
    faults = tuple(Fault(route, calls=(1,), cut=cut, at=20, reset=cut == "head") for route in ROUTES)
    with gemini(faults=faults) as (client, google):
        assert everything(client) == (set(), [True], "New", True, True)
        assert google.creates == 2


@pytest.mark.parametrize("cut", CUTS)
@BOTH
def test_a_create_that_breaks_makes_one_batch_at_most(texts: list[str], cut: Any) -> None:
    """Whoever does not know whether it was taken is told so, and finds it by its mark if it was."""
    with gemini(faults=(Fault("create", calls=(1,), cut=cut, at=20),)) as (client, google):
        told = nullcontext() if cut == "end" else pytest.raises(ConnectionFailed)
        with told:
            ForRuns(client).submit(
                texts, RequestDefaults(output_dimensionality=WIDTH), BatchOptions("Test", fingerprint=MARK)
            )
        found = [one.fingerprint for one in client.list_batches()]
        assert found == [MARK] * google.creates
        assert google.creates <= 1


@pytest.mark.parametrize("status", [500, 503, 504])
@pytest.mark.parametrize("handled", [False, True])
def test_trouble_of_the_service_makes_one_batch_at_most(status: int, handled: bool) -> None:  # noqa: FBT001
    """A gateway says 503 of what its service has taken, too: that is found, and nothing else repeated."""
    fault = Fault("create", calls=(1,), status=status, handled=handled)
    with gemini(faults=(fault,)) as (client, google):
        if handled:
            assert [submitted(client, FEW).name] == [job["name"] for job in google.counts()["jobs"]]
        else:
            with pytest.raises(EmbatchError, match="not known whether"):
                submitted(client, FEW)
        assert google.creates == handled


@pytest.mark.parametrize("details", ["none", "help", "retry", "quota"])
def test_calls_that_are_refused_for_quota_are_sent_again(details: Any) -> None:
    """With a wait and without, and in whatever words."""
    routes = ("create", "status", "list", "upload.start", "upload.chunk", "download", "embed", "embed_many")
    faults = tuple(
        Fault(route, calls=(1,), status=429, details=details, retry_seconds=0.01) for route in routes
    )
    with gemini(faults=faults) as (client, google):
        assert everything(client) == (set(), [True], "New", True, True)
        assert google.creates == 2


def test_interactive_vectors_that_are_fewer_than_the_texts() -> None:
    """No list that is short."""
    with gemini(short_replies=1) as (client, _), pytest.raises(EmbatchError, match="3 texts came back as 2"):
        client.batch_embed_contents(FEW[:3])


def test_a_version_without_files_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes inline works with it; what does not says how it would."""
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1")
    with gemini() as (client, google):
        assert right(finished(client, FEW)[1], FEW) == set()
        with pytest.raises(NotFound, match="unset GOOGLE_GENAI_API_VERSION") as refused:
            submitted(client, MANY)
        assert refused.value.field == "GOOGLE_GENAI_API_VERSION"
        assert google.creates == 1
