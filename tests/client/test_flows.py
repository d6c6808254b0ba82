"""Flows alone, played with next, send and throw: repeats, waits, polling, submitting. Nothing sleeps."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from client_scripts import Clock, json_reply, play, problem, session

from embatch import (
    AlreadyExists,
    Batch,
    BatchFailed,
    BatchNotCompleted,
    BatchTimeout,
    ConnectionFailed,
    Internal,
    InvalidArgument,
    NotFound,
    Request,
    ResourceExhausted,
    State,
    Unavailable,
)
from embatch.client import flows, interactive
from embatch.client.calls import NOT_SENT, Reply
from embatch.client.flows import BatchOptions, RequestDefaults, Wait
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.client.targets import resolve
from embatch.client.upload import FileUpload, send_file

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "batches/b1"
LOST = ConnectionFailed("broke")
UNSENT = ConnectionFailed("refused", reason=NOT_SENT)
BUSY = json_reply(problem(503, "UNAVAILABLE"), 503)
WISH = RequestDefaults("m")
LABELS = BatchOptions("Test")
GEMINI = resolve("gemini", key="k", data=None, environ={})  # type: ignore[arg-type]  # no data folder needed


def operation(state: str = "RUNNING", count: int = 3, **more: Any) -> Reply:
    """Return an operation as a service answers it."""
    metadata = {
        "name": NAME,
        "model": "models/m",
        "displayName": "Test",
        "state": f"BATCH_STATE_{state}",
        "batchStats": {"requestCount": str(count)},
        **more,
    }
    return json_reply({"name": NAME, "metadata": metadata})


def test_success_after_a_refusal_and_a_drop() -> None:
    """Both are repeated after waits that double; full jitter with chance 1 shows their ceilings."""
    played = play(flows.get(session(), NAME), [BUSY, LOST, BUSY, operation()])
    assert played.value.state is State.PROCESSING
    assert [call.after for call in played.calls] == [0.0, 0.5, 1.0, 2.0]


def test_repeats_are_exhausted() -> None:
    """The sixth failure is raised as it came."""
    played = play(flows.get(session(), NAME), [BUSY] * 6)
    assert isinstance(played.error, Unavailable)
    assert played.error.message == "told so"
    played = play(flows.get(session(), NAME), [LOST] * 6)
    assert played.error is LOST


@pytest.mark.parametrize(
    ("status", "word", "kind"),
    [
        (400, "INVALID_ARGUMENT", InvalidArgument),
        (404, "NOT_FOUND", NotFound),
        (409, "ALREADY_EXISTS", AlreadyExists),
    ],
)
def test_what_repeating_cannot_help_is_raised_at_once(status: int, word: str, kind: type[Exception]) -> None:
    """One call, one error of the right class with the service's words."""
    played = play(flows.get(session(), NAME), [json_reply(problem(status, word), status)])
    assert type(played.error) is kind


def test_retry_info_is_honoured() -> None:
    """A retryDelay in the details is waited, with at most a quarter on top."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
    limited = json_reply(problem(429, "RESOURCE_EXHAUSTED", "slow down", info), 429)
    played = play(flows.get(session(chance=0.0), NAME), [limited, operation()])
    assert [call.after for call in played.calls] == [0.0, 34.07]
    played = play(flows.get(session(chance=1.0), NAME), [limited, operation()])
    assert played.calls[1].after == pytest.approx(34.07 * 1.25)


def test_retry_after_is_honoured() -> None:
    """The header in seconds does the same."""
    limited = json_reply(problem(429, "RESOURCE_EXHAUSTED"), 429, retry_after="7")
    played = play(flows.get(session(chance=0.0), NAME), [limited, operation()])
    assert played.calls[1].after == 7.0
    played = play(flows.get(session(), NAME), [limited] * 6)
    assert isinstance(played.error, ResourceExhausted)
    assert played.error.retry_after == 7.0


@pytest.mark.parametrize("said", ["999999999", "121", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_who_asks_for_more_than_two_minutes_is_not_asked_again(said: str) -> None:
    """The error comes at once, with the wait on it: by header or by RetryInfo, of a poll, of an upload."""
    headers = {"retry_after": said, "date": "Mon, 01 Jun 2026 10:00:00 GMT"}
    refusals = [json_reply(problem(503, "UNAVAILABLE"), 503, **headers)]
    if said.isdigit():
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{said}.5s"}
        refusals.append(json_reply(problem(429, "RESOURCE_EXHAUSTED", "no", info), 429))
    for refusal in refusals:
        for flow in (
            flows.get(session(), NAME),
            flows.await_batch(session(), NAME, Wait(limit=math.inf), None),
            flows.cancel(session(), NAME),
            send_file(session(), FileUpload(io.BytesIO(b"x"), 1, "text/plain", "x"), "v1"),
        ):
            played = play(flow, [refusal])
            assert isinstance(played.error, Unavailable | ResourceExhausted)
            assert played.error.retry_after is not None
            assert 120 < played.error.retry_after <= 1e9
    started = Reply(200, {"x-goog-upload-url": "http://service/upload/1"})
    flow = send_file(session(), FileUpload(io.BytesIO(b"x"), 1, "text/plain", "x"), "v1")
    played = play(flow, [started, refusals[0]])
    assert isinstance(played.error, Unavailable)


@pytest.mark.parametrize(
    "said",
    ["-5", "nan", "inf", "1e12", "0", "soon", "1.5.5", "Fri, 31 Dec 99999999999 23:59:59 GMT", "9" * 9000],
)
def test_a_wait_that_makes_no_sense_is_none(said: str) -> None:
    """It is tried again as after any other refusal; 9,000 digits ask for very long."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{said}s"}
    for refusal in (
        json_reply(problem(503, "UNAVAILABLE"), 503, retry_after=said),
        json_reply(problem(503, "UNAVAILABLE", "no", info), 503),
    ):
        if said.isdigit() and len(said) > 1 and "retry-after" in refusal.headers:
            continue
        played = play(flows.get(session(), NAME), [refusal, operation()])
        assert played.error is None
        assert played.calls[1].after == 0.5


def test_an_answer_that_is_no_envelope_is_an_error_all_the_same() -> None:
    """A proxy's HTML page with 502 is waited out; with 403 it is raised."""
    page = Reply(502, {"content-type": "text/html"}, b"<html>bad gateway</html>")
    assert play(flows.get(session(), NAME), [page, operation()]).value.name == NAME
    assert play(flows.get(session(), NAME), [Reply(403, {}, b"<html>")]).error is not None
    nonsense = Reply(200, {}, b"<html>welcome to the hotel</html>")
    assert isinstance(play(flows.get(session(), NAME), [nonsense]).error, Internal)


def test_reads_are_repeated_after_an_internal_error_and_changes_are_not() -> None:
    """A 500 says nothing about whether the change took effect."""
    broken = json_reply(problem(500, "INTERNAL"), 500)
    assert play(flows.get(session(), NAME), [broken, operation()]).value.name == NAME
    played = play(flows.update(session(), NAME, None, 5), [broken])
    assert isinstance(played.error, Internal)


# --- polling ---------------------------------------------------------------------------------------------


def poll(answers: Sequence[Reply | Exception], wait: Wait | None = None) -> tuple[Any, list[Batch], Clock]:
    """Await a batch with a clock that only waiting moves; return what was played and what was reported."""
    clock, told = Clock(), list[Batch]()
    flow = flows.await_batch(session(clock=clock), NAME, wait or Wait(), told.append)
    return play(flow, answers, clock), told, clock


@pytest.mark.parametrize(("count", "interval"), [(0, 2), (99, 2), (100, 5), (1000, 10), (10_000, 30)])
def test_the_interval_follows_the_size(count: int, interval: float) -> None:
    """The first polls come soon, for a small batch is; every poll asks for no output."""
    played, told, _ = poll([operation(count=count)] * 11 + [operation("SUCCEEDED", count)])
    soon = [pause for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6) if pause < interval]
    assert [call.after for call in played.calls] == [0, *soon, *[interval] * (11 - len(soon))]
    assert all(call.query == {"view": "BASIC"} for call in played.calls)
    assert [batch.state for batch in told] == [*[State.PROCESSING] * 11, State.COMPLETED]
    assert played.value is told[-1]


def test_gemini_is_not_asked_for_a_view_it_does_not_know() -> None:
    """The view is an addition of ours."""
    played = play(flows.await_batch(session(GEMINI), NAME, Wait(), None), [operation("SUCCEEDED")])
    assert [(call.path, call.query) for call in played.calls] == [("/v1beta/batches/b1", {})]


def test_a_given_interval_and_limit_are_kept() -> None:
    """The last poll is made at the limit itself; then the wait ends and says that the batch goes on."""
    played, told, clock = poll([operation()] * 5, Wait(interval=3.0, limit=10.0))
    assert [call.after for call in played.calls] == [0, 3, 3, 3, 1]
    assert clock.now == 1010.0
    assert isinstance(played.error, BatchTimeout)
    assert "batches/b1 is not finished after 10 s (state: PROCESSING)" in played.error.message
    assert len(told) == 5


def test_the_limit_follows_the_size() -> None:
    """One second a request and two minutes, from the first call on."""
    played, _, clock = poll([operation(count=30)] * 76, Wait(interval=2.0))
    assert isinstance(played.error, BatchTimeout)
    assert clock.now == 1150.0


def test_the_limit_counts_from_when_the_size_is_known() -> None:
    """A large file may take longer to plan than its first requests would: nothing is given up meanwhile."""
    unknown = [operation("PENDING", count=0)] * 500
    played, _, clock = poll(unknown + [operation(count=30)] * 76, Wait(interval=2.0))
    assert isinstance(played.error, BatchTimeout)
    assert "after 150 s" in played.error.message
    assert clock.now == 1000.0 + 500 * 2.0 + 150.0
    played, _, clock = poll([operation(count=0)] * 5, Wait(2.0, limit=8.0))  # unless a limit is given
    assert isinstance(played.error, BatchTimeout)
    assert clock.now == 1008.0


def test_no_limit_at_all() -> None:
    """math.inf waits until the batch ends."""
    played, _, clock = poll([operation()] * 1000 + [operation("CANCELLED")], Wait(2.0, limit=math.inf))
    assert played.value.state is State.CANCELLED
    assert clock.now == 3000.0


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"])
def test_every_final_state_ends_the_wait(state: str) -> None:
    """The batch comes back in whatever final state it reached; FAILED is no exception."""
    played, _, _ = poll([operation(state)])
    assert played.value.done


def test_trouble_while_polling_is_waited_out_within_the_limit() -> None:
    """Waits after errors double and count towards the limit; a good poll starts them anew."""
    played, told, _ = poll([LOST, BUSY, operation(), BUSY, operation("SUCCEEDED")], Wait(interval=5.0))
    assert [call.after for call in played.calls] == [0, 1, 2, 5, 1]
    assert len(told) == 2
    played, _, clock = poll([LOST] * 5, Wait(interval=5.0, limit=9.0))
    assert isinstance(played.error, BatchTimeout)
    assert "not heard of yet" in played.error.message
    assert clock.now == 1009.0


def test_a_batch_that_does_not_exist_ends_the_wait() -> None:
    """404 is not waited out."""
    played, _, _ = poll([json_reply(problem(404, "NOT_FOUND"), 404)])
    assert isinstance(played.error, NotFound)


def test_what_on_progress_raises_ends_the_wait() -> None:
    """The callback's own exception comes through unchanged."""

    def stop(_: Batch) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        play(flows.await_batch(session(), NAME, Wait(), stop), [operation()])


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_senseless_waits_are_refused(value: float) -> None:
    """A negative or missing number of seconds is named."""
    with pytest.raises(InvalidArgument, match="poll_interval"):
        Wait(interval=value)
    with pytest.raises(InvalidArgument, match="timeout"):
        Wait(limit=value)


# --- submitting ------------------------------------------------------------------------------------------


def test_submit_sends_settings_defaults_and_one_idempotency_key() -> None:
    """A request's own settings win; the random key stays the same when the call is repeated."""
    requests: list[str | Request] = [
        "a",
        Request("b", key="k", metadata={"n": 1}, output_dimensionality=8, title="T"),
    ]
    defaults, labels = RequestDefaults("models/org/m", "retrieval_document", 16), BatchOptions("Test", 5)
    played = play(flows.submit(session(), requests, defaults, labels), [LOST, BUSY, operation("PENDING")])
    assert played.value.state is State.PENDING
    assert [call.path for call in played.calls] == ["/v1/models/org/m:asyncBatchEmbedContent"] * 3
    assert {call.headers["Idempotency-Key"] for call in played.calls} == {"token-0"}
    assert len({call.body for call in played.calls}) == 1
    batch = orjson.loads(played.calls[0].body)["batch"]
    assert batch["displayName"] == "Test"
    assert int(batch["priority"]) == 5
    first, second = batch["inputConfig"]["requests"]["requests"]
    assert first["request"]["content"]["parts"] == [{"text": "a"}]
    assert first["request"]["taskType"] == second["request"]["taskType"] == "RETRIEVAL_DOCUMENT"
    assert (first["request"]["outputDimensionality"], second["request"]["outputDimensionality"]) == (16, 8)
    assert second["request"]["title"] == "T"
    assert second["metadata"] == {"n": 1}


def test_the_callers_idempotency_key_is_used() -> None:
    """And Google, which has none, gets none."""
    played = play(flows.submit(session(), ["a"], WISH, BatchOptions("Test", 0, "mine")), [operation()])
    assert played.calls[0].headers["Idempotency-Key"] == "mine"
    played = play(flows.submit(session(GEMINI), ["a"], WISH, BatchOptions("Test", 0, "mine")), [operation()])
    assert "Idempotency-Key" not in played.calls[0].headers


def test_a_submit_that_google_may_have_accepted_is_not_repeated() -> None:
    """A second one would make, and cost, another batch; one that was never sent, or refused, is repeated."""
    limited = json_reply(problem(429, "RESOURCE_EXHAUSTED"), 429)
    played = play(flows.submit(session(GEMINI), ["a"], WISH, LABELS), [UNSENT, limited, LOST])
    assert played.error is LOST
    # What a gateway says when it gives up may come after the service has taken it.
    played = play(flows.submit(session(GEMINI), ["a"], WISH, LABELS), [UNSENT, BUSY])
    assert isinstance(played.error, Unavailable)


def test_what_is_called_before_a_create_is_called_after_all_else() -> None:
    """Also where the way there had its troubles; what it raises ends the submit before a batch is created."""
    calls: list[str] = []
    flow = flows.submit(session(GEMINI), ["a"], WISH, LABELS, lambda: calls.append("ready"))
    played = play(flow, [UNSENT, operation()])
    assert (calls, len(played.calls)) == (["ready"], 2)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        play(flows.submit(session(GEMINI), ["a"], WISH, LABELS, full), [])


@pytest.mark.parametrize("name", ["", "  "])
def test_a_display_name_is_required(name: str) -> None:
    """Nothing is sent without one."""
    played = play(flows.submit(session(), ["a"], WISH, BatchOptions(name)), [])
    assert isinstance(played.error, InvalidArgument)
    assert played.error.field == "display_name"


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "the list is empty"),
        ("one text", "a list of texts, not one text"),
        (Request("one"), "a list of texts, not one text"),
        (["a", 5], r"requests\[1\] is an int"),
        (["a", ["b"]], r"requests\[1\] is a list"),
        ({"a": "b"}, "requests must be a list of texts or requests, not a dict"),
        ({"a"}, "requests must be a list of texts or requests, not a set"),
        (5, "requests must be a list of texts or requests, not an int"),
        (None, "requests must be a list of texts or requests, not None"),
        ([b"bytes"], r"requests\[0\] is a bytes"),
    ],
)
def test_what_cannot_be_submitted_is_named(requests: Any, says: str) -> None:
    """Mistakes of a program are told at once, before anything is sent."""
    played = play(flows.submit(session(), requests, WISH, LABELS), [])
    assert isinstance(played.error, InvalidArgument)
    with pytest.raises(InvalidArgument, match=says):
        raise played.error


@pytest.mark.parametrize(
    ("defaults", "field"),
    [
        (RequestDefaults("m", "RETRIEVAL"), "task_type"),
        (RequestDefaults("m", None, 0), "output_dimensionality"),
    ],
)
def test_wrong_settings_are_named(defaults: RequestDefaults, field: str) -> None:
    """An unknown task type lists the known ones."""
    played = play(flows.submit(session(), ["a"], defaults, LABELS), [])
    assert isinstance(played.error, InvalidArgument)
    assert played.error.field == field


def test_a_service_is_asked_for_its_model_where_nobody_names_one() -> None:
    """Its first model is its default."""
    served = json_reply({"models": [{"name": "models/org/first"}, {"name": "models/second"}]})
    played = play(flows.submit(session(), ["a"], RequestDefaults(), LABELS), [served, operation()])
    assert [call.path for call in played.calls] == [
        "/v1/models",
        "/v1/models/org/first:asyncBatchEmbedContent",
    ]


# --- the rest --------------------------------------------------------------------------------------------


def test_a_lost_answer_to_delete_or_cancel_does_not_turn_into_an_error() -> None:
    """The repeat finds the work done: that is success, unlike the same answer to a first call."""
    gone = json_reply(problem(404, "NOT_FOUND"), 404)
    final = json_reply(problem(400, "FAILED_PRECONDITION"), 400)
    assert play(flows.delete(session(), NAME), [LOST, gone]).error is None
    assert isinstance(play(flows.delete(session(), NAME), [gone]).error, NotFound)
    played = play(flows.cancel(session(), NAME), [LOST, final, operation("CANCELLED")])
    assert played.value.state is State.CANCELLED


def test_to_cancel_what_has_ended_changes_nothing() -> None:
    """It comes back as it is, from services that refuse it too; a refusal of one that runs is an error."""
    final = json_reply(problem(400, "FAILED_PRECONDITION"), 400)
    for answer in (final, json_reply({})):
        played = play(flows.cancel(session(), NAME), [answer, operation("SUCCEEDED")])
        assert played.value.state is State.COMPLETED
    assert play(flows.cancel(session(), NAME), [final, operation("RUNNING")]).error is not None


@pytest.mark.parametrize(
    "name", ["", "b1", "batches/", "batches/a/b", "batches/a?x=1", "files/a", "batches/a b"]
)
def test_a_name_that_is_none_is_refused_before_it_is_sent(name: str) -> None:
    """It could reach another path than a batch's."""
    played = play(flows.get(session(), name), [])
    assert isinstance(played.error, InvalidArgument)


def test_update_needs_something_to_change() -> None:
    """And sends only what shall change."""
    assert isinstance(play(flows.update(session(), NAME, None, None), []).error, InvalidArgument)
    changed = json_reply(
        {"name": NAME, "model": "models/m", "state": "BATCH_STATE_PENDING", "priority": "-3"}
    )
    played = play(flows.update(session(), NAME, None, -3), [changed])
    assert played.value.priority == -3
    assert played.calls[0].query == {"updateMask": "priority"}
    assert orjson.loads(played.calls[0].body) == {"priority": "-3"}


def batch_in(state: State) -> Batch:
    """Return a batch in this state."""
    return Batch(NAME, "models/m", state, "Test", 0, None, None, None, error="no room")


def test_results_of_a_batch_that_is_not_completed() -> None:
    """A running one is asked for again, a stopped one only read on request, a failed one is an error."""
    played = play(flows.results(session(), batch_in(State.PROCESSING), None, partial=True), [operation()])
    assert isinstance(played.error, BatchNotCompleted)
    assert "current state: PROCESSING" in played.error.message
    played = play(flows.results(session(), batch_in(State.CANCELLED), None, partial=False), [])
    assert isinstance(played.error, BatchNotCompleted)
    assert "partial=True" in played.error.message
    played = play(flows.results(session(), batch_in(State.FAILED), None, partial=True), [])
    assert isinstance(played.error, BatchFailed)
    assert "no room" in played.error.message


def test_a_list_that_never_ends_is_noticed() -> None:
    """The same page token twice would loop for ever."""
    page = json_reply({"operations": [], "nextPageToken": "again"})
    assert play(flows.page(session(), 2, None), [page]).value.next_page_token is not None
    assert isinstance(play(flows.page(session(), 2, "again"), [page]).error, Internal)


def test_an_https_target_behind_a_path() -> None:
    """Paths are put behind the target's own."""
    assert Target("https://host/embed", EMBATCH).at("/v1/batches") == "https://host/embed/v1/batches"


def test_a_default_model_is_asked_for_once_and_keeps_its_name() -> None:
    """Also one whose name a path cannot hold as it is."""
    known = session()
    listed = json_reply({"models": [{"name": "models/my model"}]})
    embedding = json_reply({"embedding": {"values": [1.0]}})
    paths = [
        [call.path for call in play(interactive.embed(known, "a", None, RequestDefaults()), script).calls]
        for script in ([listed, embedding], [embedding])
    ]
    assert paths == [
        ["/v1/models", "/v1/models/my%20model:embedContent"],
        ["/v1/models/my%20model:embedContent"],
    ]
