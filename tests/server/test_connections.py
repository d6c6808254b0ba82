"""What all connections of a service may take together, and how long one body or one answer may."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from guarded_server import BOUNDS, LARGE_PIECES, Running, answer, post, whole_answer
from hypothesis import given
from hypothesis import strategies as st

from embatch.api.limits import FREE_BYTES, HeldBodies, HeldBody

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

MEBIBYTE = 1 << 20
ROOMY = replace(BOUNDS, body_bytes=4 * MEBIBYTE, file_bytes=64 * MEBIBYTE, receive_seconds=30.0)
HELD = 6 * MEBIBYTE
PATH = b"/v1/models/m:batchEmbedContents"
"""What takes texts may have large bodies."""
HELD_PATH = b"/held/m:batchEmbedContents"
SMALL = post(b"/", b"{}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed after the test."""
    with ExitStack() as opened:
        yield opened


def server(stack: ExitStack, **bounds: Any) -> Running:
    """Return a server that ends with the test."""
    running = Running(replace(ROOMY, **bounds))
    stack.callback(running.stop)
    return running


def refused(stream: socket.socket) -> None:
    """Check that one is told to come back later, in the envelope."""
    status, headers, body = whole_answer(stream)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["status"]) == (503, 503, "UNAVAILABLE")
    assert [detail.get("reason") for detail in error["details"]] == ["OVERLOADED", None]
    assert error["details"][1]["retryDelay"] == "5.000s"
    assert headers[b"retry-after"] == b"5"


def chunked(path: bytes) -> bytes:
    """Return the head of a body without length."""
    return post(path, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize("framing", ["announced", "chunked"])
def test_bodies_beyond_the_room_for_all_are_refused_and_small_ones_never(
    stack: ExitStack, framing: str
) -> None:
    """One that is announced before it is sent, another once it has passed; room is given back at the end."""
    running = server(stack, held_bytes=HELD)
    body = bytes(4 * MEBIBYTE)
    first = stack.enter_context(running.connect())
    first.sendall(post(HELD_PATH, body))
    assert running.application.read.acquire(timeout=30)
    second = stack.enter_context(running.connect())
    if framing == "announced":
        second.sendall(post(PATH, b"").replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)))
    else:
        second.sendall(chunked(PATH))
        for _ in range(3):
            second.sendall(b"%x\r\n%b\r\n" % (MEBIBYTE, bytes(MEBIBYTE)))
    refused(second)
    assert running.ask(SMALL) == (200, b"%8d" % 2)
    assert running.ask(post(b"/", bytes(FREE_BYTES)))[0] == 200
    running.application.go.set()
    assert answer(first)[0] == 200
    assert running.ask(post(PATH, body))[0] == 200


def test_unfinished_bodies_hold_what_was_set_and_no_more(stack: ExitStack) -> None:
    """Of forty senders those with room go on; when they have gone without a word, there is room again."""
    running = server(stack, held_bytes=HELD)
    head = post(PATH, b"").replace(b"Content-Length: 0", b"Content-Length: %d" % (4 * MEBIBYTE))
    told = 0
    with ExitStack() as unfinished:
        for _ in range(40):
            stream = unfinished.enter_context(running.connect())
            stream.sendall(head)
            stream.settimeout(0.2)
            try:
                told += stream.recv(12) == b"HTTP/1.1 503"
            except TimeoutError:
                stream.settimeout(10)
                stream.sendall(bytes(MEBIBYTE // 2))
                assert running.ask(SMALL)[0] == 200  # what was sent before it has been counted
    assert 30 <= told <= 36
    while running.ask(post(PATH, bytes(4 * MEBIBYTE)))[0] != 200:
        pass


def test_files_hold_their_pieces_alone(stack: ExitStack) -> None:
    """A file larger than all the room there is for bodies passes, for its bytes go to disk."""
    running = server(stack, held_bytes=HELD)
    with running.connect() as stream:
        stream.sendall(post(HELD_PATH, bytes(MEBIBYTE)))
        assert running.application.read.acquire(timeout=30)
        assert running.ask(post(b"/upload/v1/files", bytes(16 * MEBIBYTE)))[0] == 200
        running.application.go.set()
        assert answer(stream)[0] == 200


def test_what_comes_after_an_early_answer_holds_no_room(stack: ExitStack) -> None:
    """It is thrown away, so it takes nothing: neither now nor once its connection has gone or goes on."""
    running = server(stack, held_bytes=HELD)
    for _ in range(8):
        stream = stack.enter_context(running.connect())
        stream.sendall(post(b"/upload/early", b"").replace(b"Content-Length: 0", b"Content-Length: 2097152"))
        assert answer(stream)[0] == 404
        stream.sendall(bytes(2 * MEBIBYTE))
        stream.sendall(SMALL)
        assert answer(stream)[0] == 200
        assert running.application.read.acquire(timeout=30)
    with running.connect() as first:
        first.sendall(post(HELD_PATH, bytes(2 * MEBIBYTE)))
        assert running.application.read.acquire(timeout=30)
        assert running.ask(post(PATH, bytes(4 * MEBIBYTE)))[0] == 200
        running.application.go.set()
        assert answer(first)[0] == 200


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 20), st.booleans())), st.integers(0, 1 << 22)
)
def test_the_memory_of_bodies_is_counted_exactly(steps: list[tuple[int, int, bool]], most: int) -> None:
    """Whatever comes and goes: what is held is the sum, and only a body that is alone is ever beyond it."""
    among = HeldBodies(most)
    bodies = [HeldBody(among, 1 << 21) for _ in range(4)]
    for which, count, gone in steps:
        if gone or not bodies[which].take(count):
            bodies[which].let_go()
        counted = [max(0, min(body.size, 1 << 21) - FREE_BYTES) for body in bodies]
        assert among.held == sum(counted)
        assert among.held <= most or sum(count > 0 for count in counted) == 1


def test_a_body_that_trickles_at_the_lowest_rate_has_a_deadline(stack: ExitStack) -> None:
    """At each look enough has come since the last; all the same a whole body has its time."""
    running = server(stack, receive_seconds=0.2, body_seconds=1.0)
    with running.connect() as stream:
        stream.sendall(post(PATH, b"").replace(b"Content-Length: 0", b"Content-Length: 1000000"))
        stream.settimeout(0.02)
        began = time.monotonic()
        while time.monotonic() - began < 20:
            try:
                stream.sendall(bytes(1000))
                if stream.recv(12) == b"HTTP/1.1 408":
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("it trickled for 20 seconds")
    assert time.monotonic() - began > 0.9


def test_a_large_body_has_its_time_for_every_piece(stack: ExitStack) -> None:
    """What a small one may take, a file may take for each part of it that is as large as one."""
    bounds = replace(ROOMY, body_seconds=300.0, body_bytes=20 * MEBIBYTE)
    assert bounds.overdue(300.0, 10 * MEBIBYTE)
    assert not bounds.overdue(300.0, 20 * MEBIBYTE)
    assert not bounds.overdue(299.0, 0)
    assert bounds.overdue(30_000.0, 1980 * MEBIBYTE)
    assert not bounds.overdue(30_000.0, 2000 * MEBIBYTE)


def test_a_reader_that_takes_nothing_is_dropped(stack: ExitStack) -> None:
    """Its answer waits in memory; another one that reads gets all of it."""
    running = server(stack, receive_seconds=1.0)
    with running.connect() as stream:
        stream.sendall(post(b"/large", b"{}"))
        assert running.application.gone.wait(30)  # the application was let go: nobody takes its answer
        status, body = 0, b""
        with pytest.raises(ConnectionError):
            status, body = answer(stream)
        assert not body, status
    assert len(running.ask(post(b"/large", b"{}"))[1]) == LARGE_PIECES * MEBIBYTE


def test_the_longest_idle_connection_ends_for_a_new_one(stack: ExitStack) -> None:
    """Clients connect again by themselves; whoever is in the middle of something stays."""
    running = server(stack, connections=3)
    busy, first, second = (stack.enter_context(running.connect()) for _ in range(3))
    busy.sendall(post(b"/held", b"{}"))
    assert running.application.read.acquire(timeout=30)
    for stream in (first, second):
        stream.sendall(SMALL)
        assert answer(stream)[0] == 200
    assert running.ask(SMALL)[0] == 200
    assert first.recv(1) == b""
    second.sendall(SMALL)
    assert answer(second)[0] == 200
    running.application.go.set()
    assert answer(busy)[0] == 200


def test_one_connection_too_many_is_told_so(stack: ExitStack) -> None:
    """Where all of them are busy; and it is welcome once one has gone."""
    running = server(stack, connections=2)
    busy = [stack.enter_context(running.connect()) for _ in range(2)]
    for stream in busy:
        stream.sendall(post(b"/held", b"{}"))
        assert running.application.read.acquire(timeout=30)
    refused(stack.enter_context(running.connect()))
    running.application.go.set()
    assert [answer(stream)[0] for stream in busy] == [200, 200]
    assert running.ask(SMALL)[0] == 200


def test_what_the_application_leaves_unanswered_has_the_envelope(stack: ExitStack) -> None:
    """Never the server's own words; and half an answer is no answer."""
    running = server(stack)
    status, headers, body = 0, dict[bytes, bytes](), b""
    with running.connect() as stream:
        stream.sendall(post(b"/broken", b"{}"))
        status, headers, body = whole_answer(stream)
    assert (status, headers[b"content-type"]) == (500, b"application/json")
    assert json.loads(body)["error"]["status"] == "INTERNAL"
    with running.connect() as stream:
        stream.sendall(post(b"/torn", b"{}"))
        received = b"".join(iter(lambda: stream.recv(1 << 20), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
