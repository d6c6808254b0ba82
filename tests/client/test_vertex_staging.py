"""The bucket of a batch, step by step: what is sent when, by hand and without a clock."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import TYPE_CHECKING

import pytest
from client_scripts import Clock, json_reply, play, session

from embatch import AlreadyExists, ConnectionFailed, DataLoss, PermissionDenied
from embatch.client.calls import Reply
from embatch.client.providers.provider import Capabilities, Target
from embatch.client.providers.vertex import Vertex
from embatch.client.providers.vertex_staging import PART_BYTES, Bucket
from embatch.wire.vertex.routes import Place
from embatch.wire.vertex.storage import CHUNK_BYTES, GRANULE, StoredObject

if TYPE_CHECKING:
    from client_scripts import Played

PLACE = Place("p-1", "us-central1")
CAN = Capabilities(inline_bytes=0, inline_requests=0, interactive_requests=1)
TARGET = Target("https://vertex", Vertex("vertex", CAN, place=PLACE, staging=None))
BUCKET = Bucket("https://storage.googleapis.com", "b", signed=True)
SESSION = "https://storage.googleapis.com/upload?upload_id=1"
BEGUN = Reply(200, {"location": SESSION})
LOST = ConnectionFailed("reset")
NONE = json_reply({"error": {"code": 404, "message": "none"}}, 404)
CONTENT = b"0123456789abcdef" * ((CHUNK_BYTES + 4 * GRANULE) // 16)


def kept(count: int) -> Reply:
    """Return the answer of an upload that has so many bytes."""
    return Reply(308, {} if not count else {"range": f"bytes=0-{count - 1}"})


def there(content: bytes = CONTENT) -> Reply:
    """Return what is said of an object."""
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    return json_reply({"name": "n", "size": str(len(content)), "md5Hash": digest})


def put(*answers: Reply | Exception) -> Played:
    """Play an upload."""
    clock = Clock()
    return play(BUCKET.put(session(TARGET, clock=clock), "n", io.BytesIO(CONTENT)), answers, clock)


def ranges(played: Played) -> list[str]:
    """Return which bytes each step sent."""
    size = len(CONTENT)
    return [
        call.headers["Content-Range"].removeprefix("bytes ").removesuffix(f"/{size}")
        for call in played.calls
        if call.method == "PUT"
    ]


def test_a_file_goes_up_in_chunks_to_an_address_that_is_shown_nothing() -> None:
    """It is announced with its digest, which the service holds it against, and must not be there yet."""
    played = put(NONE, BEGUN, kept(CHUNK_BYTES), there())
    look, begin, *chunks = played.calls
    assert played.error is None
    assert (look.method, look.signed, begin.method, begin.signed) == ("GET", True, "POST", True)
    assert begin.query["ifGenerationMatch"] == "0"
    assert hashlib.md5(CONTENT, usedforsecurity=False).digest() == base64.b64decode(
        begin.body.partition(b'"md5Hash":"')[2].partition(b'"')[0]
    )
    assert [(call.path, call.signed) for call in chunks] == [(SESSION, False)] * 2
    assert b"".join(call.body for call in chunks) == CONTENT
    assert ranges(played) == [f"0-{CHUNK_BYTES - 1}", f"{CHUNK_BYTES}-{len(CONTENT) - 1}"]


def test_what_is_there_is_not_sent_again() -> None:
    """By size and digest; where it is not the same nothing is written over it."""
    assert len(put(there()).calls) == 1
    for other in (there(CONTENT[::-1]), there(b"x")):
        assert isinstance(put(other).error, AlreadyExists)


def test_a_chunk_that_was_kept_in_part_goes_on_behind_it() -> None:
    """A service may take less than it was sent; what is behind a whole granule is sent again."""
    played = put(NONE, BEGUN, kept(2 * GRANULE + 5), kept(CHUNK_BYTES), there())
    assert ranges(played)[1].startswith(f"{2 * GRANULE}-")
    assert b"".join(call.body for call in played.calls[3:4])[:16] == CONTENT[:16]


def test_after_a_break_it_asks_how_much_arrived() -> None:
    """Also when all of it had: the answer was lost, and nothing is sent again."""
    played = put(NONE, BEGUN, LOST, kept(GRANULE), LOST, there())
    size = len(CONTENT)
    assert ranges(played) == [f"0-{CHUNK_BYTES - 1}", "*", f"{GRANULE}-{GRANULE + CHUNK_BYTES - 1}", "*"]
    assert size > CHUNK_BYTES + GRANULE
    assert played.error is None


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_is_not_known_any_more_begins_anew(status: int) -> None:
    """At another address, from the start."""
    gone = json_reply({"error": {"code": status, "message": "gone"}}, status)
    played = put(
        NONE,
        BEGUN,
        kept(CHUNK_BYTES),
        gone,
        Reply(200, {"location": SESSION + "2"}),
        kept(CHUNK_BYTES),
        there(),
    )
    assert [call.path for call in played.calls if call.method == "PUT"] == [SESSION] * 2 + [SESSION + "2"] * 2
    assert ranges(played)[2].startswith("0-")


def test_one_that_goes_nowhere_is_given_up() -> None:
    """Six times in a row with nothing kept; whatever is kept begins the count anew."""
    assert isinstance(put(NONE, BEGUN, *[kept(0)] * 6).error, ConnectionFailed)
    nothing: list[Reply | Exception] = [LOST, kept(0)]
    assert isinstance(put(NONE, BEGUN, *nothing * 5, LOST).error, ConnectionFailed)
    some: list[Reply | Exception] = [LOST, kept(GRANULE)]
    more: list[Reply | Exception] = [LOST, kept(2 * GRANULE)]
    assert isinstance(put(NONE, BEGUN, *some, *more * 6, LOST).error, ConnectionFailed)


def test_a_refusal_ends_it() -> None:
    """Nothing that could pass is asked again."""
    denied = json_reply({"error": {"code": 403, "message": "no rights"}}, 403)
    for answers in ((NONE, denied), (NONE, BEGUN, denied)):
        played = put(*answers)
        assert isinstance(played.error, PermissionDenied)
        assert "no rights" in str(played.error)


EXISTS = json_reply({"error": {"code": 412, "message": "there"}}, 412)


@pytest.mark.parametrize("before", [(NONE,), (NONE, BEGUN, kept(CHUNK_BYTES))])
def test_another_one_that_was_faster_is_looked_at(before: tuple[Reply, ...]) -> None:
    """An earlier attempt whose answer was lost, as a rule: the same is taken for ours."""
    assert put(*before, EXISTS, there()).error is None
    assert isinstance(put(*before, EXISTS, there(b"x")).error, AlreadyExists)
    assert isinstance(put(*before, EXISTS, NONE).error, ConnectionFailed)


def test_an_object_is_read_in_parts_and_a_part_that_broke_again() -> None:
    """In one generation, so that it does not change on the way; each part once."""
    stored = StoredObject("a/b", PART_BYTES + 10, None, "7")
    pieces: list[int] = []
    first, second = Reply(206, {}, bytes(PART_BYTES)), Reply(206, {}, bytes(10))
    flow = BUCKET.read(session(), stored, lambda piece: pieces.append(len(piece)))
    played = play(flow, [LOST, first, LOST, second])
    assert pieces == [PART_BYTES, 10]
    assert [call.headers["Range"] for call in played.calls] == [
        *[f"bytes=0-{PART_BYTES - 1}"] * 2,
        *[f"bytes={PART_BYTES}-{PART_BYTES + 9}"] * 2,
    ]
    assert {call.query["generation"] for call in played.calls} == {"7"}


def test_who_knows_no_parts_gives_the_whole_and_one_that_ends_early_is_no_answer() -> None:
    """A proxy may leave the range out; a file that is cut would lose rows in silence."""
    stored, pieces = StoredObject("n", 10, None, None), list[bytes]()
    assert play(BUCKET.read(session(), stored, pieces.append), [Reply(200, {}, b"0123456789")]).error is None
    assert pieces == [b"0123456789"]
    assert isinstance(
        play(BUCKET.read(session(), stored, pieces.append), [Reply(206, {}, b"01")]).error, DataLoss
    )


def test_a_list_is_read_to_its_last_page_and_what_is_gone_is_no_error() -> None:
    """Deleting is repeated safely."""
    pages = [
        json_reply({"items": [{"name": "p/1"}], "nextPageToken": "t"}),
        json_reply({"items": [{"name": "p/2"}]}),
    ]
    played = play(BUCKET.remove(session(), "p/"), [*pages, Reply(204), NONE])
    assert played.error is None
    assert [(call.method, call.query.get("pageToken")) for call in played.calls] == [
        ("GET", None),
        ("GET", "t"),
        ("DELETE", None),
        ("DELETE", None),
    ]
