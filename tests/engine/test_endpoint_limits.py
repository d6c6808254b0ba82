"""Endpoints that take fewer texts at once, or in a while, than a micro-batch or a shard has."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from standin import Answer, Call, Clock, StandIn, reply, start, vector

from embatch.engine.models import serve_model
from embatch.engine.pieces import CallSize, HeldVectors
from embatch.engine.protocol import EndpointTrouble, Shape
from embatch.pool.local import LocalPool
from embatch.service.cutting import ShardCutter
from embatch.settings import Settings
from embatch.shard import RequestRow
from embatch.vectors import norm

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

pytest_plugins = ("endpoint_fixtures",)

TEXTS = [f"a text, number {number:02}" for number in range(40)]
SHAPE = Shape(len(TEXTS), 16)


def _vectors() -> list[object]:
    return [vector(text) for text in TEXTS]


def _at_most(texts: int, status: int, **headers: str) -> Callable[[Call], Answer]:
    return lambda call: (
        Answer(status, headers=headers) if len(call.texts) > texts else Answer(200, reply(call))
    )


@pytest.mark.parametrize("most", [1, 3, 8, 31])
@pytest.mark.parametrize("status", [408, 429, 503, 504])
def test_a_limit_of_one_call(endpoint: StandIn, clock: Clock, most: int, status: int) -> None:
    """It is found out, and held to from then on; every text has its own vector."""
    remote = start(endpoint, clock, timeout="1000")
    endpoint.usual = _at_most(most, status)
    np.testing.assert_array_equal(remote.forward(TEXTS, SHAPE), _vectors())
    endpoint.calls.clear()
    np.testing.assert_array_equal(remote.forward(TEXTS[:20], SHAPE), _vectors()[:20])
    assert max(len(call.texts) for call in endpoint.calls) <= most


def test_what_the_endpoint_asks_for_is_waited_for(endpoint: StandIn, clock: Clock) -> None:
    """Fewer texts are no way around a Retry-After."""
    remote = start(endpoint, clock)
    endpoint.usual = _at_most(8, 429, **{"Retry-After": "3600"})
    endpoint.calls.clear()
    with pytest.raises(EndpointTrouble):
        remote.forward(TEXTS, SHAPE)
    assert [len(call.texts) for call in endpoint.calls] == [32]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_limit_of_calls_in_a_while_is_no_limit_of_texts(
    endpoint: StandIn, clock: Clock, calls: int
) -> None:
    """More and smaller calls would make it worse: the size stays, and each attempt goes on from the last."""
    remote = start(endpoint, clock, rows="8", timeout="60")
    budget = 0

    def limited(call: Call) -> Answer:
        nonlocal budget
        budget -= 1
        return Answer(200, reply(call)) if budget >= 0 else Answer(429)

    endpoint.usual = limited
    endpoint.calls.clear()
    found = None
    for _ in range(5):
        budget = calls
        if found is None:
            with suppress(EndpointTrouble):
                found = remote.forward(TEXTS, SHAPE)
    np.testing.assert_array_equal(found, _vectors())
    good = [len(call.texts) for call in endpoint.calls if len(call.texts) == 8]
    assert len(good) >= 5


def test_the_size_of_a_call_grows_back() -> None:
    """A limit of yesterday is not one for ever."""
    size = CallSize(32)
    size.too_large(32)
    size.too_large(16)
    assert size.texts == 8
    for _ in range(128):
        size.good()
    assert size.texts == 32
    size.too_large(1)
    assert size.texts == 1


def test_what_is_held_has_a_bound_and_is_given_once() -> None:
    """The oldest go first."""
    held = HeldVectors()
    held.put({str(number): np.full(1, number, np.float32) for number in range(3000)})
    assert held.take(["0", "2999", "never"]).keys() == {1}
    assert held.take(["2999"]) == {}


def _shard(texts: list[str]) -> pa.RecordBatch:
    cutter = ShardCutter(1 << 40, 1 << 30)
    for text in texts:
        cutter.add(RequestRow(text))
    made = cutter.rest()
    assert made is not None
    return made


def test_a_shard_larger_than_the_limit_is_finished_attempt_by_attempt(endpoint: StandIn) -> None:
    """What was embedded before the trouble is neither asked for again nor lost, refusals among it."""
    texts = [f"{'word ' * 40}{number:03}" for number in range(96)]
    budget, asked, lock = 0, [], threading.Lock()

    def limited(call: Call) -> Answer:
        nonlocal budget
        with lock:
            if texts[5] in call.texts:
                return Answer(413)
            if len(call.texts) > 1 or call.texts[0] in texts:
                budget -= 1
                if budget < 0:
                    return Answer(403)
                asked.extend(call.texts)
            return Answer(200, reply(call))

    endpoint.usual = limited
    model = serve_model(
        "stand-in", engine="remote", threads=1, url=endpoint.url, options={"rows": "4", "timeout": "5"}
    )
    pool = LocalPool(Settings(bulk_nice=0, micro_batch_tokens=512))
    told: list[int] = []
    found, attempts = None, 0
    try:
        while found is None and attempts < 30:
            budget, attempts = 6, attempts + 1
            told.clear()
            with suppress(EndpointTrouble):
                found = pool.embed(
                    model,
                    _shard(texts),
                    on_progress=lambda done: told.append(done.rows),
                    stop=threading.Event(),
                )
    finally:
        pool.close(0.0)
    assert 2 < attempts < 30
    assert sum(told) == len(texts)
    assert found is not None
    assert found.column("error_reason").to_pylist() == [
        "BAD_FIELD" if at == 5 else None for at in range(len(texts))
    ]
    for at in set(range(len(texts))) - {5}:
        given = found.column("embedding")[at].values.to_numpy()
        np.testing.assert_array_equal(given, vector(texts[at]))
        assert abs(float(norm(given)) - 1) < 1e-3
    assert len(asked) < 2 * len(texts)
