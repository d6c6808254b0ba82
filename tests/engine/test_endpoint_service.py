"""A service before an endpoint that fails on real texts and is well for a plain one: nobody is blamed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from serving import serving
from standin import DIMENSIONS, Answer, Call, StandIn, body, compact, reply, standing_in, vector

from embatch import Client
from embatch.engine.remote import PROBE
from embatch.errors import Reason
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch import Batch

TEXTS = [f"a text of somebody, number {number}" for number in range(40)]
WITHIN = 60.0


def _nan(call: Call) -> Answer:
    hole = compact([float("nan")] * DIMENSIONS)
    return Answer(200, body([{"index": at, "embedding": hole} for at in range(len(call.texts))]))


def _short(call: Call) -> Answer:
    return Answer(200, body([{"index": 0, "embedding": compact(vector(call.texts[0]))}]))


def _twice(call: Call) -> Answer:
    one = compact(vector(call.texts[0]))
    return Answer(200, body([{"index": 0, "embedding": one} for _ in range(len(call.texts) + 1)]))


def _status(number: int, **headers: str) -> Callable[[Call], Answer]:
    return lambda _: Answer(number, b'{"error": {}}', headers)


TROUBLES: dict[str, tuple[Callable[[Call], Answer], str]] = {
    **{str(number): (_status(number), str(number)) for number in (401, 429, 500, 503)},
    "307": (_status(307, Location="http://127.0.0.1:1/"), "307"),
    "503, on a date beyond calendars": (
        _status(503, **{"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"}),
        "503",
    ),
    "HTML": (lambda _: Answer(200, b"<html>a proxy's error page</html>"), "not JSON"),
    "hangs up": (lambda _: Answer(None), "broke off"),
    "breaks off": (lambda call: Answer(200, reply(call)[:-9], promised=1_000_000), "broke off"),
    "too few": (_short, "embeddings for"),
    "one index twice": (_twice, "wrong indices"),
    "no numbers": (_nan, "no numbers"),
}
"""How it fails on real texts, and what of that the note says."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Client]]:
    """An endpoint, and a client of a service before it."""
    with standing_in() as endpoint:
        flags = ("--engine", "remote", "--engine-url", endpoint.url, "--model", "stand-in")
        folder = tmp_path_factory.mktemp("endpoint") / "data"
        with (
            serving(folder, *flags, "--engine-option", "timeout=1") as service,
            Client(service.url) as client,
        ):
            yield endpoint, client


def submit(client: Client) -> str:
    """Submit all texts and return the batch's name."""
    return client.async_batch_embed_contents(TEXTS, display_name="endpoint").name


def until(client: Client, name: str, true: Callable[[Batch], object]) -> Batch:
    """Poll a batch until something is true of it; a client has nothing else to wait for."""
    deadline, polled = time.monotonic() + WITHIN, threading.Event()
    while not true(batch := client.get_batch_status(name)):
        assert time.monotonic() < deadline, batch
        polled.wait(0.05)
    return batch


def check_all_embedded(client: Client, name: str) -> None:
    """Wait for the end of a batch; every text has its vector."""
    done = until(client, name, lambda batch: batch.state is State.COMPLETED)
    assert (done.batch_stats.failed_request_count, done.notes) == (0, ())
    found = client.get_batch_embeddings(done).to_numpy()
    np.testing.assert_array_equal(found, [vector(text) for text in TEXTS])


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_text_is_blamed_for_an_endpoint_that_is_well_for_a_plain_text_only(
    place: tuple[StandIn, Client], trouble: str
) -> None:
    """The batch waits and says what was answered, goes on when the endpoint recovers, and loses nothing."""
    endpoint, client = place
    fails, words = TROUBLES[trouble]
    asked: list[Call] = []

    def usual(call: Call) -> Answer:
        if call.texts == [PROBE]:
            return Answer(200, reply(call))
        asked.append(call)
        return fails(call)

    endpoint.usual = usual
    name = submit(client)
    waiting = until(client, name, lambda batch: any(words in note for note in batch.notes))
    assert waiting.batch_stats.failed_request_count == 0
    endpoint.usual = lambda call: Answer(200, reply(call))
    check_all_embedded(client, name)
    assert asked


def _other(call: Call, **more: object) -> Answer:
    """Answer as another model would that has taken the place of the first: half the dimensions."""
    data = [
        {"index": at, "embedding": compact(vector(text)[: DIMENSIONS // 2])}
        for at, text in enumerate(call.texts)
    ]
    return Answer(200, body(data, **more))


def test_another_model_behind_the_endpoint_is_loaded_anew(place: tuple[StandIn, Client]) -> None:
    """What had begun fails with MODEL_CHANGED where it has no vectors yet, what waits is worked."""
    endpoint, client = place
    went_on, begun = threading.Event(), threading.Event()

    def usual(call: Call) -> Answer:
        if call.texts[0].startswith("late"):
            begun.set()
            went_on.wait(WITHIN)
            return _other(call)
        return Answer(200, reply(call))

    endpoint.usual = usual
    early, late = ([f"{word} {at}".ljust(66_000, "x") for at in range(9)] for word in ("early", "late"))
    name = client.async_batch_embed_contents([*early, *late], display_name="begun").name
    until(client, name, lambda batch: batch.batch_stats.successful_request_count and begun.is_set())
    waiting = submit(client)
    endpoint.usual = _other
    went_on.set()
    done = until(client, name, lambda batch: batch.state.final)
    stats = done.batch_stats
    assert 0 < stats.successful_request_count <= 9
    failed = client.get_batch_embeddings(done).failed_responses
    assert {error.reason for _, error in failed} == {Reason.MODEL_CHANGED}
    done = until(client, waiting, lambda batch: batch.state.final)
    assert done.batch_stats.successful_request_count == len(TEXTS)
    found = client.get_batch_embeddings(done).to_numpy()
    np.testing.assert_array_equal(found, [vector(text)[: DIMENSIONS // 2] for text in TEXTS])
    assert len(client.embed_content("a query").values) == DIMENSIONS // 2  # the other lane knows as well
    endpoint.usual = lambda call: Answer(200, reply(call))


@pytest.mark.parametrize("trouble", ["403", "an error of its own"])
def test_a_text_that_is_never_answered_holds_up_its_own_batch_alone(
    place: tuple[StandIn, Client], trouble: str
) -> None:
    """A wall before the endpoint that does not like it: the batch waits and says so, others are worked."""
    endpoint, client = place
    bad = f"<script> or so, for {trouble}"

    def usual(call: Call) -> Answer:
        if bad not in call.texts:
            return Answer(200, reply(call))
        return Answer(403) if trouble == "403" else Answer(200, b'{"error": "who knows"}')

    endpoint.usual = usual
    check_all_embedded(client, submit(client))
    held = client.async_batch_embed_contents([*TEXTS, bad], display_name="held", priority=1)
    words = "403" if trouble == "403" else "without a list"
    until(client, held.name, lambda batch: any(words in note for note in batch.notes))
    check_all_embedded(client, submit(client))
    waiting = client.get_batch_status(held)
    assert (waiting.state.final, waiting.batch_stats.failed_request_count) == (False, 0)
    endpoint.usual = lambda call: Answer(200, reply(call))
    done = until(client, held.name, lambda batch: batch.state is State.COMPLETED)
    assert done.batch_stats.failed_request_count == 0
