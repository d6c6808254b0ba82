"""Vertex: jobs over a bucket, against a stand-in with a real emulator of Cloud Storage and real sockets."""

from __future__ import annotations

import asyncio
import io
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from at_vertex import vertex
from client_scripts import unhurried, wired
from hosted.behaviour import Behaviour, Fault
from hosted.vectors import Vectors

from embatch import (
    AlreadyExists,
    AsyncClient,
    Client,
    ConnectionFailed,
    EmbatchError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Request,
    State,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from embatch.client.base import target_of
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns
from embatch.client.providers.vertex_lines import looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch import Batch, BatchResult

pytestmark = pytest.mark.hosted

TEXTS = [f"text number {number}" for number in range(20)]
MODELS = ["gemini-embedding-001", "text-embedding-005"]
MARK = "a2" * 16


@contextmanager
def client(**options: Any) -> Iterator[Client]:
    """Return a client of it that waits for nothing."""
    with Client("vertex", **options) as made:
        unhurried(made)
        yield made


def finished(made: Client, texts: list[Any] = TEXTS, **options: Any) -> tuple[Batch, BatchResult]:
    """Submit texts, wait, read."""
    batch = made.async_batch_embed_contents(texts, display_name="Test", **options)
    batch = made.await_batch_completion(batch, poll_interval=0)
    return batch, made.get_batch_embeddings(batch)


def expected(model: str, width: int, texts: list[str] = TEXTS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what the stand-in embeds, at length 1."""
    found = np.array([Vectors()(text, model, width) for text in texts], np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_goes_through_the_bucket_and_comes_back_whole(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several files of any name in any order, keys and equal texts among them, at length 1."""
    behaviour = Behaviour(seed=3, reorder=True, output_files=3, output_name="part", echo_request=True)
    texts = [*TEXTS, TEXTS[3], TEXTS[3]]
    requests = [Request(text, key=f"mine-{at}") for at, text in enumerate(texts)]
    with vertex(monkeypatch, behaviour) as google, client(model=model) as made:
        batch, result = finished(made, requests, output_dimensionality=128)
        (job,) = google.jobs
    assert (batch.state, batch.model, batch.display_name) == (State.COMPLETED, f"models/{model}", "Test")
    assert batch.name == f"batches/{job.name.rpartition('/')[2]}"
    assert batch.batch_stats.request_count == batch.batch_stats.successful_request_count == len(texts)
    assert result.keys == [f"mine-{at}" for at in range(len(texts))]
    np.testing.assert_allclose(result.to_numpy(), expected(model, 128, texts), atol=1e-6)
    assert result.tokens.tolist() == [3] * len(texts)


@pytest.mark.parametrize("model", MODELS)
def test_both_colours_do_the_same(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is spoken to from asyncio as well."""

    async def run() -> Any:
        async with AsyncClient("vertex", model=model) as made:
            unhurried(made)
            batch = await made.async_batch_embed_contents(TEXTS, display_name="Test")
            batch = await made.await_batch_completion(batch, poll_interval=0)
            result = await made.get_batch_embeddings(batch)
            await made.delete_batch(batch)
            return result.to_numpy()

    with vertex(monkeypatch) as google:
        found = asyncio.run(run())
        assert google.storage.names() == []
    np.testing.assert_allclose(found, expected(model, found.shape[1]), atol=1e-6)


@pytest.mark.parametrize("status_lines", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_faulty_text_fails_alone(model: str, status_lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """In whichever form its line says so."""
    behaviour = Behaviour(refused_word="forbidden", status_lines=status_lines)
    with vertex(monkeypatch, behaviour), client(model=model) as made:
        batch, result = finished(made, ["one", "a forbidden two", "three"])
    ((index, error),) = result.failed_responses
    assert (index, error.retryable, batch.batch_stats.failed_request_count) == (1, False, 1)
    assert np.isnan(result.to_numpy(failed="nan")).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("model", MODELS)
def test_one_that_succeeded_in_part_is_at_its_end(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its note says so, what it did can be read, and the rest can be tried again."""
    behaviour = Behaviour(ends=("PARTIALLY_SUCCEEDED",), partial=0.25)
    with vertex(monkeypatch, behaviour) as google, client(model=model) as made:
        batch, result = finished(made)
        assert google.calls["storage.read"] == (
            1 if model == MODELS[0] else 2
        )  # what is missing is not awaited
        again = made.await_batch_completion(made.retry_failed(batch, TEXTS), poll_interval=0)
        whole = result.fill(made.get_batch_embeddings(again))
    assert (batch.state, batch.done) == (State.COMPLETED, True)
    assert "partially" in (batch.note or "")
    assert [at for at, _ in result.failed_responses] == list(range(5, 20))
    assert all(error.retryable for _, error in result.failed_responses)
    assert (batch.batch_stats.successful_request_count, batch.batch_stats.failed_request_count) == (5, 15)
    np.testing.assert_allclose(whole.to_numpy(), expected(model, whole.matrix.shape[1]), atol=1e-6)


@pytest.mark.parametrize(("word", "state"), [("QUEUED", State.PENDING), ("PAUSED", State.PROCESSING)])
def test_what_a_state_cannot_say_stands_in_a_note(
    word: Any, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is queued or paused is not at work, and says so until it is."""
    with vertex(monkeypatch, Behaviour(stays=word)) as google, client() as made:
        batch = made.async_batch_embed_contents(TEXTS, display_name="Test")
        batch = next(one for one in (made.get_batch_status(batch) for _ in range(5)) if one.note)
        assert (batch.state, (batch.note or "").split(":")[0]) == (state, word.lower())
        google.release()
        assert made.await_batch_completion(batch, poll_interval=0).note is None


@pytest.mark.parametrize(
    "behaviour", [Behaviour(late_results=2), Behaviour(late_files=1), Behaviour(late_results=1, late_files=1)]
)
def test_results_that_come_late_are_waited_for(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state says that it is done before its folder is named, or before anything is in it."""
    with vertex(monkeypatch, behaviour), client() as made:
        _, result = finished(made)
    assert not result.failed_responses


def test_results_that_never_come_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting ends, and coming back later is what helps."""
    with (
        vertex(monkeypatch, Behaviour(late_results=1000)),
        client(max_retries=3) as made,
        pytest.raises(Unavailable, match="come back later"),
    ):
        finished(made)


def test_lines_that_are_lost_or_doubled_touch_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing, or there twice and unlike, fails alone; twice alike is once."""
    with vertex(monkeypatch, Behaviour(seed=5, drop=2, double=2, double_differently=1)), client() as made:
        _, result = finished(made)
    good = [at for at in range(20) if at not in dict(result.failed_responses)]
    assert len(result.failed_responses) == 3
    np.testing.assert_allclose(
        result.to_numpy(failed="nan")[good], expected("gemini-embedding-001", 3072)[good], atol=1e-6
    )


def test_an_older_model_takes_fewer_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 are the most of one job; a run splits by itself, for it is told the limit."""
    with vertex(monkeypatch), client() as made:
        provider = target_of(made).provider
    assert provider.capabilities_of("text-embedding-005").file_requests == 30_000
    assert provider.capabilities_of(None).file_requests == 1_000_000
    file = io.BytesIO()
    lines = provider.writer(file, "text-embedding-005")
    lines.write([Request("a")] * 30_000)
    with pytest.raises(TooLarge, match="at most 30,000 requests") as refused:
        lines.write([Request("b")])
    assert refused.value.field == "requests"
    assert looked_at(file) == (30_000, True)


def test_a_marked_batch_is_found_and_its_upload_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark is in file name, display name and label, and is shown as a fingerprint."""
    options = BatchOptions("Test", fingerprint=MARK)
    with vertex(monkeypatch) as google, client() as made:
        first, second = (ForRuns(made).submit(TEXTS, RequestDefaults(), options) for _ in range(2))
        assert (google.calls["storage.upload"], google.creates) == (1, 2)
        listed = list(made.list_batches(page_size=1))
        job = google.jobs[0]
        names = google.storage.names()
        with pytest.raises(AlreadyExists, match="holds something else"):
            ForRuns(made).submit(TEXTS[::-1], RequestDefaults(), options)
    assert names == [f"staged/embatch-{MARK}/requests-20.jsonl"]
    assert [one.name for one in listed] == [second.name, first.name]
    assert {(one.fingerprint, one.display_name, one.input_file) for one in listed} == {
        (MARK, "Test", f"{google.bucket}/{names[0]}")
    }
    assert job.details["labels"] == {"embatch": MARK}
    assert job.display_name == f"Test · embatch:{MARK}"


def test_a_long_name_loses_its_end_and_never_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's display name has 128 characters."""
    options = BatchOptions("x" * 400, fingerprint=MARK)
    with vertex(monkeypatch) as google, client() as made:
        batch = ForRuns(made).submit(TEXTS, RequestDefaults(), options)
        assert len(google.jobs[0].display_name) == 128
    assert (batch.fingerprint, set(batch.display_name or "")) == (MARK, {"x"})


def test_deleting_takes_what_was_staged_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """First the files, then the job; one that still runs keeps both, and another batch its own."""
    with vertex(monkeypatch) as google, client(model="text-embedding-005") as made:
        google.storage.write("staged/mine.txt", b"mine")
        batch, _ = finished(made)
        other = made.async_batch_embed_contents(TEXTS, display_name="Other")
        with pytest.raises(FailedPrecondition, match="still runs"):
            made.delete_batch(other)
        made.delete_batch(batch)
        left = google.storage.names()
        with pytest.raises(NotFound):
            made.delete_batch(batch)
        assert [one.name for one in made.list_batches()] == [other.name]
    folder = (other.input_file or "").removeprefix(f"{google.bucket}/").rpartition("/")[0]
    assert left == sorted([f"{folder}/kept-20.jsonl", f"{folder}/requests-20.jsonl", "staged/mine.txt"])


def test_of_two_jobs_with_one_folder_neither_takes_what_the_other_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submit whose answer was lost may have made a second one: it can go, and the first is read."""
    options = BatchOptions("Test", fingerprint=MARK)
    with vertex(monkeypatch) as google, client() as made:
        google.storage.write(f"staged/embatch-{'b2' * 16}/requests-1.jsonl", b"another's")
        first, second = (ForRuns(made).submit(TEXTS, RequestDefaults(), options) for _ in range(2))
        for batch in (first, second):
            assert made.await_batch_completion(batch, poll_interval=0).done
            assert not made.get_batch_embeddings(batch).failed_responses
        made.delete_batch(second)
        assert not made.get_batch_embeddings(first).failed_responses
        assert len(google.storage.names()) == 3
        made.delete_batch(first)
        assert len(google.storage.names()) == 1


def test_a_run_cleans_up_before_it_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was staged goes, the job stays, and repeating is safe."""
    with vertex(monkeypatch) as google, client() as made:
        batch, _ = finished(made)
        for _ in range(2):
            ForRuns(made).clean_up(batch)
        assert google.storage.names() == []
        assert made.get_batch_status(batch).done


def test_what_is_cancelled_says_so_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did not reach has failed; nothing of it was written."""
    with vertex(monkeypatch, Behaviour(stays="PENDING")), client() as made:
        batch = made.async_batch_embed_contents(TEXTS, display_name="Test")
        assert made.cancel_batch(batch).note in ("being cancelled", None)
        batch = made.await_batch_completion(batch, poll_interval=0)
        result = made.get_batch_embeddings(batch, partial=True)
    assert batch.state is State.CANCELLED
    assert len(result.failed_responses) == 20


def test_nothing_of_a_job_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is sent; priorities there are none either."""
    with vertex(monkeypatch) as google, client() as made:
        with pytest.raises(InvalidArgument, match="vertex knows no priority"):
            made.update_batch("batches/1", priority=1)
        batch = made.async_batch_embed_contents(TEXTS, display_name="Test")
        with pytest.raises(InvalidArgument, match="changes neither name nor priority"):
            made.update_batch(batch, display_name="New")
        assert google.calls.keys() <= {"token", "create", "storage.object", "storage.upload", "storage.chunk"}


def test_a_pair_that_is_not_known_is_noted_and_the_service_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own refusal is what is raised."""
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "asia-south1")
    with vertex(monkeypatch) as google, client(location="asia-south1") as made:
        with pytest.raises(FailedPrecondition, match="not supported in asia-south1"):
            made.async_batch_embed_contents(TEXTS, display_name="Test")
        with pytest.raises(
            NotFound, match=r"not found.*; whether asia-south1 serves batches of new is not known"
        ):
            made.async_batch_embed_contents(TEXTS, display_name="Test", model="new")
        assert google.creates == 0
        batch = made.async_batch_embed_contents(TEXTS, display_name="Test", model="text-embedding-005")
        assert batch.notes == ()


# uploads and downloads that break


@pytest.mark.parametrize(
    "fault",
    [
        Fault("storage.upload", calls=(1,), cut="handled"),
        Fault("storage.chunk", calls=(1,), cut="request", at=3 << 20),
        Fault("storage.chunk", calls=(1,), cut="handled"),
        Fault("storage.chunk", calls=(1,), status=503, handled=True),
        Fault("storage.chunk", calls=(1,), status=500),
        Fault("storage.chunk", calls=(2,), cut="handled"),
        Fault("storage.chunk", calls=(2,), status=410),
        Fault("storage.*", chance=0.3),
    ],
)
def test_an_upload_that_breaks_goes_on(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where the service says that it stopped, or anew; what arrives is what was sent."""
    texts = [f"{number} " + "x" * 200_000 for number in range(50)]  # two chunks
    with vertex(monkeypatch, Behaviour(seed=11, faults=(fault,))) as google, client(max_retries=20) as made:
        batch = made.async_batch_embed_contents(texts, display_name="Test")
        (name,) = google.storage.names()
        lines = (google.storage.read(name) or b"").splitlines()
        assert google.creates == 1
    assert batch.batch_stats.request_count == len(lines) == 50
    assert {line.count(b"x") for line in lines} <= {200_000, 200_001}


def test_an_upload_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such bucket: named, with the argument, and no job was created."""
    with vertex(monkeypatch) as google, client(staging="gs://no-such-bucket") as made:
        with pytest.raises(NotFound, match="gs://no-such-bucket") as refused:
            made.async_batch_embed_contents(TEXTS, display_name="Test")
        assert google.creates == 0
    assert refused.value.field == "staging"


@pytest.mark.parametrize("cut", ["unread", "head", "body"])
def test_a_read_that_breaks_is_repeated(cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list, a part of a file, a look at an object: all are asked for again."""
    faults = tuple(
        Fault(route, calls=(1,), cut=cut, at=100) for route in ("storage.read", "storage.list", "status")
    )
    with vertex(monkeypatch, Behaviour(faults=faults)), client() as made:
        _, result = finished(made)
    assert not result.failed_responses


def test_a_list_in_pages_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs as of files."""
    with vertex(monkeypatch, Behaviour(list_size=2, output_files=5)) as google, client() as made:
        for _ in range(3):
            _, result = finished(made)
        assert len(list(made.list_batches())) == 3
        assert not result.failed_responses
        made.delete_batch(next(iter(made.list_batches())))
        assert len(google.storage.names()) == 12


def test_a_create_that_may_have_been_taken_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost twice; the list says what became of it."""
    with vertex(monkeypatch, Behaviour(faults=(Fault("create", cut="handled"),))) as google, client() as made:
        with pytest.raises(ConnectionFailed):
            ForRuns(made).submit(TEXTS, RequestDefaults(), BatchOptions("Test", fingerprint=MARK))
        assert google.creates == 1
        assert [one.fingerprint for one in made.list_batches()] == [MARK]


# who is asked, and who sees it


def test_tokens_that_end_are_renewed_while_a_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their time, and once where a call is refused although their time is not over."""
    with vertex(monkeypatch, Behaviour(polls_to_end=6)) as google, client() as made:
        batch = made.async_batch_embed_contents(TEXTS, display_name="Test")
        assert len(google.tokens.issued) == 1
        google.tokens.expire()
        assert not made.get_batch_status(batch).done
        assert len(google.tokens.issued) == 2
        assert made.await_batch_completion(batch, poll_interval=0).done
        assert len(google.tokens.issued) == 2
    with vertex(monkeypatch, Behaviour(token_seconds=60)) as google, client() as made:
        finished(made)
        assert len(google.tokens.issued) > 2


def test_a_token_that_does_not_help_is_renewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that refuses goes on refusing."""
    with vertex(monkeypatch, Behaviour(faults=(Fault("status", status=401),))) as google, client() as made:
        with pytest.raises(Unauthenticated):
            made.get_batch_status("batches/1")
        assert google.calls == {"token": 2, "status": 2}


def test_an_emulator_is_shown_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Google's clients: nobody who is said to be one can keep it."""
    behaviour = Behaviour(storage_wants_token=True)
    with vertex(monkeypatch, behaviour), client() as made, pytest.raises(Unauthenticated):
        made.async_batch_embed_contents(TEXTS, display_name="Test")


def test_storage_is_shown_the_token_and_the_address_of_an_upload_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That one is its own credential, wherever it leads; the project that pays is named as well."""
    elsewhere = "https://elsewhere.example/upload?upload_id=1"
    seen: list[tuple[str, bool, str | None]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        bearer = request.headers.get("authorization", "").startswith("Bearer ya29.")
        seen.append((request.url.host, bearer, request.headers.get("x-goog-user-project")))
        if request.method == "POST" and request.url.host == "storage.googleapis.com":
            return httpx2.Response(200, headers={"Location": elsewhere})
        if request.method == "PUT":
            return httpx2.Response(200, json={"name": "x", "size": str(len(request.content))})
        return httpx2.Response(404, json={"error": {"code": 404, "message": "none"}})

    with vertex(monkeypatch):
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.delenv("GOOGLE_VERTEX_BASE_URL")
        monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "payer")
        with client(http_client=wired(handle)) as made, pytest.raises(NotFound, match="none"):
            made.async_batch_embed_contents(TEXTS, display_name="Test")
    storage = ("storage.googleapis.com", True, "payer")
    service = ("us-central1-aiplatform.googleapis.com", True, "payer")
    assert seen == [storage, storage, ("elsewhere.example", False, None), service]


CANARY = "canary-secret-7391"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            Fault("token", status=400, plain=f'{{"error": "invalid_grant", "of": "{CANARY}"}}'),
            Unauthenticated,
            "(invalid_grant)",
        ),
        (Fault("token", status=400, plain=f'{{"error": "{CANARY}"}}'), Unauthenticated, "gcloud auth"),
        (Fault("token", status=200, plain=f'{{"id_token": "{CANARY}"}}'), Unauthenticated, "gcloud auth"),
        (Fault("token", cut="head"), ConnectionFailed, "cannot be reached"),
    ],
)
def test_credentials_that_cannot_be_had_are_named_and_never_shown(
    fault: Fault,
    kind: type[EmbatchError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever whoever gives tokens says, a secret too: neither in the error nor in what it comes of."""
    caplog.set_level(logging.DEBUG)
    with vertex(monkeypatch, Behaviour(faults=(fault,))), client(max_retries=0) as made:
        with pytest.raises(kind) as refused:
            made.get_batch_status("batches/1")
        said = f"{refused.value!r} {refused.value} {refused.value.__cause__!r} {refused.value.__context__!r}"
    assert CANARY not in said + caplog.text
    assert words in said


def test_no_token_is_ever_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not by what logs, prints or fails."""
    caplog.set_level(logging.DEBUG)
    with vertex(monkeypatch) as google, client() as made:
        finished(made)
        target = target_of(made)
        shown = f"{made!r} {target!r} {target.credential!r}"
        with pytest.raises(NotFound) as missing:
            made.get_batch_status("batches/1")
        (token,) = google.tokens.issued
    assert token not in shown + repr(missing.value) + str(missing.value) + caplog.text


def test_an_answer_that_repeats_the_token_is_shown_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Google does with keys that are suspended."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        said = f"this is no good: {request.headers['authorization']}"
        return httpx2.Response(
            403, json={"error": {"code": 403, "message": said, "status": "PERMISSION_DENIED"}}
        )

    with (
        vertex(monkeypatch) as google,
        client(http_client=wired(handle)) as made,
        pytest.raises(PermissionDenied, match=r"no good: Bearer \(the key\)"),
    ):
        made.get_batch_status("batches/1")
    assert len(google.tokens.issued) == 1


def test_without_credentials_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is none of Google's; nothing was sent."""
    (tmp_path / "none.json").write_text("{}")
    with vertex(monkeypatch) as google, client() as made:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        with pytest.raises(Unauthenticated, match="gcloud auth application-default login"):
            made.get_batch_status("batches/1")
        assert google.calls == {}


def test_workload_identity_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials of another kind, over our own HTTP client too."""
    with vertex(monkeypatch) as google, client() as made:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.workload_identity()))
        assert list(made.list_batches()) == []
        assert len(google.tokens.issued) == 1


# at once


@pytest.mark.parametrize("many", [True, False])
def test_texts_are_embedded_at_once(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """In one call where the model takes several, else one by one; the older models by their own path."""
    with vertex(monkeypatch, Behaviour(serves_many=many)) as google, client() as made:
        for model in MODELS:
            found = made.batch_embed_contents(TEXTS[:3], model=model, output_dimensionality=64)
            np.testing.assert_allclose(
                [one.values for one in found], expected(model, 64, TEXTS[:3]), atol=1e-6
            )
        one = made.embed_content(TEXTS[0], model=MODELS[0], output_dimensionality=64)
        np.testing.assert_allclose(one.values, found_first(64), atol=1e-6)
        calls = {name: count for name, count in google.calls.items() if name != "token"}
        assert made.count_tokens(["one two", "three"]) == 3
        assert made.count_tokens(["one two", "three"], model=MODELS[1]) == 3
    assert calls == (
        {"embed_many": 1, "predict": 1, "embed": 1} if many else {"embed_many": 1, "predict": 1, "embed": 4}
    )


def found_first(width: int) -> Any:
    """Return the first text's vector."""
    return expected(MODELS[0], width, TEXTS[:1])[0]


def test_texts_of_one_call_have_one_width_where_the_path_knows_but_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are not made alike in silence."""
    requests = [Request("a", output_dimensionality=64), Request("b", output_dimensionality=128)]
    with vertex(monkeypatch) as google, client() as made:
        with pytest.raises(InvalidArgument, match="one output_dimensionality"):
            made.batch_embed_contents(requests, model=MODELS[1])
        assert google.items == 0
        found = made.batch_embed_contents(requests, model=MODELS[0])
    assert [len(one.values) for one in found] == [64, 128]


def test_the_newer_model_has_its_task_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Gemini, for it reads nothing else; in the words that are documented."""
    with vertex(monkeypatch) as google, client(location="eu", model="gemini-embedding-2") as made:
        _, result = finished(made, ["a"], task_type="CLUSTERING")
        (row,) = google.jobs[0].rows
    assert row.text == "task: clustering | query: a"
    assert not result.failed_responses


def test_models_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default one first; nobody is asked."""
    with vertex(monkeypatch) as google, client() as made:
        names = [one.name for one in made.list_models()]
        assert google.calls == {}
    assert names[:2] == ["models/gemini-embedding-001", "models/gemini-embedding-2"]


# how it is set up


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"project": ""}, "project", "needs a project"),
        ({"project": "../x"}, "project", "one of Google's"),
        ({"location": ""}, "location", "needs a location"),
        ({"location": "evil.example/"}, "location", "one of Google's"),
        ({"staging": "s3://bucket"}, "staging", "gs://bucket"),
        ({"api_key": "secret-key"}, "api_key", "takes no key"),
        ({"project": 7}, "project", "a text"),
    ],
)
def test_what_cannot_be_is_named(
    options: dict[str, Any], field: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent, and without the key."""
    with vertex(monkeypatch) as google:
        with pytest.raises(InvalidArgument, match=words) as refused:
            Client("vertex", **options)
        assert refused.value.field == field
        assert "secret-key" not in str(refused.value)
        assert google.calls == {}


def test_what_is_vertexs_goes_with_no_other_target() -> None:
    """A project would be ignored in silence."""
    with pytest.raises(InvalidArgument, match="project goes with `vertex`"):
        Client("gemini", api_key="k", project="my-project")


def test_without_a_bucket_batches_can_be_looked_at_and_none_be_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said at once, and how to name one."""
    with vertex(monkeypatch) as google:
        monkeypatch.delenv("EMBATCH_STAGING")
        with client() as made:
            assert list(made.list_batches()) == []
            with pytest.raises(InvalidArgument, match="EMBATCH_STAGING") as refused:
                made.async_batch_embed_contents(TEXTS, display_name="Test")
            assert google.creates == 0
    assert refused.value.field == "staging"


def test_the_guides_word_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auth="vertex_ai"` is the target."""
    with vertex(monkeypatch), Client(auth="vertex_ai") as made:
        assert list(made.list_batches()) == []
