"""Texts that are embedded at once: as many a minute as may pass, as many calls at a time as shall."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import pytest
from client_scripts import Clock, json_reply, play, problem, session, unhurried, wired, wired_async
from fake_gemini import KEY, FakeGemini, vector
from hypothesis import given
from hypothesis import strategies as st

from embatch import AsyncClient, Client, InvalidArgument, Request, ResourceExhausted
from embatch.client import interactive
from embatch.client.flows import RequestDefaults
from embatch.client.providers.gemini import GEMINI
from embatch.client.providers.provider import Target
from embatch.client.rate import MINUTE, Budget, Load, cut, load_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.client.calls import Reply

TEXTS = [f"text {number}" for number in range(250)]
TARGET = Target("http://google", GEMINI, key=KEY)
BUSY = json_reply(problem(429, "RESOURCE_EXHAUSTED", "quota"), 429)


def booked(budget: Budget, loads: Sequence[Load], now: float = 0.0) -> list[float]:
    """Return when each call is sent that is booked at this time."""
    return [budget.book(load, now) for load in loads]


def vectors(count: int) -> Reply:
    """Return the answer to a call with so many texts."""
    return json_reply({"embeddings": [{"values": vector("a")}] * count})


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 400), st.floats(0, 100)), max_size=60),
    st.integers(40, 200),
    st.integers(400, 2000),
)
def test_no_minute_holds_more_than_the_rate(
    calls: list[tuple[int, int, float]], requests: int, tokens: int
) -> None:
    """Whichever minute one looks at; and nothing waits for longer than it must."""
    budget, now, sent = Budget(Load(requests, tokens)), 0.0, []
    for some, more, pause in calls:
        now += pause
        load = Load(some, more)
        sent.append((budget.book(load, now), load))
    for end, _ in sent:
        within = [load for at, load in sent if at <= end < at + MINUTE]
        assert sum(load.requests for load in within) <= requests
        assert sum(load.tokens for load in within) <= tokens
    assert [at for at, _ in sent] == sorted(at for at, _ in sent)


def test_what_has_room_does_not_wait() -> None:
    """The rest waits until so much of the minute is past; without a rate nothing does."""
    assert booked(Budget(Load(100, math.inf)), [Load(50, 1)] * 5) == [0, 0, 60, 60, 120]
    assert booked(Budget(Load(math.inf, 100)), [Load(1, 60)] * 3) == [0, 60, 120]
    assert booked(Budget(), [Load(100, 10**6)] * 100) == [0] * 100


def test_a_call_that_is_too_large_has_a_minute_for_itself() -> None:
    """It is sent all the same: nobody can make it smaller."""
    assert booked(Budget(Load(10, math.inf)), [Load(100, 1), Load(1, 1), Load(100, 1)]) == [0, 60, 120]


def refuse(budget: Budget, *loads: Load, now: float = 1.0, wait: float | None = None) -> None:
    """Have calls refused that were sent at the beginning."""
    for load in loads:
        budget.refused(load, 0.0, now, wait)


def test_a_refusal_halves_and_answers_give_back() -> None:
    """By what had passed; calls that went out together are refused once."""
    budget = Budget()
    booked(budget, [Load(100, 10)] * 4 + [Load(99, 9)] * 3)
    refuse(budget, *[Load(99, 9)] * 3)
    assert booked(budget, [Load(100, 10)] * 3, now=100.0) == [100, 100, 160]
    for _ in range(10):
        budget.answered(Load(100, 10))
    assert booked(budget, [Load(100, 10)] * 4, now=300.0) == [300, 300, 300, 360]


def test_what_is_given_back_stays_below_the_rate() -> None:
    """A caller's word is the most."""
    budget = Budget(Load(200, math.inf))
    booked(budget, [Load(150, 1), Load(50, 1)])
    refuse(budget, Load(50, 1))
    assert booked(budget, [Load(70, 1)] * 2, now=100.0) == [100, 160]
    for _ in range(1000):
        budget.answered(Load(100, 1))
    assert booked(budget, [Load(100, 1)] * 3, now=400.0) == [400, 400, 460]


def test_a_refusal_of_the_first_call_says_nothing_of_how_much_there_is() -> None:
    """Somebody else took it: the call waits as any other that is sent again."""
    budget = Budget()
    booked(budget, [Load(100, 10)])
    refuse(budget, Load(100, 10))
    assert booked(budget, [Load(100, 10)] * 9, now=2.0) == [2.0] * 9


def test_a_wait_that_is_asked_for_holds_all_calls() -> None:
    """Also those that would have room."""
    budget = Budget()
    booked(budget, [Load(1, 1)])
    refuse(budget, Load(1, 1), wait=34.0)
    assert booked(budget, [Load(1, 1)] * 2, now=2.0) == [35.0, 35.0]


def test_blocks_are_cut_by_what_a_minute_has_room_for() -> None:
    """In order, nothing lost; a text that is too long goes alone."""
    requests = [Request("x" * size) for size in (4, 4, 4000, 4, 4, 4)]
    blocks = cut(requests, Load(2, 500))
    assert [len(block) for block in blocks] == [2, 1, 2, 1]
    assert [one for block in blocks for one in block] == requests
    assert load_of(requests) == Load(6, 2 * 5 + 1001)


def test_calls_wait_by_the_clients_clock() -> None:
    """A hundred texts a call, counted one by one, and never more than the rate in a minute."""
    clock = Clock()
    terms = replace(session(TARGET, clock=clock), budget=Budget(Load(120, math.inf)))
    flow = interactive.embed_many(terms, TEXTS, RequestDefaults())
    played = play(flow, [vectors(100), vectors(100), vectors(50)], clock)
    assert len(played.value) == 250
    assert [call.after for call in played.calls] == [0.0, 60.0, 60.0]


def test_a_call_that_is_refused_is_sent_again_when_there_is_room() -> None:
    """What passed has to be a minute ago, half of it; a wait that is asked for is obeyed."""
    clock = Clock()
    flow = interactive.embed_many(session(TARGET, clock=clock, chance=0.0), TEXTS, RequestDefaults())
    played = play(flow, [vectors(100), vectors(100), BUSY, vectors(50)], clock)
    assert len(played.value) == 250
    assert [call.after for call in played.calls] == [0.0, 0.0, 0.0, 60.0]
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    asked = json_reply(problem(429, "RESOURCE_EXHAUSTED", "quota", wait), 429)
    flow = interactive.embed_many(session(TARGET, clock=clock, chance=0.0), TEXTS[:3], RequestDefaults())
    assert [call.after for call in play(flow, [asked, vectors(3)], clock).calls] == [0.0, 7.0]


def test_a_quota_that_never_clears_is_told() -> None:
    """After as many tries as any call has."""
    clock = Clock()
    flow = interactive.embed(session(TARGET, clock=clock), "a", None, RequestDefaults())
    played = play(flow, [BUSY] * 6, clock)
    assert isinstance(played.error, ResourceExhausted)


@pytest.mark.parametrize(
    "rate", [0, -1, 1.5, "100", (1,), (1, 2, 3), (0, 1), (1, None), True, float("nan")], ids=repr
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_rate_that_cannot_be_is_refused(kind: type, rate: object) -> None:
    """At once, by name."""
    with pytest.raises(InvalidArgument, match="rate") as refused:
        kind("gemini", api_key=KEY, rate=rate)
    assert refused.value.field == "rate"


class Counting:
    """A Gemini that answers the first so many calls once all are there together, and counts them."""

    def __init__(self, together: int, *, fail: str | None = None) -> None:
        self.fake, self.fail = FakeGemini(), fail
        self.barrier = threading.Barrier(together, timeout=60)
        self.calls: list[list[str]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        texts = [one["content"]["parts"][0]["text"] for one in orjson.loads(request.content)["requests"]]
        self.calls.append(texts)
        if len(self.calls) <= self.barrier.parties:
            self.barrier.wait()
        if self.fail in texts:
            return httpx2.Response(400, json=problem(400, "INVALID_ARGUMENT", "no such text"))
        return self.fake(request)


def test_four_calls_run_at_a_time() -> None:
    """Each waits for the others to be there; the order of the texts is kept."""
    texts = [f"text {number}" for number in range(800)]
    service = Counting(4)
    with Client("gemini", api_key=KEY, http_client=wired(service)) as client:
        unhurried(client)
        found = client.batch_embed_contents(texts)
    assert [one.values.tolist() for one in found] == [*map(vector, texts)]
    assert sorted(map(len, service.calls)) == [100] * 8


def test_nothing_is_begun_after_an_error() -> None:
    """What is in work ends; the rest costs nothing."""
    texts = [f"text {number}" for number in range(1_200)]
    service = Counting(4, fail="text 7")
    with Client("gemini", api_key=KEY, http_client=wired(service)) as client:
        unhurried(client)
        with pytest.raises(InvalidArgument, match="no such text"):
            client.batch_embed_contents(texts)
    assert len(service.calls) < 12


def test_tasks_run_at_a_time_too() -> None:
    """The other colour: four at most, in order, and the first error ends them."""
    texts = [f"text {number}" for number in range(800)]
    fake, now, most = FakeGemini(), 0, 0

    async def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(10):
            await asyncio.sleep(0)
        now -= 1
        return fake(request)

    async def run(texts: Sequence[Any]) -> list[Any]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        async with AsyncClient("gemini", api_key=KEY, http_client=http) as client:
            unhurried(client)
            return await client.batch_embed_contents(texts)

    found = asyncio.run(run(texts))
    assert [one.values.tolist() for one in found] == [*map(vector, texts)]
    assert most == 4


def test_an_error_of_a_task_ends_the_others() -> None:
    """It is the one that is raised, and nothing is sent after it."""
    seen: list[httpx2.Request] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(400, json=problem(400, "INVALID_ARGUMENT", "no such text"))

    async def run() -> None:
        async with AsyncClient("gemini", api_key=KEY, http_client=wired_async(refuse)) as client:
            await client.batch_embed_contents([f"text {number}" for number in range(1_200)])

    with pytest.raises(InvalidArgument, match="no such text"):
        asyncio.run(run())
    assert len(seen) < 12


def test_a_text_that_is_none_is_refused_before_anything_is_paid() -> None:
    """Wherever in the list it stands."""
    fake = FakeGemini()
    with (
        Client("gemini", api_key=KEY, http_client=wired(fake)) as client,
        pytest.raises(InvalidArgument, match=r"requests\[249\]"),
    ):
        client.batch_embed_contents([*TEXTS[:249], Request(None)])
    assert fake.seen == []
