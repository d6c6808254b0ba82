"""The connection's limits and deadlines, over real sockets against a small application."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import h11
import pytest
from guarded_server import BOUNDS, Running, answer, post
from hypothesis import given
from hypothesis import strategies as st

from embatch.api.limits import BodyCount, judge_head
from embatch.server.http_protocol import GuardedConnection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def running() -> Iterator[Running]:
    """A server that is ended after the test."""
    server = Running(BOUNDS)
    yield server
    server.stop()


def test_a_request_within_bounds_passes_and_keeps_its_connection(running: Running) -> None:
    """Two requests on one connection are both answered."""
    with running.connect() as stream:
        for body in (b"{}", b"x" * 10_000):
            stream.sendall(post(b"/", body))
            assert answer(stream) == (200, b"%8d" % len(body))


@pytest.mark.parametrize(
    ("path", "size", "status"), [(b"/", 10_001, 413), (b"/upload/v1/files", 10_001, 200)]
)
def test_an_announced_body_is_refused_before_it_is_read(
    running: Running, path: bytes, size: int, status: int
) -> None:
    """Content-Length decides, and files may be larger."""
    code, body = running.ask(post(path, b"x" * size))
    assert code == status
    if status == 413:
        error = json.loads(body)["error"]
        assert error["code"] == 413
        assert error["details"][0]["reason"] == "BODY_TOO_LARGE"


def test_a_refused_client_that_waits_for_continue_gets_the_refusal(running: Running) -> None:
    """No 100 Continue invites a body that is too large."""
    head = post(b"/", b"", b"Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 20000")
    assert running.ask(head)[0] == 413


def test_a_body_without_length_is_refused_once_it_passes_the_limit(running: Running) -> None:
    """The refusal comes while the client still sends, and the application learns of the client's end."""
    with running.connect() as stream:
        stream.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(11):
            stream.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert answer(stream)[0] == 413
        assert stream.recv(1) == b""
    assert running.application.gone.wait(120)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: local", id="half a head"),
        pytest.param(post(b"/", b"x" * 100)[:-50], id="half a body"),
    ],
)
def test_a_client_that_stops_sending_is_dropped(running: Running, sent: bytes) -> None:
    """Whoever began a request is told why; a silent connection is just closed."""
    began = time.monotonic()
    with running.connect() as stream:
        stream.sendall(sent)
        if sent:
            assert answer(stream)[0] == 408
        assert stream.recv(1) == b""
    assert time.monotonic() - began > 0.3


def test_a_trickling_head_does_not_extend_its_deadline(running: Running) -> None:
    """One byte now and then is no progress."""
    with running.connect() as stream:
        for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1\r\n":
            stream.settimeout(0.05)
            try:
                stream.sendall(bytes([byte]))
                if stream.recv(4):
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("the whole head was taken at 20 bytes a second")


def test_a_slow_application_is_not_the_clients_fault(running: Running) -> None:
    """A body that waits to be read has no deadline."""
    body = b"x" * 900_000  # more than the buffers of this connection hold
    with running.connect() as stream:
        sender = threading.Thread(target=stream.sendall, args=(post(b"/upload/slow", body),))
        sender.start()
        for _ in range(3):  # three deadlines pass, told by connections that say nothing
            with running.connect() as silent:
                assert silent.recv(1) == b""
        running.application.go.set()
        assert answer(stream) == (200, b"%8d" % len(body))
        sender.join()


def test_idle_between_requests_is_not_a_slow_head(running: Running) -> None:
    """A kept connection outlives the deadline for heads: pollers come back later."""
    with running.connect() as stream:
        stream.sendall(post(b"/", b"{}"))
        assert answer(stream)[0] == 200
        with running.connect() as silent:
            assert silent.recv(1) == b""  # a deadline has passed
        stream.sendall(post(b"/", b"{}"))
        assert answer(stream)[0] == 200


def head(*headers: tuple[str, str], method: str = "POST", target: str = "/") -> h11.Request:
    """Return a head as h11 parsed it."""
    named = {name.lower() for name, _ in headers}
    return h11.Request(
        method=method,
        target=target,
        headers=[*([] if "host" in named else [("Host", "localhost:8080")]), *headers],
    )


JSON = ("Content-Type", "application/json")


@pytest.mark.parametrize(
    ("request_head", "reason"),
    [
        (head(), None),
        (head(JSON, ("Content-Length", "10000")), None),
        (head(("Content-Type", "application/json; charset=UTF-8"), ("Content-Length", "3")), None),
        (head(("Content-Length", "0")), None),
        (head(("Content-Length", "3")), "CONTENT_TYPE"),
        (head(("Content-Type", "text/plain"), ("Content-Length", "3")), "CONTENT_TYPE"),
        (
            head(("Content-Type", "application/json; charset=latin-1"), ("Content-Length", "3")),
            "CONTENT_TYPE",
        ),
        (head(("Content-Type", "text/plain"), ("Content-Length", "3"), target="/upload/v1/files"), None),
        (head(JSON, ("Content-Encoding", "gzip"), ("Content-Length", "3")), "CONTENT_ENCODING"),
        (head(JSON, ("Content-Length", "3"), ("Transfer-Encoding", "chunked")), "BAD_FRAMING"),
        (head(JSON, ("Content-Length", "10001")), "BODY_TOO_LARGE"),
        (head(JSON, ("Content-Length", "10001"), target="/upload/v1/files"), None),
        (head(JSON, ("Content-Length", "1000001"), target="/upload/v1/files"), "BODY_TOO_LARGE"),
        (head(("Host", "evil.example")), "BAD_HOST"),
        (head(("Host", "localhost/x")), "BAD_HOST"),
        (head(("Host", "user@localhost")), "BAD_HOST"),
        (head(("Host", "LOCALHOST:1")), None),
        (head(("Host", "")), "BAD_HOST"),
        (head(("Origin", "http://localhost:8080")), None),
        (head(("Origin", "https://LOCALHOST:8080")), None),
        (head(("Origin", "http://localhost")), "FOREIGN_ORIGIN"),
        (head(("Origin", "http://localhost:8080.evil.example")), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example")), "FOREIGN_ORIGIN"),
        (head(("Origin", "null")), "FOREIGN_ORIGIN"),
        (head(("Origin", "")), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example"), ("Origin", "http://localhost:8080")), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example"), target="/upload/v1/files"), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example"), method="DELETE"), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example"), method="PATCH"), "FOREIGN_ORIGIN"),
        (head(("Origin", "https://evil.example"), method="GET"), None),
        (head(("Upgrade", "websocket"), ("Connection", "Upgrade"), method="GET"), "NO_UPGRADE"),
        (head(*[(f"X-{n}", "1") for n in range(20)]), "HEADERS_TOO_LARGE"),
        (head(("X-Long", "x" * 4096)), "HEADERS_TOO_LARGE"),
    ],
)
def test_judging_a_head(request_head: h11.Request, reason: str | None) -> None:
    """Every rule, from both sides of its border."""
    refusal = judge_head(request_head, BOUNDS)
    assert (refusal.reason if refusal else None) == reason


def test_any_host_is_fine_where_no_browser_can_come() -> None:
    """Behind a socket or a public address there is no list of names."""
    open_bounds = replace(BOUNDS, hosts=None)
    assert judge_head(head(("Host", "embed.example.org")), open_bounds) is None
    assert judge_head(head(("Host", "embed example")), open_bounds) is not None


def test_a_page_of_another_origin_changes_nothing_at_any_address() -> None:
    """A public address has no list of names, but its own is in each request."""
    open_bounds, host = replace(BOUNDS, hosts=None), ("Host", "embed.example.org")
    assert judge_head(head(host, ("Origin", "https://embed.example.org")), open_bounds) is None
    refusal = judge_head(head(host, ("Origin", "https://other.example.org")), open_bounds)
    assert refusal is not None
    assert refusal.status == 403
    assert b"PERMISSION_DENIED" in refusal.encode()


@given(st.lists(st.tuples(st.binary(max_size=64), st.booleans()), max_size=200), st.integers(0, 5000))
def test_counting_a_body(pieces: list[tuple[bytes, bool]], limit: int) -> None:
    """A body is refused exactly when it has passed its limit, however it is cut."""
    count, size = BodyCount(limit), 0
    for data, start in pieces:
        size += len(data)
        refusal = count.add(h11.Data(data=data, chunk_start=start))
        assert (refusal is not None) == (size > limit)


def test_a_body_of_tiny_chunks_is_refused() -> None:
    """A byte a chunk costs a thousand times its worth; a line a chunk is fine."""
    tiny, lines = BodyCount(1 << 30), BodyCount(1 << 30)
    refusals = [tiny.add(h11.Data(data=b"x", chunk_start=True, chunk_end=True)) for _ in range(10_000)]
    assert refusals[4095] is None
    assert refusals[4096] is not None
    line = h11.Data(data=b'{"text":"a b c"}\n', chunk_start=True, chunk_end=True)
    assert not any(lines.add(line) for _ in range(10_000))


@given(st.binary(max_size=600), st.integers(1, 64))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes, step: int) -> None:
    """Whatever comes, in whatever pieces, the connection either waits or refuses with a reason."""
    connection = GuardedConnection(BOUNDS)
    for at in range(0, len(data), step):
        connection.receive_data(data[at : at + step])
        try:
            while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
                pass
        except h11.RemoteProtocolError:
            assert connection.refusal is not None
            return
