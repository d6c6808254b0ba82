"""The way to an endpoint: answers without an end or of another model, names, certificates, proxies, keys."""

from __future__ import annotations

import gzip
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from growth import MOST, growth
from standin import DIMENSIONS, Answer, Call, Clock, StandIn, always, body, compact, reply, start, vector

from embatch.engine import answers
from embatch.engine.answers import Expected
from embatch.engine.loading import load
from embatch.engine.protocol import EndpointTrouble, EngineSpec, ModelChanged, RowsRefused, Shape
from embatch.engine.remote import PROBE, RemoteEngine
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ("endpoint_fixtures",)

TEXTS = ("one text", "another text", "a third")
SHAPE = Shape(len(TEXTS), 16)


def but_the_probe(answer: Answer) -> object:
    """Return what answers a plain text rightly, and everything else so."""
    return lambda call: Answer(200, reply(call)) if call.texts == [PROBE] else answer


@pytest.mark.parametrize("status", [*range(201, 208), 300, 301, 302, 303, 304, 307, 308, 401, 402, 403, 404])
@pytest.mark.parametrize("later", [False, True])
def test_statuses_of_no_text(
    endpoint: StandIn, remote: RemoteEngine, clock: Clock, status: int, *, later: bool
) -> None:
    """They are the endpoint's trouble as a whole, and named; before the first vector and after."""
    if later:
        remote.forward(TEXTS, SHAPE)
    endpoint.usual = but_the_probe(Answer(status))  # type: ignore[assignment]
    with pytest.raises(EndpointTrouble, match=str(status)):
        remote.forward(TEXTS, SHAPE)
    assert clock.waits == []


@pytest.mark.parametrize("status", [405, 406, 407, 410, 411, 414, 415, 418, 421, 423, 424, 426, 431, 451])
@pytest.mark.parametrize("alone", [False, True])
def test_further_statuses_of_no_text(
    endpoint: StandIn, remote: RemoteEngine, status: int, *, alone: bool
) -> None:
    """So are these, to one text as to many."""
    endpoint.usual = but_the_probe(Answer(status))  # type: ignore[assignment]
    texts = TEXTS[: 1 if alone else 3]
    with pytest.raises(EndpointTrouble, match=str(status)):
        remote.forward(texts, SHAPE)


@pytest.mark.parametrize("status", [500, 424])
def test_an_endpoint_that_breaks_is_believed_against_real_texts_alone(
    endpoint: StandIn, remote: RemoteEngine, status: int
) -> None:
    """Well for a plain text and broken for every other is trouble; broken for one of several is the one's."""
    endpoint.usual = but_the_probe(Answer(status))  # type: ignore[assignment]
    for texts in (TEXTS, TEXTS[:1]):
        with pytest.raises(EndpointTrouble):
            remote.forward(texts, SHAPE)
    endpoint.usual = lambda call: Answer(status) if TEXTS[1] in call.texts else Answer(200, reply(call))
    for texts in (TEXTS, TEXTS[1:2]):
        with pytest.raises(RowsRefused):
            remote.forward(texts, SHAPE)
    np.testing.assert_array_equal(remote.forward(TEXTS[2:], SHAPE), [vector(TEXTS[2])])
    endpoint.usual = but_the_probe(Answer(status))  # type: ignore[assignment]
    with pytest.raises(EndpointTrouble):
        remote.forward(TEXTS[1:2], SHAPE)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_endpoint_that_begins_to_refuse_everything_blames_no_text(
    endpoint: StandIn, remote: RemoteEngine, status: int
) -> None:
    """What it took before is asked again: a plain text alone would not show it."""
    remote.forward(TEXTS, SHAPE)
    endpoint.usual = but_the_probe(Answer(status))  # type: ignore[assignment]
    with pytest.raises(EndpointTrouble, match=str(status)):
        remote.forward(TEXTS[:2], SHAPE)


def test_other_dimensions_are_another_model(endpoint: StandIn, remote: RemoteEngine, clock: Clock) -> None:
    """Fewer, more, and so many more that the answer is too large to be read: each says to load anew."""
    for size in (DIMENSIONS - 1, DIMENSIONS + 1, 4096, 400_000):
        numbers = compact(np.ones(size))
        data = [{"index": at, "embedding": numbers} for at in range(len(TEXTS))]
        endpoint.script.append(Answer(200, body(data)))
        with pytest.raises(ModelChanged, match=r"dimensions|too large"):
            remote.forward(TEXTS, SHAPE)
    assert clock.waits == []


def test_another_name_is_another_model(endpoint: StandIn, remote: RemoteEngine, clock: Clock) -> None:
    """Vectors of two models have one size often enough; an endpoint that says no name has said nothing."""

    def named(name: object) -> Answer:
        data = [{"index": at, "embedding": compact(vector(text))} for at, text in enumerate(TEXTS)]
        return Answer(200, body(data, model=name))

    for nothing in (None, "", 5, "x" * 10_000):
        endpoint.script.append(named(nothing))
        remote.forward(TEXTS, SHAPE)
    endpoint.script.append(named("stand-in-v2"))
    with pytest.raises(ModelChanged, match="name of another model"):
        remote.forward(TEXTS, SHAPE)
    endpoint.usual = lambda call: Answer(200, reply(call).replace(b'"stand-in"', b'"stand-in-v2"'))
    assert start(endpoint, clock).describe().identity != remote.describe().identity


def test_a_packed_answer_is_unpacked_no_further_than_it_may_go(
    endpoint: StandIn, remote: RemoteEngine
) -> None:
    """Nobody asked for gzip, and a gigabyte of it is a megabyte on the way."""
    good = gzip.compress(reply(Call("", {}, {"input": list(TEXTS), "encoding_format": "base64"})))
    endpoint.script.append(Answer(200, good, {"Content-Encoding": "gzip"}))
    np.testing.assert_array_equal(remote.forward(TEXTS, SHAPE), [vector(text) for text in TEXTS])
    for packed, words in (
        (gzip.compress(b" " * (1 << 26), 1), "too large"),
        (good[:-20], "not JSON"),
        (b"nothing of the kind", "broken compression"),
    ):
        endpoint.script.append(Answer(200, packed, {"Content-Encoding": "gzip"}))
        with pytest.raises(EndpointTrouble, match=words):
            remote.forward(TEXTS, SHAPE)
    endpoint.script.append(Answer(200, b"x", {"Content-Encoding": "br"}))
    with pytest.raises(EndpointTrouble, match="compression"):
        remote.forward(TEXTS, SHAPE)
    assert endpoint.calls[-1].headers["Accept-Encoding"] == "identity"


def test_what_is_read_of_an_answer_follows_from_what_was_asked() -> None:
    """Every way of writing a float32 fits, at any number of texts; a gigabyte never does."""
    number = f"\n{' ' * 24}{-np.finfo(np.float64).smallest_subnormal!r},"
    for count, dimensions in ((1, None), (1, 64), (32, 384), (32, 4096), (32, 16_384)):
        most = Expected(dimensions).most_bytes(count)
        assert count * (dimensions or 8192) * len(number) < most < 64 << 20
    with pytest.raises(answers.WrongAnswer, match="not JSON"):
        answers.read(b'{"data": ' + b"[" * 500_000, 1, Expected())


def test_four_times_the_answer_costs_four_times_the_work() -> None:
    """In process CPU time, best of five; six times would be a scan within a scan."""

    def made(count: int) -> Callable[[], object]:
        numbers = [compact(np.ones(DIMENSIONS)), [0.5] * DIMENSIONS]
        content = body([{"index": at, "embedding": numbers[at % 2]} for at in reversed(range(count))])
        return lambda: answers.read(content, count, Expected())

    assert growth(made, 6_000) < MOST


class _Endless(threading.Thread):
    """Says the head of a good answer and then bytes for ever."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sent = 0

    def run(self) -> None:
        """Answer the first who comes."""
        stream, _ = self.listener.accept()
        with stream:
            stream.recv(1 << 16)
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            try:
                while True:
                    self.sent += stream.send(b" " * (1 << 16))
            except OSError:
                return


@pytest.fixture
def endless() -> Iterator[_Endless]:
    """Something that talks for ever."""
    thread = _Endless()
    thread.start()
    with thread.listener:
        yield thread
    thread.join(20)


def test_an_answer_of_a_terabyte_is_given_up(endless: _Endless, clock: Clock) -> None:
    """After some megabytes, whatever its head promises."""
    address = f"http://127.0.0.1:{endless.listener.getsockname()[1]}/v1"
    with pytest.raises(EndpointTrouble, match="too large"):
        start(StandIn(address), clock)
    endless.join(20)
    assert endless.sent < 32 << 20


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://no-such-host.invalid/v1", "name is not known|cannot be reached"),
        ("http://127.0.0.1:1/v1", "nobody listens"),
        ("http://[::1]:1/v1", "nobody listens|cannot be reached"),
        (f"http://{'x' * 70}.invalid/v1", "cannot be reached"),
        ("http://127.0.0.1:0/v1", "cannot be reached"),
    ],
)
def test_a_way_that_leads_nowhere_is_the_endpoints_trouble(clock: Clock, url: str, words: str) -> None:
    """And says in a word what is wrong with it."""
    with pytest.raises((EndpointTrouble, InvalidArgument), match=f"{words}|base address"):
        start(StandIn(url), clock)


def test_a_server_without_tls_is_the_endpoints_trouble(endpoint: StandIn, clock: Clock) -> None:
    """`https` for `http` is a frequent mistake."""
    with pytest.raises(EndpointTrouble, match="TLS fails"):
        start(StandIn(endpoint.url.replace("http:", "https:")), clock)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    "variables",
    [
        {"HTTP_PROXY": "http://127.0.0.1:1"},
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"http_proxy": "nonsense://x:y:z"},
        {"SSL_CERT_FILE": "/none"},
        {"SSL_CERT_DIR": "/none"},
    ],
)
def test_this_machine_is_asked_through_no_proxy(
    endpoint: StandIn, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], host: str
) -> None:
    """Nor does it need a certificate."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url = endpoint.url.replace("127.0.0.1", host)
    engine = load(EngineSpec("remote", "stand-in", url=url))
    assert engine.forward(["x"], Shape(1, 1)).shape == (1, DIMENSIONS)
    engine.close()


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        ("http://10.255.255.1/v1", "ALL_PROXY", "socks5://127.0.0.1:1"),
        ("http://10.255.255.1/v1", "HTTP_PROXY", "nonsense://127.0.0.1:1"),
        ("https://10.255.255.1/v1", "SSL_CERT_FILE", "/none"),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, variable: str, value: str
) -> None:
    """By the variable, before anybody is asked."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(EndpointTrouble, match=variable):
        load(EngineSpec("remote", "stand-in", url=url))


@pytest.mark.parametrize("key", ["two\nlines", "sch\u00f6n", "bell\x07", "zero\x00"])
def test_a_key_that_is_none_is_named_and_not_told(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Blanks around it, as files end with, are no part of it."""
    with pytest.raises(InvalidArgument, match="EMBATCH_ENGINE_KEY") as caught:
        RemoteEngine(EngineSpec("remote", "m", url="http://127.0.0.1:1"), key=key)
    assert key not in str(caught.value)


def test_blanks_around_a_key_are_no_part_of_it(endpoint: StandIn) -> None:
    """Files end with a line break."""
    RemoteEngine(EngineSpec("remote", "m", url=endpoint.url), key=" secret\n").close()
    assert endpoint.calls[0].headers["Authorization"] == "Bearer secret"


def test_half_a_character_is_the_texts_own_fault(endpoint: StandIn, remote: RemoteEngine) -> None:
    """It never leaves this machine, and the others are sent without it."""
    with pytest.raises(RowsRefused, match="Unicode"):
        remote.forward(["half \ud800"], Shape(1, 8))
    endpoint.usual = always(Answer(503))
    with pytest.raises(EndpointTrouble):
        remote.forward(["half \ud800"], Shape(1, 8))
