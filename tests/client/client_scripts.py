"""What the client's tests share: playing a flow by hand, and scripted answers for both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx2
import orjson

from embatch import AsyncClient, Client, EmbatchError
from embatch.client.base import set_environment
from embatch.client.calls import Await, Call, Environment, Flow, Reply, Step, Work
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.client.retry import Session

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Clock:
    """A clock that moves only when a flow waits."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass
class Played:
    """A flow that was played to its end."""

    calls: list[Call] = field(default_factory=list)
    value: Any = None
    error: EmbatchError | None = None


def session(target: Target | None = None, *, clock: Clock | None = None, chance: float = 1.0) -> Session:
    """Return terms without chance: waits have their full length, tokens count up."""
    tokens = iter(f"token-{number}" for number in range(1000))
    outside = Environment(clock or Clock(), lambda: chance, lambda: next(tokens))
    return Session(target or Target("http://service", EMBATCH), outside)


def play(flow: Flow[T], answers: Sequence[Reply | Exception], clock: Clock | None = None) -> Played:
    """Play a flow with `next`, `send` and `throw`; waiting moves the clock, nothing else does.

    What runs together is played one after the other.
    """
    player = _Player(iter(answers), clock)
    try:
        player.played.value = player.drive(flow)
    except EmbatchError as error:
        player.played.error = error
    assert next(player.script, None) is None, "the flow ended before its script"
    return player.played


@dataclass
class _Player:
    script: Iterator[Reply | Exception]
    clock: Clock | None
    played: Played = field(default_factory=Played)

    def drive(self, flow: Flow[U]) -> U:
        try:
            step = next(flow)
            while True:
                found = self._do(step)
                step = flow.throw(found) if isinstance(found, Exception) else flow.send(found)
        except StopIteration as stop:
            value: U = stop.value
            return value

    def _do(self, step: Step) -> Reply | Exception:
        assert not isinstance(step, Await), "played by hand a flow has nothing to await"
        if isinstance(step, Call):
            return self._answer(step)
        if isinstance(step, Work):
            step.do()
            return Reply()
        try:
            for one in step.flows:
                self.drive(one)
        except EmbatchError as error:
            return error
        return Reply()

    def _answer(self, step: Call) -> Reply | Exception:
        self.played.calls.append(step)
        if self.clock is not None:
            self.clock.now += step.after
        found = next(self.script, None)
        assert found is not None, f"an unexpected call: {step.method} {step.path}"
        if isinstance(found, Reply) and step.sink is not None and found.status == 200:
            step.sink.begin()
            step.sink.feed(found.body)
            found = replace(found, body=b"")
        return found


def json_reply(body: object, status: int = 200, **headers: str) -> Reply:
    """Return an answer in JSON."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, said, orjson.dumps(body))


def problem(status: int, word: str, message: str = "told so", *details: object) -> dict[str, Any]:
    """Return Google's envelope."""
    return {"error": {"code": status, "message": message, "status": word, "details": list(details)}}


Answer = httpx2.Response | Exception
Handler = Callable[[httpx2.Request], httpx2.Response]


def scripted(answers: Sequence[Answer]) -> tuple[Handler, list[httpx2.Request]]:
    """Return a handler that gives the answers in turn, and the requests it got."""
    script, seen = iter(answers), list[httpx2.Request]()

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        answer = next(script)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, seen


def wired(handler: Handler) -> httpx2.Client:
    """Return an HTTP client that a handler answers, without a network."""
    return httpx2.Client(transport=httpx2.MockTransport(handler))


def wired_async(handler: Handler) -> httpx2.AsyncClient:
    """As `wired`, for asyncio."""
    return httpx2.AsyncClient(transport=httpx2.MockTransport(handler))


def unhurried(client: Client | AsyncClient) -> None:
    """Take the waiting out of a client: full jitter of a chance that is always 0."""
    set_environment(client, Environment(chance=lambda: 0.0))


def both(
    handler: Callable[[], Handler],
    run: Callable[[Client], Any],
    run_async: Callable[[AsyncClient], Any],
    target: str = "http://service",
    **options: Any,
) -> tuple[Any, Any]:
    """Run the same against both colours, each with a fresh handler; return what came of it."""

    def colour() -> Any:
        with Client(target, http_client=wired(handler()), **options) as client:
            unhurried(client)
            return run(client)

    async def other() -> Any:
        async with AsyncClient(target, http_client=wired_async(handler()), **options) as client:
            unhurried(client)
            return await run_async(client)

    def outcome(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except EmbatchError as error:
            return type(error), error.message, error.reason

    return outcome(colour), outcome(lambda: asyncio.run(other()))
