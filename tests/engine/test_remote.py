"""The remote engine against an endpoint on the loopback that says all the right and wrong things."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conformance import CHECKS, check_long_texts
from standin import Answer, Call, StandIn, body, compact, reply, standing_in, vector

from embatch.engine.loading import load
from embatch.engine.protocol import EngineSpec, Shape
from embatch.engine.remote import RemoteEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch.engine.protocol import Engine

KEY = "sk-a-secret-that-nobody-shall-read"
TEXTS = ("one text", "another text", "a third")
RIGHT = [{"index": place, "embedding": compact(vector(text))} for place, text in enumerate(TEXTS)]
SHAPE = Shape(len(TEXTS), 16)


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        """Let the time pass."""
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint() -> Iterator[StandIn]:
    """A well-behaved endpoint."""
    with standing_in() as running:
        yield running


@pytest.fixture
def time() -> Time:
    """The clock of the engine."""
    return Time()


@pytest.fixture
def engine(endpoint: StandIn, time: Time) -> Iterator[RemoteEngine]:
    """An engine that has found the endpoint well."""
    loaded = start(endpoint, time)
    endpoint.calls.clear()
    yield loaded
    loaded.close()


def start(endpoint: StandIn, time: Time, **options: str) -> RemoteEngine:
    """Return an engine with a key, which waits without waiting; jitter is always half."""
    spec = EngineSpec("remote", "stand-in", url=endpoint.url, options=options)
    return RemoteEngine(spec, key=KEY, wait=time.wait, clock=lambda: time.now, chance=lambda: 0.5)


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not check_long_texts])
@pytest.mark.parametrize("form", ["base64", "float", "ignores base64", "refuses base64", "any order"])
def test_conformance(endpoint: StandIn, form: str, check: Callable[[Engine, float], None]) -> None:
    """The suite passes whatever form of a right answer the endpoint has.

    Only the check of long texts is left out: what the endpoint cuts off is hidden.
    """

    def answer(call: Call) -> Answer:
        if form == "refuses base64" and "encoding_format" in call.body:
            return Answer(422)
        if form == "any order":
            data = [
                {"index": place, "embedding": compact(vector(text))} for place, text in enumerate(call.texts)
            ]
            return Answer(200, body(data[::-1]))
        return Answer(
            200, reply(call, None if form == "refuses base64" else form.removeprefix("ignores ")[:6])
        )

    if form == "ignores base64":
        form = "float"
    endpoint.usual = answer
    spec = EngineSpec("remote", "stand-in", url=endpoint.url, threads=4)
    loaded = load(spec)
    check(loaded, 0.9999)
    loaded.close()
