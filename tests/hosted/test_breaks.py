"""Connections break where a fault says, on every route, and uploads keep what came of them."""

from __future__ import annotations

import threading
from dataclasses import replace

import httpx2
import pytest
from hosted.behaviour import Behaviour, Fault, wild
from hosted.gemini import GeminiStandIn
from hosted.plain import MODEL, Plain, good, inline, jsonl, refused, request
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.hosted

CREATE = f"models/{MODEL}:asyncBatchEmbedContent"
BROKEN = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)


@pytest.mark.parametrize(
    ("cut", "creates"), [("unread", 0), ("request", 0), ("handled", 1), ("head", 1), ("body", 1), ("end", 1)]
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_create_that_breaks(cut: str, creates: int, *, reset: bool) -> None:
    """What was created before the break is there, whatever of the reply came; the next call is whole."""
    fault = Fault("create", calls=(1,), cut=cut, at=20, reset=reset)  # type: ignore[arg-type]
    with GeminiStandIn(Behaviour(faults=(fault,))) as google:
        http = Plain(google)
        try:
            reply = http.ask("POST", CREATE, inline("one"))
        except BROKEN:
            assert cut != "end" or reset
        else:
            assert cut == "end"
            assert good(reply)["name"] == google.jobs[0].name
        assert google.creates == creates
        assert google.faults == {"create": 1}
        http.create("two")
        assert (google.creates, google.calls["create"]) == (creates + 1, 2)


@pytest.mark.parametrize(
    ("route", "method", "path", "body"),
    [
        ("status", "GET", "{batch}", None),
        ("list", "GET", "batches", None),
        ("update", "PATCH", "{batch}:updateEmbedContentBatch?updateMask=displayName", {"displayName": "x"}),
        ("cancel", "POST", "{batch}:cancel", None),
        ("delete", "DELETE", "{batch}", None),
        ("file", "GET", "files/in", None),
        ("files", "GET", "files", None),
        ("file.delete", "DELETE", "files/in", None),
        ("download", "GET", "{results}:download?alt=media", None),
        ("embed", "POST", f"models/{MODEL}:embedContent", request("x")),
        ("embed_many", "POST", f"models/{MODEL}:batchEmbedContents", {"requests": []}),
        ("count_tokens", "POST", f"models/{MODEL}:countTokens", {"contents": []}),
        ("model", "GET", f"models/{MODEL}", None),
        ("models", "GET", "models", None),
    ],
)
def test_every_route_breaks(route: str, method: str, path: str, body: object) -> None:
    """A fault that names a route hits it and no other: refused, cut before the reply, cut in it."""
    with GeminiStandIn() as google:
        http = Plain(google)
        name = http.create_from(jsonl(["one"]), "files/in")
        file = http.ended(name)["response"]["responsesFile"]
        before = google.calls[route]
        google.behave(
            faults=(
                Fault(route, calls=(before + 1,), status=429, details="retry", retry_after="7"),
                Fault(route, calls=(before + 2,), cut="handled"),
                Fault(route, calls=(before + 3,), cut="body", at=1),
            )
        )
        where = path.format(batch=name, results=file)
        reply = http.ask(method, where, body)
        refused(reply, 429, "RESOURCE_EXHAUSTED")
        assert reply.headers["retry-after"] == "7"
        for _ in range(2):
            with pytest.raises(BROKEN):
                http.ask(method, where, body)
        assert google.faults == {route: 3}


def test_a_gateway_that_loses_patience() -> None:
    """A 504 with `handled` has created what it refuses."""
    fault = Fault("create", calls=(1,), status=504, handled=True, plain="<html>Gateway Timeout</html>")
    with GeminiStandIn(Behaviour(faults=(fault,))) as google:
        reply = Plain(google).ask("POST", CREATE, inline("one"))
        assert (reply.status_code, reply.headers["content-type"]) == (504, "text/html")
        assert google.creates == 1


def test_silence_lasts_until_the_client_leaves() -> None:
    """A silent route answers nothing; who gives up goes on with the next call."""
    with GeminiStandIn(Behaviour(faults=(Fault("create", calls=(1,), cut="silent"),))) as google:
        headers = {"x-goog-api-key": google.key}
        with httpx2.Client(timeout=0.2, trust_env=False) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{google.url}/v1beta/{CREATE}", json=inline("one"), headers=headers)
        assert google.creates == 0
        Plain(google).create("one")


def test_silence_ends_with_the_stand_in() -> None:
    """Whoever still waits for an answer at the end is let go."""
    heard = threading.Event()

    def wait(google: GeminiStandIn) -> None:
        with pytest.raises(BROKEN):
            Plain(google).get("batches")
        heard.set()

    with GeminiStandIn(Behaviour(faults=(Fault("list", cut="silent"),))) as google:
        waiting = threading.Thread(target=wait, args=(google,))
        waiting.start()
        google.await_calls("list", 1)
    waiting.join()
    assert heard.is_set()


def test_chance_follows_the_seed() -> None:
    """A share of the calls fails, the same ones for the same seed."""
    fault = Fault("list", chance=0.3)
    hits = [[fault.hits("list", call, seed) for call in range(1000)] for seed in (1, 1, 2)]
    assert hits[0] == hits[1] != hits[2]
    assert 250 < sum(hits[0]) < 350
    assert not fault.hits("status", 1, 1)
    assert Fault("upload.*").hits("upload.chunk", 1, 0)


def test_wild_mixtures() -> None:
    """A seed is a mixture, none damages a result, and together they have every switch on and off."""
    found = [wild(seed) for seed in range(60)]
    assert found == [wild(seed) for seed in range(60)]
    for name in ("reorder", "results_in", "zeros", "status_lines", "late_files", "list_size", "granularity"):
        assert len({getattr(one, name) for one in found}) > 1, name
    assert {fault.cut for one in found for fault in one.faults} > {None, "handled", "body", "request"}
    assert all(not (one.drop or one.swap_pairs or one.double or one.foreign) for one in found)
    with GeminiStandIn(replace(wild(5), faults=())) as google:
        http = Plain(google)
        ended = http.ended(http.create("one", "two"))
        assert ended["metadata"]["batchStats"]["successfulRequestCount"] == "2"


@settings(max_examples=15)
@given(size=st.integers(1, 3000), share=st.floats(0, 1), granularity=st.sampled_from([1, 100, 1024]))
def test_uploads_break_at_any_byte(size: int, share: float, granularity: int) -> None:
    """What came of a chunk is kept in whole granules, said when asked for, and gone on from."""
    content, at = jsonl(["x" * size]), int(share * size)
    behaviour = Behaviour(
        granularity=granularity, faults=(Fault("upload.chunk", calls=(1,), cut="request", at=at),)
    )
    with GeminiStandIn(behaviour) as google:
        http = Plain(google)
        url = http.start(len(content), "files/in").headers["x-goog-upload-url"]
        with pytest.raises(BROKEN):
            http.chunk(url, content, 0)
        kept = http.received(url)
        assert kept == at // granularity * granularity
        assert google.files.uploads == 0
        refused(http.ask("GET", "files/in"), 403, "PERMISSION_DENIED")
        wrong = http.chunk(url, content, kept + 1)
        refused(wrong, 400, "INVALID_ARGUMENT")
        assert wrong.headers["x-goog-upload-status"] == "active"
        file = good(http.chunk(url, content[kept:], kept))["file"]
        assert (file["sizeBytes"], google.files.uploads) == (str(len(content)), 1)
        assert good(http.ask("POST", CREATE, {"batch": {"inputConfig": {"fileName": "files/in"}}}))
        assert google.jobs[0].count == 1


def test_a_lost_reply_to_the_last_chunk() -> None:
    """The upload is final, the file is there under its name, and it cannot be sent again."""
    with GeminiStandIn(Behaviour(faults=(Fault("upload.chunk", calls=(1,), cut="handled"),))) as google:
        http = Plain(google)
        url = http.start(3, "files/in").headers["x-goog-upload-url"]
        with pytest.raises(BROKEN):
            http.chunk(url, b"abc", 0)
        asked = http.chunk(url, b"", 0, "query")
        assert asked.headers["x-goog-upload-status"] == "final"
        assert asked.headers["x-goog-upload-size-received"] == "3"
        refused(http.chunk(url, b"abc", 0), 400, "INVALID_ARGUMENT")
        assert http.get("files/in")["sizeBytes"] == "3"
        refused(http.start(3, "files/in"), 409, "ALREADY_EXISTS")
        assert (google.files.uploads, google.files.uploaded_bytes) == (1, 3)


def test_uploads_that_do_not_fit() -> None:
    """Too many bytes, too few, a piece that is no multiple, another session and a second half are refused."""
    with GeminiStandIn(Behaviour(granularity=4)) as google:
        http = Plain(google)
        url = http.start(6).headers["x-goog-upload-url"]
        refused(http.chunk(url, b"abc", 0, "upload"), 400, "INVALID_ARGUMENT")
        refused(http.chunk(url, b"abcdefg", 0), 400, "INVALID_ARGUMENT")
        assert http.received(url) == 0
        assert http.chunk(url, b"abcd", 0, "upload").headers["x-goog-upload-status"] == "active"
        refused(http.chunk(url.replace("upload_id=", "upload_id=x"), b"ef", 4), 404, "NOT_FOUND")
        refused(http.chunk(url, b"", 4, "finalize"), 400, "INVALID_ARGUMENT")
        assert good(http.chunk(url, b"ef", 4))["file"]["sizeBytes"] == "6"


def test_a_file_that_is_processed() -> None:
    """A file that is PROCESSING makes no batch until it was looked at often enough."""
    with GeminiStandIn(Behaviour(files_processing=1)) as google:
        http = Plain(google)
        assert http.upload(jsonl(["one"]), "files/in")["state"] == "PROCESSING"
        source = {"batch": {"inputConfig": {"fileName": "files/in"}}}
        refused(http.ask("POST", CREATE, source), 400, "FAILED_PRECONDITION")
        assert http.get("files/in")["state"] == "ACTIVE"
        good(http.ask("POST", CREATE, source))
