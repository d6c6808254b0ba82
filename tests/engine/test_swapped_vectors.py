"""Endpoints whose vectors are not those of the texts: constant, doubled, swapped, zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from standin import DIMENSIONS, Answer, Call, Clock, StandIn, body, compact, reply, start, vector

from embatch.engine.protocol import EndpointTrouble, Shape
from embatch.engine.remote import PROBE
from embatch.engine.twins import alike, twins, without_zeros

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from embatch.engine.remote import RemoteEngine

pytest_plugins = ("endpoint_fixtures",)

TEXTS = ["one text", "another text", "a third"]
SHAPE = Shape(3, 16)
ZERO = np.zeros(DIMENSIONS, np.float32)


def _said(vectors: list[NDArray[np.float32]]) -> Answer:
    return Answer(200, body([{"index": at, "embedding": compact(one)} for at, one in enumerate(vectors)]))


def _constant(call: Call) -> Answer:
    return _said([vector("always")] * len(call.texts))


def _as_at_the_start(call: Call) -> Answer:
    return _said([vector(PROBE)] * len(call.texts))


def _doubled(call: Call) -> Answer:
    return _said([vector(call.texts[max(0, at - 1)]) for at in range(len(call.texts))])


def _zeros(call: Call) -> Answer:
    return _said([ZERO] * len(call.texts))


def _swapped(call: Call) -> Answer:
    return _said([vector(text) for text in reversed(call.texts)])


@pytest.mark.parametrize("wrong", [_constant, _as_at_the_start, _doubled, _zeros])
def test_it_begins_to_give_wrong_vectors(
    endpoint: StandIn, remote: RemoteEngine, wrong: Callable[[Call], Answer]
) -> None:
    """Nothing of it is kept, no text is blamed, and what it gives once it is well again is taken."""
    endpoint.usual = wrong
    with pytest.raises(EndpointTrouble, match=r"same vector|all zeros"):
        remote.forward(TEXTS, SHAPE)
    endpoint.usual = lambda call: Answer(200, reply(call))
    np.testing.assert_array_equal(remote.forward(TEXTS, SHAPE), [vector(text) for text in TEXTS])


@pytest.mark.parametrize("wrong", [_zeros, _swapped])
def test_it_gives_wrong_vectors_from_the_start(
    endpoint: StandIn, clock: Clock, wrong: Callable[[Call], Answer]
) -> None:
    """There is no engine then."""
    endpoint.usual = wrong
    with pytest.raises(EndpointTrouble, match=r"in company than alone|all zeros"):
        start(endpoint, clock)


def test_one_text_of_zeros_is_told_apart(endpoint: StandIn, remote: RemoteEngine) -> None:
    """Zeros say nothing of a text: it fails alone, as one without numbers does."""
    endpoint.script.append(_said([vector(TEXTS[0]), ZERO, vector(TEXTS[2])]))
    found = remote.forward(TEXTS, SHAPE)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, True]


def test_texts_that_are_one_to_the_model(endpoint: StandIn, remote: RemoteEngine) -> None:
    """A model that cuts texts, or reads no case: its vectors are taken, and soon without a second look."""

    def cut(call: Call) -> Answer:
        return _said([vector(text[:10]) if text != PROBE else vector(PROBE) for text in call.texts])

    endpoint.usual = cut
    texts = ["a long text that ends so", "a long text with another end"]
    for _ in range(5):
        found = remote.forward(texts, SHAPE)
        np.testing.assert_array_equal(found, [vector("a long tex")] * 2)
    assert len(endpoint.calls) == 5 + 3 * 3
    endpoint.calls.clear()
    remote.forward(["Same words.", "same WORDS"], SHAPE)
    assert len(endpoint.calls) == 1


def test_an_endpoint_that_takes_one_text_at_a_time(endpoint: StandIn, clock: Clock) -> None:
    """The question after the order is not asked of it."""
    endpoint.usual = lambda call: Answer(413) if len(call.texts) > 1 else Answer(200, reply(call))
    assert start(endpoint, clock, rows="1").describe().dimensions == DIMENSIONS


def test_which_vectors_are_doubted() -> None:
    """The very same numbers for other words; not what is merely near, nor one text twice."""
    near = vector("a") * np.float32(1.0001)
    assert twins(["a", "b", "c"], np.array([vector("a"), vector("b"), near])) is None
    assert twins(["a", "b", "c"], np.array([vector("a"), vector("b"), vector("a")])) == (0, 2)
    assert twins(["A b!", "a B", "ab"], np.array([vector("a")] * 3)) is None
    assert alike(vector("a"), near)
    assert not alike(vector("a"), vector("b"))
    assert not alike(vector("a"), -vector("a"))
    given = np.array([[0, 0], [0, 1]], np.float32)
    assert np.isnan(without_zeros(given)).all(axis=1).tolist() == [True, False]
    assert not np.isnan(given).any()
