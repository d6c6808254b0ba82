"""Google's batch API as the live service speaks it (wire anchors 1.4, row X05), end to end through a fake."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import pytest
from client_scripts import unhurried, wired
from fake_gemini import KEY, FakeGemini, problem, vector

from embatch import (
    Batch,
    BatchFailed,
    BatchNotCompleted,
    BatchResult,
    Client,
    Code,
    DataLoss,
    EmbatchError,
    InvalidArgument,
    Reason,
    Request,
    State,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXTS = ["one", "", "three words here", "four"]
FILE = 1_500
"""More requests than go inline."""


@contextmanager
def gemini(**behaviour: Any) -> Iterator[tuple[Client, FakeGemini]]:
    """Return a client and the fake it talks to."""
    fake = FakeGemini(**behaviour)
    with Client("gemini", api_key=KEY, http_client=wired(fake)) as client:
        unhurried(client)
        yield client, fake


def finished(client: Client, requests: Sequence[str | Request], **options: Any) -> tuple[Batch, BatchResult]:
    """Submit, wait and fetch."""
    batch = client.async_batch_embed_contents(requests, display_name="Test", **options)
    batch = client.await_batch_completion(batch.name, poll_interval=0.0)
    return batch, client.get_batch_embeddings(batch)


def values(result: BatchResult) -> list[list[float] | None]:
    """Return the embeddings as plain lists."""
    return [None if one is None else one.values.tolist() for one in result.embeddings]


def test_an_inline_batch_whose_results_come_out_of_order() -> None:
    """Every embedding stands at its text; keys and metadata come back; the tag does not show."""
    requests: list[str | Request] = [
        "one",
        Request("two", key="k:2", metadata={"deep": {"list": [1]}}),
        "",
        Request("four", key=""),
    ]
    with gemini() as (client, _):
        batch, result = finished(client, requests)
    assert values(result) == [vector("one"), vector("two"), None, vector("four")]
    assert result.keys == [None, "k:2", None, ""]
    assert result.metadata == [None, {"deep": {"list": [1]}}, None, None]
    assert result.tokens.tolist() == [1, 1, 0, 1]
    [(index, error)] = result.failed_responses
    assert (index, error.code, error.message) == (2, Code.INVALID_ARGUMENT, "content is empty")
    assert batch.batch_stats.successful_request_count == 3
    assert batch.batch_stats.failed_request_count == 1


def test_the_live_shapes_are_read_without_loss() -> None:
    """Omitted zeros, absent `done`, string counters, nine fractional digits, an output that comes twice."""
    told: list[Batch] = []
    with gemini(polls_to_finish=3) as (client, _):
        batch = client.async_batch_embed_contents(["a", "b"], display_name="Test", priority=7)
        assert (batch.state, batch.done, batch.priority, batch.display_name) == (
            State.PENDING,
            False,
            7,
            "Test",
        )
        assert batch.model == "models/gemini-embedding-001"
        assert batch.create_time == datetime(2026, 6, 1, 10, 0, 0, 123456, UTC)
        batch = client.await_batch_completion(batch, poll_interval=0.0, on_progress=told.append)
    assert [(one.state, one.batch_stats.pending_request_count) for one in told] == [
        (State.PROCESSING, 2),
        (State.PROCESSING, 2),
        (State.COMPLETED, 0),
    ]
    assert batch.end_time == datetime(2026, 6, 1, 10, 5, 0, 500_000, UTC)
    assert (batch.batch_stats.request_count, batch.batch_stats.successful_request_count) == (2, 2)
    assert batch.batch_stats.success_rate == 100.0


@pytest.mark.parametrize("status_lines", [False, True])
def test_a_file_batch_whose_lines_come_out_of_order(status_lines: bool) -> None:  # noqa: FBT001  (a case)
    """Failed lines may say `error` or `status`; keys of the user's own survive, the index is taken off."""
    requests: list[str | Request] = [f"text {number}" for number in range(FILE)]
    requests[3], requests[7] = "", Request("seven", key="doc-7")
    with gemini(status_lines=status_lines) as (client, fake):
        batch, result = finished(client, requests, output_dimensionality=3)
        assert batch.input_file == "files/in-0"
        assert batch.responses_file is not None
    expected = [vector(f"text {number}", 3) for number in range(FILE)]
    expected[3], expected[7] = [], vector("seven", 3)
    assert [one or [] for one in values(result)] == expected
    assert result.keys[:9] == [None] * 7 + ["doc-7", None]
    assert [(index, error.code) for index, error in result.failed_responses] == [(3, Code.INVALID_ARGUMENT)]
    assert result.to_numpy(failed="nan").shape == (FILE, 3)
    assert result.tokens[0] == 2
    assert len(fake.files) == 2


@pytest.mark.parametrize("count", [3, FILE])
def test_a_batch_in_which_everything_failed(count: int) -> None:
    """It is COMPLETED all the same, and every request tells why."""
    with gemini() as (client, _):
        batch, result = finished(client, [" "] * count)
    assert batch.state is State.COMPLETED
    assert batch.batch_stats.failure_rate == 100.0
    assert [index for index, _ in result.failed_responses] == list(range(count))
    assert result.embeddings == [None] * count
    assert result.to_numpy(failed="nan").shape == (count, 0)


def test_results_are_read_smaller_on_request() -> None:
    """Truncated and normalised here, as an embatch service does it."""
    with gemini() as (client, _):
        batch, _ = finished(client, ["a", ""])
        result = client.get_batch_embeddings(batch, output_dimensionality=2)
    assert result.embeddings[0] is not None
    assert result.embeddings[0].dimensionality == 2
    assert result.embeddings[0].norm == pytest.approx(1.0)
    assert result.embeddings[1] is None


def test_an_output_that_comes_after_the_state() -> None:
    """SUCCEEDED is sometimes said before the results are there: they are waited for, within limits."""
    with gemini() as (client, fake):
        batch = client.async_batch_embed_contents(["a"], display_name="Test")
        batch = client.await_batch_completion(batch.name, poll_interval=0.0)
        fake.late_output = 3
        assert values(client.get_batch_embeddings(batch)) == [vector("a")]
        fake.late_output = 1000
        with pytest.raises(Unavailable, match="not there yet"):
            client.get_batch_embeddings(batch)


def test_cancelled_with_code_13() -> None:
    """A batch cancelled before its start says code 13; it is CANCELLED and tells what was said."""
    with gemini(polls_to_finish=9) as (client, fake):
        batch = client.async_batch_embed_contents(["a"], display_name="Test")
        batch = client.cancel_batch(batch)
        assert (batch.state, batch.error) == (State.CANCELLED, "Batch was cancelled.")
        with pytest.raises(BatchNotCompleted):
            client.get_batch_embeddings(batch)
        fake.end = "SUCCEEDED"
        fake.operation_error = None


def test_cancelled_after_its_start_it_may_end_succeeded() -> None:
    """Then requests not served carry code 1, like any other failure."""
    with gemini() as (client, fake):
        batch, _ = finished(client, ["a", "b"])
        fake.row = lambda one, job: (  # type: ignore[method-assign]  # what a cancelled request looks like
            {"metadata": one["metadata"], "error": {"code": 1}}
            if one["request"]["content"]["parts"][0]["text"] == "b"
            else FakeGemini.row(fake, one, job)
        )
        result = client.get_batch_embeddings(batch)
    assert [(index, error.code) for index, error in result.failed_responses] == [(1, Code.CANCELLED)]


def test_partial_results_of_an_expired_file_batch() -> None:
    """Lines that are missing count as expired; those that are there stand at their places."""
    texts = [f"text {number}" for number in range(FILE)]
    with gemini(end="EXPIRED", shuffle=lambda rows: rows[100:50:-1]) as (client, _):
        batch = client.async_batch_embed_contents(texts, display_name="Test")
        batch = client.await_batch_completion(batch.name, poll_interval=0.0)
        assert batch.state is State.EXPIRED
        result = client.get_batch_embeddings(batch, partial=True)
    found = values(result)
    assert [index for index, one in enumerate(found) if one] == list(range(51, 101))
    assert found[60] == vector("text 60")
    assert len(result.failed_responses) == FILE - 50
    assert result.failed_responses[0][1].reason is Reason.EXPIRED


def test_failed_for_quota_after_acceptance() -> None:
    """FAILED with code 8 and no output: the reason is told."""
    quota = {"code": 8, "message": "Quota exceeded for quota metric 'batch enqueued tokens'"}
    with gemini(end="FAILED", operation_error=quota) as (client, _):
        batch = client.async_batch_embed_contents(["a"], display_name="Test")
        batch = client.await_batch_completion(batch.name, poll_interval=0.0)
        assert batch.state is State.FAILED
        with pytest.raises(BatchFailed, match="Quota exceeded"):
            client.get_batch_embeddings(batch)


def unlike(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the same key and another vector."""
    return {**row, "response": {"embedding": {"values": vector("another")}}}


@pytest.mark.parametrize("count", [4, FILE])
@pytest.mark.parametrize(
    ("damage", "lost", "notes"),
    [
        (lambda rows: [*rows, rows[0]], [], ["1 result came twice, alike"]),
        (lambda rows: rows[:-1], [-1], ["1 result never came"]),
        (lambda rows: [*rows[:-1], rows[0]], [-1], ["1 result came twice, alike", "1 result never came"]),
        (lambda rows: [*rows, unlike(rows[1])], [1], ["1 result came twice with different vectors"]),
        (lambda rows: [*rows, unlike(rows[1]), rows[1]], [1], ["1 result came twice with different"]),
        (
            lambda rows: [*rows[:-2], unlike(rows[0]), unlike(rows[1])],
            [0, 1, -2, -1],
            ["2 results came twice with different vectors", "2 results never came"],
        ),
    ],
    ids=["added", "dropped", "doubled", "unlike", "thrice", "swapped"],
)
def test_a_request_whose_result_is_not_known_fails_alone(
    count: int, damage: Any, lost: list[int], notes: list[str]
) -> None:
    """Missing, or there twice and not alike: a wrong vector beside a text is never returned, the rest is."""
    texts = [f"text {number}" for number in range(count)]
    with gemini(shuffle=damage) as (client, _):
        _, result = finished(client, texts)
    expected = sorted(at % count for at in lost)
    assert [at for at, _ in result.failed_responses] == expected
    assert all(error.retryable and error.code is Code.DATA_LOSS for _, error in result.failed_responses)
    assert values(result) == [None if at in expected else vector(text) for at, text in enumerate(texts)]
    assert [note.startswith(said) for note, said in zip(result.batch.notes, notes, strict=True)]


@pytest.mark.parametrize("count", [4, FILE])
def test_a_result_that_is_no_requests_is_data_loss(count: int) -> None:
    """Nobody knows whose the others are then."""

    def beyond(rows: list[Any]) -> list[Any]:
        tag = f"r-{count}"
        return [
            *rows[:-1],
            {**rows[-1], **({"metadata": {"embatch.request": tag}} if count == 4 else {"key": tag})},
        ]

    with gemini(shuffle=beyond) as (client, _), pytest.raises(DataLoss, match=f"hold request {count}"):
        finished(client, [f"text {number}" for number in range(count)])


def test_results_with_gaps_are_looked_at_again() -> None:
    """A file may still be written when the batch says that it is done."""
    looks = iter([2, 3, FILE])
    texts = [f"text {number}" for number in range(FILE)]
    with gemini(shuffle=lambda rows: rows[: next(looks)]) as (client, _):
        batch = client.async_batch_embed_contents(texts, display_name="Test")
        done = replace(batch, state=State.COMPLETED)
        client.get_batch_status(batch)
        result = client.get_batch_embeddings(done)
    assert values(result) == [*map(vector, texts)]
    assert result.batch.notes == ()


@pytest.mark.parametrize("place", ["response", "metadata"])
@pytest.mark.parametrize("count", [4, FILE])
def test_results_in_one_of_two_places(count: int, place: str) -> None:
    """Both hold them usually; an empty one does not hide the other."""
    texts = [f"text {number}" for number in range(count)]
    with gemini(results_in=place) as (client, _):
        batch, result = finished(client, texts)
    assert values(result) == [*map(vector, texts)]
    assert (batch.responses_file is None) == (count == 4)


def test_a_results_file_that_is_named_before_it_is_there() -> None:
    """The service refuses it as one that does not exist: it is waited for, within limits."""
    texts = [f"text {number}" for number in range(FILE)]
    with gemini() as (client, fake):
        batch, _ = finished(client, texts)
        fake.late_files = 3
        assert values(client.get_batch_embeddings(batch)) == [*map(vector, texts)]
        fake.late_files = 1000
        with pytest.raises(Unavailable, match="not there yet"):
            client.get_batch_embeddings(batch)


@pytest.mark.parametrize("end", ["EXPIRED", "CANCELLED"])
@pytest.mark.parametrize("count", [4, FILE])
def test_a_batch_that_ended_without_results(count: int, end: str) -> None:
    """All that it had fails, to be tried again; nobody waits for what does not come."""
    error = {"code": 13, "message": "The batch has ended."}
    with gemini(end=end, operation_error=error) as (client, fake):
        batch = client.async_batch_embed_contents(["a"] * count, display_name="Test")
        batch = client.await_batch_completion(batch.name, poll_interval=0.0)
        calls = len(fake.seen)
        result = client.get_batch_embeddings(batch, partial=True)
        assert len(fake.seen) == calls + 1
    assert batch.state.value == end
    assert [at for at, _ in result.failed_responses] == [*range(count)]
    assert all(error.retryable for _, error in result.failed_responses)


@pytest.mark.parametrize("said", ["it was refused", {"code": 8, "message": "it was refused"}])
@pytest.mark.parametrize("word", ["error", "status"])
def test_a_failed_line_in_words_or_as_an_object(word: str, said: Any) -> None:
    """Neither is taken for a result, and what was said is told."""

    def failed(rows: list[Any]) -> list[Any]:
        return [*rows[1:], {"key": rows[0]["key"], word: said}]

    with gemini(shuffle=failed) as (client, _):
        _, result = finished(client, [f"text {number}" for number in range(FILE)])
    [(at, error)] = result.failed_responses
    assert (at, error.message, error.retryable) == (0, "it was refused", True)


def test_a_tag_that_was_lost() -> None:
    """A failed row without its tag fills the place left over; an embedding without one cannot be placed."""

    def bare(rows: list[Any], word: str) -> list[Any]:
        return [{k: v for k, v in row.items() if k != "metadata" or word not in row} for row in rows][::-1]

    with gemini(shuffle=lambda rows: bare(rows, "error")) as (client, _):
        _, result = finished(client, TEXTS)
        assert [index for index, _ in result.failed_responses] == [1]
        assert values(result)[3] == vector("four")
    with (
        gemini(shuffle=lambda rows: [{**rows[0], "metadata": {}}, *rows[1:]]) as (client, _),
        pytest.raises(DataLoss),
    ):
        finished(client, TEXTS)


def test_somebody_elses_batch_is_read_in_its_order() -> None:
    """Without our tags the order of the results is all there is; keys and metadata are shown as they are."""
    with gemini(shuffle=lambda rows: rows) as (client, fake):
        batch, _ = finished(client, TEXTS)
        for one in fake.jobs[batch.name].requests:
            one["metadata"] = {"theirs": True}
        result = client.get_batch_embeddings(batch.name)
    assert values(result) == [vector("one"), None, vector("three words here"), vector("four")]
    assert result.metadata[0] == {"theirs": True}


def test_list_update_delete() -> None:
    """The rest of the batch calls, over pages; entries of a list carry no output."""
    with gemini() as (client, _):
        names = [client.async_batch_embed_contents(["a"], display_name=f"n{n}").name for n in range(5)]
        assert [batch.name for batch in client.list_batches(page_size=2)] == names[::-1]
        batch = client.update_batch(names[0], display_name="new", priority=-3)
        assert (batch.name, batch.display_name, batch.priority) == (names[0], "new", -3)
        client.delete_batch(names[0])
        assert len([*client.list_batches()]) == 4
    with gemini() as (client, _):
        assert [*client.list_batches()] == []


def test_retry_failed_submits_only_what_failed() -> None:
    """And its results fill the holes of the first ones."""
    with gemini() as (client, fake):
        batch, result = finished(client, TEXTS, priority=2)
        again = client.retry_failed(batch, [text or "mended" for text in TEXTS])
        assert (again.display_name, again.priority) == ("Test (retry)", 2)
        again = client.await_batch_completion(again.name, poll_interval=0.0)
        assert len(fake.jobs[again.name].requests) == 1
        filled = result.fill(client.get_batch_embeddings(again))
        assert values(filled) == [vector(text or "mended") for text in TEXTS]
        with pytest.raises(InvalidArgument, match="the batch had 4 requests, not 1"):
            client.retry_failed(batch, ["mended"])


def test_embedding_now_in_hundreds() -> None:
    """`batch_embed_contents` keeps to Google's limit by itself, and to the order."""
    texts = [f"text {number}" for number in range(250)]
    with gemini() as (client, fake):
        found = client.batch_embed_contents(texts, output_dimensionality=5, task_type="CLUSTERING")
        assert [one.values.tolist() for one in found] == [vector(text, 5) for text in texts]
        # Some at a time: which comes first is chance.
        sizes = [len(orjson.loads(call.content)["requests"]) for call in fake.seen]
        assert sorted(sizes) == [50, 100, 100]
        assert client.embed_content("query", title="t").values.tolist() == vector("query")
        sent = orjson.loads(fake.seen[-1].content)
        assert (sent["title"], sent["content"]["parts"]) == ("t", [{"text": "query"}])


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_submit_that_may_have_been_taken_is_not_sent_again(status: int) -> None:
    """Whoever answers so may have handled it before: a second one would cost twice."""

    def troubled(request: httpx2.Request) -> httpx2.Response | None:
        created = request.url.path.endswith(":asyncBatchEmbedContent")
        return httpx2.Response(status, text="upstream trouble") if created else None

    with gemini(faults=[troubled]) as (client, fake):
        with pytest.raises(EmbatchError, match=f"HTTP {status}"):
            client.async_batch_embed_contents(["a"], display_name="Test")
        assert len(fake.seen) == 1


def test_a_submit_that_was_refused_for_quota_is_sent_again() -> None:
    """That is an answer: nothing was taken."""

    def busy(request: httpx2.Request) -> httpx2.Response | None:
        return problem(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")

    with gemini(faults=[busy, busy]) as (client, fake):
        assert client.async_batch_embed_contents(["a"], display_name="Test").state is State.PENDING
        assert len(fake.jobs) == 1


def test_a_wrong_key() -> None:
    """Google answers it with 400; the message tells."""
    with Client("gemini", api_key="wrong", http_client=wired(FakeGemini())) as client:
        with pytest.raises(InvalidArgument, match="API key not valid") as refused:
            client.get_batch_status("batches/x")
        assert "wrong" not in refused.value.message
