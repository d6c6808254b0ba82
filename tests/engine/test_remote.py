"""The remote engine against a well-behaved endpoint: what it asks, and what it makes of the answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conformance import CHECKS, check_long_texts, embed
from standin import DIMENSIONS, KEY, Answer, Call, Clock, StandIn, always, body, compact, reply, start, vector

from embatch.engine.loading import load
from embatch.engine.models import serve_model
from embatch.engine.protocol import EngineSpec, Shape
from embatch.engine.remote import PROBE, RemoteEngine
from embatch.errors import EngineTrouble, InvalidArgument, Reason
from embatch.pool.local import LocalPool
from embatch.service.cutting import ShardCutter
from embatch.settings import Settings
from embatch.shard import RequestRow

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Engine

pytest_plugins = ("endpoint_fixtures",)

TEXTS = ("one text", "another text", "a third")
SHAPE = Shape(len(TEXTS), 16)


def _any_order(call: Call) -> Answer:
    data = [{"index": place, "embedding": compact(vector(text))} for place, text in enumerate(call.texts)]
    return Answer(200, body(data[1:] + data[:1]))


FORMS: dict[str, Callable[[Call], Answer]] = {
    "as asked": lambda call: Answer(200, reply(call)),
    "floats all the same": lambda call: Answer(200, reply(call, "float")),
    "floats only": lambda call: Answer(422) if "encoding_format" in call.body else Answer(200, reply(call)),
    "any order": _any_order,
}


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not check_long_texts])
@pytest.mark.parametrize("form", FORMS)
def test_conformance(endpoint: StandIn, form: str, check: Callable[[Engine, float], None]) -> None:
    """The suite passes with every form of a right answer.

    Only the check of long texts is left out: what an endpoint cuts off is hidden.
    """
    endpoint.usual = FORMS[form]
    loaded = load(EngineSpec("remote", "stand-in", url=endpoint.url, threads=4))
    check(loaded, 0.9999)
    loaded.close()


def test_long_texts(endpoint: StandIn, clock: Clock) -> None:
    """Only a text far beyond the limit is cut, and flagged; its length is the limit."""
    remote = start(endpoint, clock, max_tokens="8")
    encoded = remote.encode(["x" * 2000, "x" * 2001, "x" * 33, "x" * 32, "x", ""])
    assert encoded.truncated.tolist() == [False, True, False, False, False, False]
    assert encoded.lengths.tolist() == [8, 8, 8, 8, 1, 1]
    assert [len(row) for row in encoded.rows] == [2000, 2000, 33, 32, 1, 0]
    assert remote.encode(["\u20ac" * 8]).lengths.tolist() == [6]  # three bytes each


def test_what_is_asked(endpoint: StandIn, remote: RemoteEngine) -> None:
    """The request is OpenAI's: model, input, base64, the key as a bearer token."""
    remote.forward(TEXTS, SHAPE)
    (call,) = endpoint.calls
    assert call.path == "/v1/embeddings"
    assert call.headers["Authorization"] == f"Bearer {KEY}"
    assert call.headers["Content-Type"] == "application/json"
    assert call.body == {"model": "stand-in", "input": list(TEXTS), "encoding_format": "base64"}


def test_no_key(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from the environment; without one, none is sent."""
    spec = EngineSpec("remote", "stand-in", url=endpoint.url)
    monkeypatch.delenv("EMBATCH_ENGINE_KEY", raising=False)
    load(spec).close()
    monkeypatch.setenv("EMBATCH_ENGINE_KEY", "other")
    load(spec).close()
    assert [call.headers.get("Authorization") for call in endpoint.calls] == [None] * 2 + ["Bearer other"] * 2


def test_calls_stay_small(endpoint: StandIn, clock: Clock) -> None:
    """A micro-batch with more rows than the endpoint takes becomes several calls; order is kept."""
    remote = start(endpoint, clock, rows="4")
    endpoint.calls.clear()
    texts = [f"text {number}" for number in range(10)]
    vectors = remote.forward(texts, Shape(10, 16))
    assert [call.texts for call in endpoint.calls] == [texts[:4], texts[4:8], texts[8:]]
    np.testing.assert_array_equal(vectors, [vector(text) for text in texts])


def test_description(endpoint: StandIn, clock: Clock) -> None:
    """Dimensions and length are learned from one text, order from two; identity is address and model."""
    about = start(endpoint, clock, **{"prompt.RETRIEVAL_QUERY": "query: "}).describe()
    first, second = (call.texts for call in endpoint.calls)
    assert first == second[1:] == [PROBE]
    assert (about.dimensions, about.normalized, about.precision) == (DIMENSIONS, True, "f32")
    assert about.streams > 1
    assert about.prompts == {"RETRIEVAL_QUERY": "query: "}
    assert start(endpoint, clock).describe().identity == about.identity
    assert start(endpoint, clock, "other").describe().identity != about.identity
    endpoint.url += "/embeddings?somewhere=else"
    assert start(endpoint, clock).describe().identity != about.identity


def test_vectors_that_are_not_normalized(endpoint: StandIn, clock: Clock) -> None:
    """The engine says so, and passes them on as they are."""
    endpoint.usual = always(Answer(200, body([{"index": 0, "embedding": [3.0, 4.0]}])))
    remote = start(endpoint, clock)
    assert not remote.describe().normalized
    assert remote.forward(["x"], Shape(1, 1)).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("", "/v1/embeddings"),
        ("/", "/v1/embeddings"),
        ("/embeddings", "/v1/embeddings"),
        ("?a=b", "/v1/embeddings?a=b"),
    ],
)
def test_addresses(endpoint: StandIn, clock: Clock, url: str, path: str) -> None:
    """Every way people write the base address leads to the same place."""
    endpoint.url += url
    start(endpoint, clock)
    assert endpoint.calls[0].path == path


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "/v1", "http://[::1"])
def test_addresses_that_are_none(url: str) -> None:
    """They are refused at once, with an example."""
    with pytest.raises(InvalidArgument, match="http://") as caught:
        RemoteEngine(EngineSpec("remote", "m", url=url))
    assert caught.value.field == "engine-url"


@pytest.mark.parametrize(
    "options",
    [
        {"rows": "0"},
        {"rows": "many"},
        {"timeout": "-1"},
        {"color": "red"},
        {"prompt.NOTHING": "x"},
        {"dimensions": "1.5"},
    ],
)
def test_options_that_are_none(options: dict[str, str]) -> None:
    """They are refused before the endpoint is asked."""
    with pytest.raises(InvalidArgument) as caught:
        RemoteEngine(EngineSpec("remote", "m", url="http://127.0.0.1:1", options=options))
    assert caught.value.field == "engine-option"
    with pytest.raises(InvalidArgument, match="precision"):
        RemoteEngine(EngineSpec("remote", "m", "bf16", url="http://127.0.0.1:1"))


def test_other_dimensions_than_said(endpoint: StandIn, clock: Clock) -> None:
    """The option is a promise the endpoint has to keep."""
    assert start(endpoint, clock, dimensions=str(DIMENSIONS)).describe().dimensions == DIMENSIONS
    with pytest.raises(EngineTrouble, match="dimensions"):
        start(endpoint, clock, dimensions="384")


def test_closing(endpoint: StandIn, remote: RemoteEngine) -> None:
    """A closed engine says so, twice as well."""
    remote.close()
    remote.close()
    for _ in range(2):
        with pytest.raises(EngineTrouble, match="closed"):
            remote.forward(TEXTS, SHAPE)


def test_closing_ends_a_wait(endpoint: StandIn) -> None:
    """Whoever waits for a next try hears at once."""
    remote = load(EngineSpec("remote", "stand-in", url=endpoint.url))
    endpoint.usual = always(Answer(503, headers={"Retry-After": "60"}))
    endpoint.asked.clear()
    failed: list[EngineTrouble] = []

    def work() -> None:
        try:
            remote.forward(TEXTS, SHAPE)
        except EngineTrouble as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert endpoint.asked.wait(120)
    remote.close()
    thread.join(20)
    assert "closed" in str(failed[0])


def test_what_does_not_fit(remote: RemoteEngine) -> None:
    """More rows than planned, or tokens for texts, are a mistake of the caller."""
    with pytest.raises(InvalidArgument):
        remote.forward(TEXTS, Shape(2, 16))
    with pytest.raises(InvalidArgument):
        remote.forward([np.zeros(3, np.int32)], SHAPE)


def test_calls_at_once(endpoint: StandIn, remote: RemoteEngine) -> None:
    """Threads do not mix up each other's answers."""
    texts = [f"text {number}" for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: remote.forward([text], Shape(1, 4))[0], texts))
    np.testing.assert_array_equal(found, [vector(text) for text in texts])
    np.testing.assert_array_equal(embed(remote, texts), found)


def _embed(pool: LocalPool, model: ServedModel, texts: list[str]) -> pa.RecordBatch:
    cutter = ShardCutter(1 << 30, 1 << 20)
    for text in texts:
        assert cutter.add(RequestRow(text)) is None
    shard = cutter.rest()
    assert shard is not None
    result = pool.embed(model, shard, on_progress=lambda _: None, stop=threading.Event())
    assert result is not None
    return result


def test_the_pool_blames_the_right_text(endpoint: StandIn) -> None:
    """Among forty texts one is too long and one has no number: they alone fail, each for its reason."""
    texts = [f"text number {number}" for number in range(40)]

    def answer(call: Call) -> Answer:
        if texts[13] in call.texts:
            return Answer(413)
        hole = compact([float("nan")] * DIMENSIONS)
        data = [
            {"index": place, "embedding": hole if text == texts[29] else compact(vector(text))}
            for place, text in enumerate(call.texts)
        ]
        return Answer(200, body(data))

    endpoint.usual = answer
    model = serve_model("stand-in", engine="remote", url=endpoint.url)
    pool = LocalPool(Settings(bulk_nice=0))
    try:
        found = _embed(pool, model, texts)
        reasons = dict(enumerate(found.column("error_reason").to_pylist()))
        assert {at: reason for at, reason in reasons.items() if reason} == {
            13: Reason.BAD_FIELD.value,
            29: Reason.ENGINE_BAD_OUTPUT.value,
        }
        for at in set(range(40)) - {13, 29}:
            np.testing.assert_array_equal(found.column("embedding")[at].values.to_numpy(), vector(texts[at]))
        endpoint.usual = always(Answer(401))
        with pytest.raises(EngineTrouble, match="EMBATCH_ENGINE_KEY"):
            _embed(pool, model, texts)
    finally:
        pool.close(0.0)
