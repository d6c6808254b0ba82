"""What every pool must pass: plain functions of a pool that serves hashing engines.

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check, pool):
        check(pool)

The pool takes eight texts of `pools.texts` to a micro-batch, as `pools.QUICK` says. No check needs more than
the protocol: how engines run, and what may end them, is each pool's own to test. `check_close` ends the pool.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pools
import pyarrow as pa
import pytest

from embatch.engine import hashing
from embatch.engine.protocol import Shape, computed_by
from embatch.errors import Code, EngineTrouble, Reason, RequestError
from embatch.pool.protocol import Origin
from embatch.shard import (
    COMPUTED_BY,
    IDENTITY,
    REQUESTS,
    Done,
    RequestRow,
    results_schema,
    said_of,
    with_precomputed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from embatch.engine.models import ServedModel
    from embatch.pool.protocol import Pool

MODEL: Final = pools.hashing("conforming", dimensions="16", poison="1")
FAULT: Final = RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "empty")


def vectors(texts: Sequence[str], model: ServedModel = MODEL) -> NDArray[np.float32]:
    """Return what the engine itself makes of texts: float32 (n, dimensions)."""
    engine = hashing.load(model.spec)
    found: NDArray[np.float32] = engine.forward(engine.encode(texts).rows, Shape(len(texts), 512))
    return found


def matrix(found: pa.RecordBatch) -> NDArray[np.float32]:
    """Return the vectors of results without errors: float32 (n, dimensions)."""
    return np.array(found.column("embedding").to_pylist(), np.float32)


def check_description(pool: Pool) -> None:
    """What is loaded is told without any text, and is the engine's own word."""
    assert pool.describe(MODEL) == hashing.load(MODEL.spec).describe()


def check_slots(pool: Pool) -> None:
    """There is always room for a shard, and so many at once all get what is theirs."""
    slots = pool.slots
    assert slots >= 1
    parts = [[f"shard {number} {text}" for text in pools.texts(20)] for number in range(slots)]
    found: list[pa.RecordBatch | None] = [None] * slots

    def embed(number: int) -> None:
        found[number] = pools.embed(pool, MODEL, pools.shard(*parts[number]))

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part, results in zip(parts, found, strict=True):
        assert results is not None
        assert (matrix(results) == vectors(part)).all()
    assert pool.slots == slots


def check_order(pool: Pool) -> None:
    """Row i of the results is row i of the shard, whatever order its texts were worked in."""
    texts = [f"{at} " + "long " * (at * 7 % 50) for at in range(100)]
    found = pools.embed(pool, MODEL, pools.shard(*texts))
    assert found.schema == results_schema(16)
    assert found.column("index").to_pylist() == list(range(100))
    assert (matrix(found) == vectors(texts)).all()
    assert found.column("tokens").to_pylist() == hashing.load(MODEL.spec).encode(texts).lengths.tolist()


def check_signature(pool: Pool) -> None:
    """Results say which engine computed them, and what else decides a vector."""
    about, requests = pool.describe(MODEL), pools.shard("a")
    for found in (pools.embed(pool, MODEL, requests), pool.query(MODEL, requests)):
        assert said_of(found, COMPUTED_BY) == computed_by(about)
        assert said_of(found, IDENTITY) == about.identity


def check_repetition(pool: Pool) -> None:
    """The same shard gives the same bytes, under suspicion too, and so does a query."""
    requests = pools.shard(*pools.texts(50))
    first = pools.embed(pool, MODEL, requests)
    assert pools.embed(pool, MODEL, requests).equals(first)
    assert pools.embed(pool, MODEL, requests, suspect=True).equals(first)
    assert pool.query(MODEL, requests).equals(first)


def check_faulty_rows(pool: Pool) -> None:
    """They keep their fault, word for word, and are counted as done; alone they are a shard, too."""
    told: list[Done] = []
    requests = pools.shard("a", RequestRow(None, fault=FAULT), "b", "a")
    found = pools.embed(pool, MODEL, requests, told.append)
    assert found.column("error_code").to_pylist() == [None, 3, None, None]
    assert found.column("error_reason").to_pylist() == [None, "EMPTY_TEXT", None, None]
    assert found.column("error_message").to_pylist() == [None, "empty", None, None]
    assert [row is None for row in found.column("embedding").to_pylist()] == [False, True, False, False]
    assert found.column("tokens").to_pylist() == [1, 0, 1, 1]
    assert sum(told, Done(0))[:2] == (4, 3)
    alone = pools.embed(pool, MODEL, pools.shard(RequestRow(None, fault=FAULT)))
    assert alone.schema == results_schema(16)
    assert pools.blamed(alone) == {0: "EMPTY_TEXT"}


def check_long_texts(pool: Pool) -> None:
    """One that the model cuts is flagged, and fails where that was not allowed."""
    long = "word " * 5000
    rows = [RequestRow(long), RequestRow(long, auto_truncate=False), RequestRow("short", auto_truncate=False)]
    found = pools.embed(pool, MODEL, pools.shard(*rows))
    assert found.column("truncated").to_pylist() == [True, False, False]
    assert found.column("tokens").to_pylist() == [512, 0, 2]
    assert pools.blamed(found) == {1: "TOO_LONG"}


def check_precomputed_rows(pool: Pool) -> None:
    """They keep their vectors, bit for bit, if the same model made them, and are embedded anew if not."""
    texts = pools.texts(20)
    known = np.arange(20) % 3 == 0
    count = int(known.sum())
    own = np.full((count, 16), 0.25, np.float32)
    tokens, truncated = np.full(count, 77, np.int32), np.ones(count, np.bool_)
    given = with_precomputed(pools.shard(*texts), known, own, tokens, truncated)
    whose, told = computed_by(pool.describe(MODEL)), list[Done]()
    same = given.replace_schema_metadata({COMPUTED_BY: whose.encode()})
    found = pools.embed(pool, MODEL, same, told.append)
    assert found.schema == results_schema(16)
    assert (matrix(found)[known] == own).all()
    assert (matrix(found)[~known] == vectors(texts)[~known]).all()
    assert found.column("tokens").to_pylist() == [77 if row else 8 for row in known]
    assert found.column("truncated").to_pylist() == known.tolist()
    assert sum(told, Done(0))[:2] == (20, 77 * count + 8 * (20 - count))
    other = given.replace_schema_metadata({COMPUTED_BY: b"something else"})
    assert (matrix(pools.embed(pool, MODEL, other)) == vectors(texts)).all()


def check_progress(pool: Pool) -> None:
    """It adds up to every request once, equal texts too, and comes before the end."""
    texts = [*pools.texts(40), *pools.texts(40)]
    told: list[Done] = []
    found = pools.embed(pool, MODEL, pools.shard(*texts), told.append)
    assert pools.blamed(found) == {}
    assert sum(told, Done(0))[:2] == (80, 80 * 8)
    assert sum(told, Done(0)).cpu_seconds > 0
    assert sum(1 for done in told if done.rows) >= 5  # forty different texts, eight to a micro-batch


def check_stop(pool: Pool) -> None:
    """Between micro-batches: the one that runs ends, hardly another is begun, and the engine goes on."""
    model = pools.hashing("stopping", delay="0.05")
    stop, told = threading.Event(), list[Done]()

    def progress(done: Done) -> None:
        told.append(done)
        if done.rows:
            stop.set()

    assert pool.embed(model, pools.shard(*pools.texts(800)), on_progress=progress, stop=stop) is None
    assert 8 <= sum(told, Done(0)).rows <= 4 * 8
    assert pools.blamed(pools.embed(pool, model, pools.shard("next"))) == {}
    assert pool.embed(model, pools.shard("late"), on_progress=told.append, stop=stop) is None


def check_what_was_stopped_goes_on(pool: Pool) -> None:
    """What an attempt that was stopped left is not worked again, and the bytes are those of one attempt."""
    model = pools.hashing("kept", delay="0.02", dimensions="16")
    texts = [f"{at} " + "long " * (at * 7 % 50) for at in range(200)]
    requests = pools.shard(*texts, RequestRow(None, fault=FAULT), texts[3])
    undisturbed = pools.embed(pool, model, requests)
    origin, left = Origin("a batch"), list[pa.RecordBatch]()
    while True:
        stop, told = threading.Event(), list[Done]()

        def progress(more: Done, told: list[Done] = told, stop: threading.Event = stop) -> None:
            told.append(more)
            if sum(one.rows > 0 for one in told) >= 6:
                stop.set()

        found = pool.embed(model, requests, on_progress=progress, stop=stop, origin=origin)
        if found is not None:
            break
        assert origin.kept is not None
        assert origin.kept.num_rows > (left[-1].num_rows if left else 0)
        left.append(origin.kept)
    assert len(left) >= 2
    assert found.equals(undisturbed)
    other = pools.shard(*texts[1:])  # of which it is not
    found = pools.embed(pool, model, other, origin=Origin("a batch", kept=left[-1]))
    assert (matrix(found) == vectors(texts[1:], model)).all()


def check_bad_vectors(pool: Pool) -> None:
    """A text that the engine answers with nonsense fails alone: its neighbours keep their bytes."""
    texts = pools.texts(20)
    texts[7], texts[11] = "embatch-poison:nan", "embatch-poison:shape"
    for suspect in (False, True):
        told: list[Done] = []
        found = pools.embed(pool, MODEL, pools.shard(*texts), told.append, suspect=suspect)
        assert pools.blamed(found) == {7: "ENGINE_BAD_OUTPUT", 11: "ENGINE_BAD_OUTPUT"}
        good = [at for at in range(20) if at not in (7, 11)]
        kept = np.array([found.column("embedding")[at].as_py() for at in good], np.float32)
        assert (kept == vectors([texts[at] for at in good])).all()
        assert sum(told, Done(0)).rows == 20


def check_unreadable_texts(pool: Pool) -> None:
    """One that the tokenizer cannot bear fails alone."""
    requests = pools.shard("before", "embatch-poison:panic-encode")
    assert pools.blamed(pools.embed(pool, MODEL, requests)) == {1: "ENGINE_CRASH"}


def check_engine_trouble(pool: Pool) -> None:
    """An engine that does not load is told of in its own words; no row, and no other model, suffers."""
    model = replace(MODEL, name="broken", spec=replace(MODEL.spec, options={"colour": "red"}))
    calls: tuple[Callable[[], object], ...] = (
        lambda: pools.embed(pool, model, pools.shard("a")),
        lambda: pools.embed(pool, model, pools.shard("a"), suspect=True),
        lambda: pool.describe(model),
        lambda: pool.query(model, pools.shard("a")),
        lambda: pool.count(model, pools.shard("a")),
        lambda: pool.reference(model, pools.shard("a")),
    )
    for call in calls:
        with pytest.raises(EngineTrouble, match="no option colour"):
            call()
    assert pools.blamed(pools.embed(pool, MODEL, pools.shard("a"))) == {}
    troubles = pool.troubles()
    assert troubles.keys() == {"broken"}
    assert "no option colour" in troubles["broken"]
    states = {(status.state, bool(status.message)) for status in pool.status() if status.model == "broken"}
    assert states == {("broken", True)}


def check_status(pool: Pool) -> None:
    """An engine that works is shown as ready, under the name of its model."""
    pools.embed(pool, MODEL, pools.shard("a"))
    shown = [status for status in pool.status() if status.model == MODEL.name]
    assert "ready" in {status.state for status in shown}
    assert {status.message for status in shown} == {None}
    assert MODEL.name not in pool.troubles()


def check_loaded(pool: Pool) -> None:
    """A model whose shard was embedded is loaded; one that nobody asked for is not."""
    pools.embed(pool, MODEL, pools.shard("a"))
    assert MODEL.name in pool.loaded()
    assert "nobody's" not in pool.loaded()


def check_query(pool: Pool) -> None:
    """A few texts have the same columns as a shard, and faults of their own."""
    found = pool.query(MODEL, pools.shard("a", RequestRow(None, fault=FAULT), "b"))
    assert found.schema == results_schema(16)
    assert pools.blamed(found) == {1: "EMPTY_TEXT"}
    assert (matrix(found.take([0, 2])) == vectors(["a", "b"])).all()


def check_count(pool: Pool) -> None:
    """Tokens as the model would see them, 0 for a faulty row, and nothing is embedded."""
    rows: list[str | RequestRow] = ["a", RequestRow(None, fault=FAULT), "word " * 5000, *pools.texts(2)]
    counts = pool.count(MODEL, pools.shard(*rows))
    assert counts.dtype == np.dtype(np.int32)
    assert counts.tolist() == [1, 0, 512, 8, 8]


def check_reference(pool: Pool) -> None:
    """Each text by itself in float32, what it cost, and what it is compared with; without texts only that."""
    texts = pools.texts(5)
    found = pool.reference(MODEL, pools.shard(*texts))
    assert (matrix(found.results) == vectors(texts)).all()
    assert (found.tokens, found.compared) == (5 * 8, pool.describe(MODEL))
    assert found.cpu_seconds > 0
    nothing = pool.reference(MODEL, pa.RecordBatch.from_pylist([], schema=REQUESTS))
    assert (nothing.results.num_rows, nothing.tokens, nothing.cpu_seconds) == (0, 0, 0.0)
    assert nothing.results.schema == results_schema(16)
    assert nothing.compared == found.compared


def check_unbatched_cost(pool: Pool) -> None:
    """It is a price where it was measured, and not known where nothing was embedded."""
    pools.embed(pool, MODEL, pools.shard(*pools.texts(100)))
    pool.reference(MODEL, pools.shard(*pools.texts(5)))
    cost = pool.unbatched_cost(MODEL.name)
    assert cost is None or 0 < cost < 1
    assert pool.unbatched_cost("never asked for") is None


def check_close(pool: Pool) -> None:
    """What is under way blames nobody, what comes later is refused, and closing again is safe."""
    model = pools.hashing("closing", delay="0.05")
    begun, caught = threading.Event(), list[EngineTrouble]()

    def work() -> None:
        told = pools.shard(*pools.texts(4000))
        with pytest.raises(EngineTrouble) as error:
            pools.embed(pool, model, told, lambda done: begun.set() if done.rows else None)
        caught.append(error.value)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    pool.close(0.0)
    pool.close(0.0)
    thread.join(60)
    assert [error.message for error in caught] == ["the service is closing"]
    for call in (pools.embed, lambda *given: pool.query(*given[1:])):
        with pytest.raises(EngineTrouble, match="closing"):
            call(pool, MODEL, pools.shard("late"))


CHECKS: Final[tuple[Callable[[Pool], None], ...]] = (
    check_description,
    check_slots,
    check_order,
    check_signature,
    check_repetition,
    check_faulty_rows,
    check_long_texts,
    check_precomputed_rows,
    check_progress,
    check_stop,
    check_what_was_stopped_goes_on,
    check_bad_vectors,
    check_unreadable_texts,
    check_engine_trouble,
    check_status,
    check_loaded,
    check_query,
    check_count,
    check_reference,
    check_unbatched_cost,
)
