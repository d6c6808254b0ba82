"""Large submits: through a file in chunks, in the form the target takes, across broken connections."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pyarrow as pa
import pytest
from client_scripts import both, json_reply, play, problem, session, unhurried, wired
from fake_gemini import KEY, UPLOADS, FakeGemini

from embatch import AsyncClient, Client, ConnectionFailed, EmbatchError, InvalidArgument, Request
from embatch.client import flows
from embatch.client.calls import Reply
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.client.upload import FileUpload, send_file
from embatch.wire.gemini.uploads import CHUNK_BYTES


def limited(inline_requests: int = 3, inline_bytes: int = EMBATCH.capabilities.inline_bytes) -> Target:
    """Return a service with lower limits."""
    can = replace(EMBATCH.capabilities, inline_requests=inline_requests, inline_bytes=inline_bytes)
    return Target("http://service", replace(EMBATCH, capabilities=can))


SMALL = limited()
ADDRESS = "http://service/upload/v1/files?upload_id=t"
STARTED = Reply(200, {"x-goog-upload-url": ADDRESS, "x-goog-upload-status": "active"})
FINAL = json_reply({"file": {"name": "files/f"}}, x_goog_upload_status="final")
ACTIVE = Reply(200, {"x-goog-upload-status": "active"})
OPERATION = json_reply(
    {
        "name": "batches/b",
        "metadata": {"name": "batches/b", "model": "models/m", "state": "BATCH_STATE_PENDING"},
    }
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
WISH = RequestDefaults("m")


def arrived(size: int) -> Reply:
    """Return the answer to a query."""
    return Reply(200, {"x-goog-upload-status": "active", "x-goog-upload-size-received": str(size)})


def parcel(size: int) -> FileUpload:
    """Return a file of bytes that tell their place."""
    content = (b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]
    return FileUpload(io.BytesIO(content), size, "application/jsonl", "Test")


def commands(calls: list[Any]) -> list[tuple[str, str | None, int]]:
    """Return command, offset and length of each upload call."""
    return [
        (
            call.headers["X-Goog-Upload-Command"],
            call.headers.get("X-Goog-Upload-Offset"),
            len(call.body) if call.headers["X-Goog-Upload-Command"] != "start" else 0,
        )
        for call in calls
    ]


def test_chunks_of_eight_mebibytes() -> None:
    """17 MB go in three chunks, the last one completes the file."""
    size = 17_000_000
    played = play(send_file(session(), parcel(size), "v1"), [STARTED, ACTIVE, ACTIVE, FINAL])
    assert played.value == "files/f"
    assert commands(played.calls) == [
        ("start", None, 0),
        ("upload", "0", CHUNK_BYTES),
        ("upload", str(CHUNK_BYTES), CHUNK_BYTES),
        ("upload, finalize", str(2 * CHUNK_BYTES), size - 2 * CHUNK_BYTES),
    ]
    assert b"".join(call.body for call in played.calls[1:]) == parcel(size).file.read()
    assert played.calls[0].headers["X-Goog-Upload-Header-Content-Length"] == str(size)
    assert all(call.path == ADDRESS for call in played.calls[1:])


def test_a_broken_connection_is_taken_up_where_it_stopped() -> None:
    """The service says how much arrived; only the rest is sent again."""
    lost = ConnectionFailed("broke")
    answers: list[Reply | Exception] = [STARTED, ACTIVE, lost, lost, arrived(10_000_000), FINAL]
    played = play(send_file(session(), parcel(17_000_000), "v1"), answers)
    assert commands(played.calls)[3:] == [
        ("query", None, 0),
        ("query", None, 0),
        ("upload, finalize", "10000000", 7_000_000),
    ]


def test_a_lost_last_answer_is_asked_for() -> None:
    """The query says that the file is complete, or that only its completion is missing."""
    lost = ConnectionFailed("broke")
    played = play(send_file(session(), parcel(100), "v1"), [STARTED, lost, FINAL])
    assert played.value == "files/f"
    played = play(send_file(session(), parcel(100), "v1"), [STARTED, lost, arrived(100), FINAL])
    assert commands(played.calls)[-1] == ("upload, finalize", "100", 0)


def test_an_upload_that_the_service_forgot_begins_again() -> None:
    """A service restarted on another folder does not know the address any more."""
    gone = json_reply(problem(404, "NOT_FOUND"), 404)
    played = play(send_file(session(), parcel(100), "v1"), [STARTED, gone, gone, STARTED, FINAL])
    assert played.value == "files/f"


def test_an_upload_that_never_gets_through_ends() -> None:
    """Six broken attempts without a byte of progress are enough."""
    script: list[Reply | Exception] = [STARTED]
    for _ in range(5):
        script += [ConnectionFailed("broke"), arrived(0)]
    played = play(send_file(session(), parcel(100), "v1"), [*script, ConnectionFailed("broke")])
    assert isinstance(played.error, ConnectionFailed)


def test_progress_sets_the_count_of_failures_back() -> None:
    """A line that breaks every megabyte still carries a file of twenty."""
    script: list[Reply | Exception] = [STARTED]
    for megabyte in range(1, 20):
        script += [ConnectionFailed("broke"), arrived(megabyte * 1_000_000)]
    played = play(send_file(session(), parcel(20_000_000), "v1"), [*script, FINAL])
    assert played.value == "files/f"


@pytest.mark.parametrize("status", [400, 403])
def test_a_refused_chunk_is_an_error(status: int) -> None:
    """Sending the same again cannot help."""
    word = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED"}[status]
    refused = json_reply(problem(status, word), status)
    assert isinstance(play(send_file(session(), parcel(100), "v1"), [STARTED, refused]).error, EmbatchError)


def test_above_the_inline_count_the_file_is_arrow() -> None:
    """A service of ours gets one Arrow stream of all requests, in order, with the defaults filled in."""
    requests: list[str | Request] = [
        "a",
        Request("b", key="k", metadata={"n": [1, {"m": None}]}),
        "c",
        Request("d", title="T"),
    ]
    defaults = RequestDefaults("m", "RETRIEVAL_DOCUMENT", 16)
    played = play(
        flows.submit(session(SMALL), iter(requests), defaults, BatchOptions("Test")),
        [STARTED, FINAL, OPERATION],
    )
    start, chunk, create = played.calls
    assert start.headers["X-Goog-Upload-Header-Content-Type"] == "application/vnd.apache.arrow.stream"
    rows = pa.ipc.open_stream(chunk.body).read_all().to_pylist()
    assert [row["text"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["key"] for row in rows] == [None, "k", None, None]
    assert json.loads(rows[1]["metadata"]) == {"n": [1, {"m": None}]}
    assert {row["task_type"] for row in rows} == {"RETRIEVAL_DOCUMENT"}
    assert {row["dimensions"] for row in rows} == {16}
    assert rows[3]["title"] == "T"
    assert json.loads(create.body)["batch"]["inputConfig"] == {"fileName": "files/f"}
    assert create.headers["Idempotency-Key"] == "token-0"


def test_above_the_inline_bytes_a_file_too() -> None:
    """Three texts can be too much as well."""
    target = limited(inline_bytes=1000)
    played = play(
        flows.submit(session(target), ["x" * 990], WISH, BatchOptions("Test")), [STARTED, FINAL, OPERATION]
    )
    assert len(played.calls) == 3


def test_what_the_service_finds_too_large_goes_through_a_file() -> None:
    """A service can have lower limits than the client knows."""
    large = json_reply(problem(413, "INVALID_ARGUMENT"), 413)
    script = [large, STARTED, FINAL, OPERATION]
    played = play(flows.submit(session(), ["a"], WISH, BatchOptions("Test")), script)
    assert played.value.name == "batches/b"


def test_the_same_content_under_the_same_key_is_the_same_submit() -> None:
    """The file is named after its content: the second submit finds it there and sends the same body."""
    texts, labels = ["a", "b", "c", "d"], BatchOptions("Test", 0, "run-1")
    first = play(flows.submit(session(SMALL), texts, WISH, labels), [STARTED, FINAL, OPERATION])
    name = json.loads(first.calls[0].body)["file"]["name"]
    taken = json_reply(problem(409, "ALREADY_EXISTS"), 409)
    there = json_reply({"name": name})
    again = play(flows.submit(session(SMALL), texts, WISH, labels), [taken, there, OPERATION])
    assert [(call.method, call.path) for call in again.calls[1:2]] == [("GET", f"/v1/{name}")]
    assert json.loads(again.calls[2].body)["batch"]["inputConfig"] == {"fileName": name}
    other = play(flows.submit(session(SMALL), [*texts, "e"], WISH, labels), [STARTED, FINAL, OPERATION])
    assert json.loads(other.calls[0].body)["file"]["name"] != name


def test_an_upload_that_was_killed_does_not_block_its_content() -> None:
    """Its name is taken, its file is not there: the next name is used, and found by the submit after it."""
    texts, labels = ["a", "b", "c", "d"], BatchOptions("Test", 0, "run-1")
    taken = json_reply(problem(409, "ALREADY_EXISTS"), 409)
    missing = json_reply(problem(403, "PERMISSION_DENIED"), 403)
    script = [taken, missing, STARTED, FINAL, OPERATION]
    second = play(flows.submit(session(SMALL), texts, WISH, labels), script)
    first_name, name = (json.loads(second.calls[at].body)["file"]["name"] for at in (0, 2))
    assert name == f"{first_name}-1"
    script = [taken, missing, taken, json_reply({"name": name}), OPERATION]
    third = play(flows.submit(session(SMALL), texts, WISH, labels), script)
    assert json.loads(third.calls[-1].body)["batch"]["inputConfig"] == {"fileName": name}


def test_a_generator_is_read_once_and_not_held_as_a_list() -> None:
    """Requests are encoded while they are read."""
    alive, most = 0, 0

    class Text(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive, most
        for number in range(20_000):
            alive += 1
            most = max(most, alive)
            yield Text(f"text {number}")

    script = [STARTED, FINAL, OPERATION]
    played = play(flows.submit(session(SMALL), texts(), WISH, BatchOptions("Test")), script)
    assert pa.ipc.open_stream(played.calls[1].body).read_all().num_rows == 20_000
    assert most < 10_000


def _breaks(after: int) -> Callable[[httpx2.Request], httpx2.Response | None]:
    """Return a fault: the chunk at this offset gets lost on the way."""

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.url.host == UPLOADS and request.headers.get("x-goog-upload-offset") == str(after):
            raise httpx2.WriteError("broken pipe")
        return None

    return fault


class Once:
    """A fault that happens once, although it raises."""

    def __init__(self, fault: Callable[[httpx2.Request], httpx2.Response | None]) -> None:
        self.fault, self.used = fault, False

    def __call__(self, request: httpx2.Request) -> httpx2.Response | None:
        """Ask the fault unless it has happened."""
        if self.used:
            return None
        try:
            return self.fault(request)
        except httpx2.TransportError:
            self.used = True
            raise


def test_a_large_submit_to_gemini_across_a_broken_connection() -> None:
    """Both colours: JSONL in chunks to the address Google named, taken up after a break, tagged by index."""
    texts = [f"{number} " + "x" * 9_000 for number in range(1_200)]
    fakes: list[FakeGemini] = []

    def handler() -> FakeGemini:
        fakes.append(FakeGemini(faults=[Once(_breaks(CHUNK_BYTES))]))
        return fakes[-1]

    async def run_async(client: AsyncClient) -> str:
        return (await client.async_batch_embed_contents(texts, display_name="Large")).name

    def run(client: Client) -> str:
        return client.async_batch_embed_contents(texts, display_name="Large").name

    sync, other = both(handler, run, run_async, "gemini", api_key=KEY)
    assert sync == other == "batches/" + "0" * 36
    for fake in fakes:
        (content,) = fake.files.values()
        lines = [json.loads(line) for line in content.splitlines()]
        assert [line["request"]["content"]["parts"][0]["text"] for line in lines] == texts
        assert [line["key"] for line in lines] == [f"r-{number}" for number in range(1_200)]
        sent = [call.headers.get("x-goog-upload-command") for call in fake.seen]
        assert sent == ["start", "upload", "upload, finalize", "query", "upload, finalize", None]


def test_metadata_in_a_file_for_gemini_is_refused() -> None:
    """Google's lines carry none: it would be lost without a word."""
    fake = FakeGemini()
    with Client("gemini", api_key=KEY, http_client=wired(fake)) as client:
        unhurried(client)
        requests = ["text"] * 1000 + [Request("last", metadata={"a": 1})]
        with pytest.raises(InvalidArgument, match="no metadata") as refused:
            client.async_batch_embed_contents(requests, display_name="Large")
    assert refused.value.field == "requests[1000].metadata"
    assert not fake.seen
