"""Poison among many texts, with real processes: exactly the poison request fails (I14)."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

import pools
import pytest

from embatch.engine.models import ServedModel
from embatch.engine.protocol import EndpointTrouble, EngineSpec
from embatch.errors import Code, EngineTrouble, Reason
from embatch.pool.protocol import Origin
from embatch.shard import Done

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from embatch.pool.local import LocalPool

COUNT: Final = 1024
IN_A_MICRO_BATCH: Final = 8
REASONS: Final = {
    "segv": Reason.ENGINE_CRASH,
    "abort": Reason.ENGINE_CRASH,
    "exit": Reason.ENGINE_CRASH,
    "hang": Reason.ENGINE_HANG,
    "nan": Reason.ENGINE_BAD_OUTPUT,
    "shape": Reason.ENGINE_BAD_OUTPUT,
    "panic-encode": Reason.ENGINE_CRASH,
    "hang-encode": Reason.ENGINE_HANG,
}


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    """One pool for all kinds: it has to stand what came before."""
    with pools.opened() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(pool: LocalPool) -> pa.RecordBatch:
    """What the texts give without poison."""
    return pools.embed(pool, pools.hashing(poison="1"), pools.shard(*pools.texts(COUNT)))


def _poisoned(pool: LocalPool, undisturbed: pa.RecordBatch, at: int, words: dict[int, str]) -> int:
    """Embed with poison at some places, check every verdict, and return the processes started."""
    model, counted = pools.hashing(poison="1"), list[Done]()
    texts = pools.texts(at)
    for place, word in words.items():
        texts[place] = f"embatch-poison:{word}"
    pools.embed(pool, model, pools.shard("brings the lane's process up"))
    before = pool.starts
    found = pools.embed(pool, model, pools.shard(*texts), counted.append)
    pools.embed(pool, model, pools.shard("brings it up again if it died"))
    assert pools.blamed(found) == {place: REASONS[word].value for place, word in words.items()}
    codes = found.column("error_code").to_pylist()
    assert {codes[place] for place in words} == {Code.INTERNAL.number}
    expected = pools.bytes_of(undisturbed)[:at]
    for place in words:
        expected[place] = None
    assert pools.bytes_of(found) == expected
    assert sum(counted, Done(0))[:2] == (at, found.column("tokens").to_numpy().sum())
    return pool.starts - before


def _most(*groups: int) -> int:
    return sum(2 * math.ceil(math.log2(size)) + 2 for size in groups)


@pytest.mark.parametrize(
    "word",
    [
        "segv",
        pytest.param("abort", marks=pytest.mark.long),
        pytest.param("exit", marks=pytest.mark.long),
        "hang",
    ],
)
def test_a_text_that_ends_the_process(pool: LocalPool, undisturbed: pa.RecordBatch, word: str) -> None:
    """It alone fails, all others keep their bytes, and few processes are spent."""
    starts = _poisoned(pool, undisturbed, COUNT, {700: word})
    assert starts <= _most(IN_A_MICRO_BATCH)


def test_texts_with_wrong_numbers(pool: LocalPool, undisturbed: pa.RecordBatch) -> None:
    """NaN and a wrong shape, in one micro-batch and in others, cost no process at all."""
    words = {3: "nan", 4: "shape", 500: "nan", 1023: "shape"}
    assert _poisoned(pool, undisturbed, COUNT, words) == 0


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("panic-encode", 16),
        pytest.param("panic-encode", COUNT, marks=pytest.mark.long),
        pytest.param("hang-encode", COUNT, marks=pytest.mark.long),
    ],
)
def test_a_text_that_cannot_be_encoded(
    pool: LocalPool, undisturbed: pa.RecordBatch, word: str, count: int
) -> None:
    """Before there is a plan the whole shard is suspected, and one text is found."""
    starts = _poisoned(pool, undisturbed, count, {count // 3: word})
    assert starts <= _most(count)


@pytest.mark.long
def test_all_kinds_at_once(pool: LocalPool, undisturbed: pa.RecordBatch) -> None:
    """Each kind is found although the others are there too."""
    words = {61 + 119 * number: word for number, word in enumerate(REASONS)}
    starts = _poisoned(pool, undisturbed, COUNT, words)
    assert starts <= _most(COUNT, COUNT, *[IN_A_MICRO_BATCH] * 4)


def test_a_query_of_poison_alone_is_blamed_in_a_new_lane(pool: LocalPool) -> None:
    """Nothing ever succeeded there: a harmless text shows that it is not the engine's fault."""
    model = pools.hashing("never-used", poison="1")
    found = pool.query(model, pools.shard("embatch-poison:exit"))
    assert pools.blamed(found) == {0: "ENGINE_CRASH"}


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("def broken(self, rows, shape): os.abort()", "dies on any text"),
        ("def broken(self, rows, shape): return forward(self, rows, shape) * float('nan')", "numbers on any"),
        ("def broken(self, rows, shape): raise RuntimeError('sick')", "fails on any text"),
    ],
)
def test_an_engine_that_never_worked_blames_nobody(tmp_path: Path, fails: str, words: str) -> None:
    """It fails on a harmless text too: that is engine trouble, whatever the texts are."""
    environment = pools.sabotaged(tmp_path, f"{fails}\nHashingEngine.forward = broken\n")
    with pools.opened(environment=environment) as pool, pytest.raises(EngineTrouble, match=words):
        pools.embed(pool, pools.hashing(), pools.shard("one", "two"))


def test_an_engine_that_gives_one_vector_for_all_texts_is_in_trouble(tmp_path: Path) -> None:
    """No text is to blame, under suspicion or not."""
    code = (
        "from embatch.engine.protocol import Encoded\n"
        "def ids(self, texts):\n"
        "    rows = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]\n"
        "    lengths = np.array([len(row) for row in rows], np.int32)\n"
        "    return Encoded(rows, lengths, np.zeros(len(rows), np.bool_))\n"
        "HashingEngine.encode = ids\n"
        "HashingEngine.forward = lambda self, rows, shape: np.ones((len(rows), 64), np.float32)\n"
    )
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        for suspect in (False, True):
            with pytest.raises(EngineTrouble, match="the same vector"):
                pools.embed(pool, pools.hashing(), pools.shard("one", "two"), suspect=suspect)


def test_one_sick_process_blames_one_text(tmp_path: Path, undisturbed: pa.RecordBatch) -> None:
    """After a text that breaks something inside, its process fails on everything: others are innocent."""
    code = (
        "sick = []\n"
        "def sickening(self, rows, shape):\n"
        "    sick.extend(row for row in rows if 'sicken' in row)\n"
        "    if sick: raise RuntimeError(sick)\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = sickening\n"
    )
    texts, clean = pools.texts(8), pools.bytes_of(undisturbed)[:8]
    texts[5], clean[5] = "sicken", None
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        pools.embed(pool, pools.hashing(), pools.shard("fine"))
        found = pools.embed(pool, pools.hashing(), pools.shard(*texts))
        assert pools.blamed(found) == {5: "ENGINE_CRASH"}
        assert pools.bytes_of(found) == clean
        assert pools.blamed(pools.embed(pool, pools.hashing(), pools.shard("fine again"))) == {}


def test_a_text_that_the_engine_refuses(tmp_path: Path) -> None:
    """It fails alone, with the engine's own words, and no process is spent on it."""
    code = (
        "def choosy(self, rows, shape):\n"
        "    if any('refuse' in row for row in rows): raise RowsRefused('over the limit of 10 tokens')\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = choosy\n"
    )
    texts = pools.texts(40)
    texts[17] = "refuse me"
    counted = list[Done]()
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        found = pools.embed(pool, pools.hashing(), pools.shard(*texts), counted.append)
        assert pool.starts == 1
    assert sum(counted, Done(0))[:2] == (40, found.column("tokens").to_numpy().sum())
    assert pools.blamed(found) == {17: Reason.BAD_FIELD.value}
    assert found.column("error_code")[17].as_py() == Code.INVALID_ARGUMENT.number
    assert found.column("error_message")[17].as_py() == "over the limit of 10 tokens"


def test_trouble_that_one_text_makes_ends_with_suspicion(tmp_path: Path) -> None:
    """The engine says it cannot work; on a shard that never gets done, a harmless text shows that it can."""
    code = (
        "def troubled(self, rows, shape):\n"
        "    if any('trouble' in row for row in rows): raise EngineTrouble('no more', retry_after=7.0)\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = troubled\n"
    )
    texts = pools.texts(8)
    texts[5] = "trouble"
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        with pytest.raises(EngineTrouble, match="no more") as caught:
            pools.embed(pool, pools.hashing(), pools.shard(*texts))
        assert caught.value.retry_after == 7.0
        found = pools.embed(pool, pools.hashing(), pools.shard(*texts), suspect=True)
    assert pools.blamed(found) == {5: "ENGINE_CRASH"}


@pytest.mark.parametrize("kind", ["EndpointTrouble", "ModelChanged"])
def test_an_endpoint_that_is_well_for_a_harmless_text_only_blames_nobody(tmp_path: Path, kind: str) -> None:
    """As a rate limit does. Whose trouble it is comes through the pipe; suspicion does not change it."""
    code = (
        f"from embatch.engine.protocol import {kind}\n"
        "def troubled(self, rows, shape):\n"
        f"    if any('number' in row for row in rows): raise {kind}('no more', retry_after=7.0)\n"
        "    return forward(self, rows, shape)\n"
        "HashingEngine.forward = troubled\n"
    )
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        for suspect in (False, True):
            with pytest.raises(EndpointTrouble, match="no more") as caught:
                pools.embed(pool, pools.hashing(), pools.shard(*pools.texts(8)), suspect=suspect)
            assert type(caught.value).__name__ == kind
            assert caught.value.retry_after == 7.0


@pytest.mark.parametrize("fails", ["os.abort()", "os.kill(os.getpid(), 9)", "threading.Event().wait()"])
def test_what_ends_the_process_that_asks_an_endpoint_blames_nobody(tmp_path: Path, fails: str) -> None:
    """An answer too large for the memory, a name that is looked up for ever: no text has a part in it."""
    code = (
        "import threading\n"
        "from dataclasses import replace\n"
        "described = HashingEngine.describe\n"
        "HashingEngine.describe = lambda self: replace(described(self), engine='remote')\n"
        f"def broken(self, rows, shape): {fails}\n"
        "HashingEngine.forward = broken\n"
    )
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        with pytest.raises(EndpointTrouble, match="the process that asks the endpoint"):
            pools.embed(pool, pools.hashing(), pools.shard("one", "two"))
        assert pool.starts == 1


def test_an_endpoint_that_is_down_at_the_start_is_asked_when_it_said(tmp_path: Path) -> None:
    """How long it asked for comes through the pipe too; what is far away is tried meanwhile."""
    code = (
        "from embatch.engine.protocol import EndpointTrouble\n"
        "def loading(self, spec): raise EndpointTrouble('closed', retry_after=float(spec.model))\n"
        "HashingEngine.__init__ = loading\n"
    )
    with pools.opened(environment=pools.sabotaged(tmp_path, code)) as pool:
        for asked, wait in (("100", 100.0), ("3600", 30.0)):
            for _ in range(2):
                with pytest.raises(EndpointTrouble, match="closed") as caught:
                    pool.describe(named(asked))
                assert wait - 20 < (caught.value.retry_after or 0) <= wait
        assert pool.starts == 2


def named(name: str) -> ServedModel:
    """Return a model whose engine is told its name."""
    return ServedModel(name, EngineSpec("hashing", name))


def test_a_shard_under_suspicion_spares_the_lane(pool: LocalPool, undisturbed: pa.RecordBatch) -> None:
    """It has processes of its own; the one that others use is not even looked at."""
    texts = pools.texts(16)
    lane = [status for status in pool.status() if (status.model, status.lane) == ("test-model", "bulk")]
    found = pools.embed(pool, pools.hashing(poison="1"), pools.shard(*texts), suspect=True)
    assert pools.bytes_of(found) == pools.bytes_of(undisturbed)[:16]
    assert [status for status in pool.status() if status in lane] == lane


def test_poison_in_one_shard_does_not_harm_another(pool: LocalPool) -> None:
    """Two shards run at once: what either had running when the process died is done again."""
    model = pools.hashing("two-streams", threads=2, poison="1", delay="0.01")
    texts = pools.texts(COUNT // 8)
    bad = [*texts[:40], "embatch-poison:exit"]
    found: list[pa.RecordBatch] = []
    threads = [
        threading.Thread(target=lambda rows=rows: found.append(pools.embed(pool, model, pools.shard(*rows))))
        for rows in (bad, texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.sort(key=lambda one: one.num_rows)
    assert pools.blamed(found[0]) == {40: "ENGINE_CRASH"}
    assert pools.bytes_of(found[1])[:40] == pools.bytes_of(found[0])[:40]
    assert pools.blamed(found[1]) == {}


def test_a_process_that_others_end_says_nothing_against_who_waits(pool: LocalPool) -> None:
    """However often: a shard of which nothing was begun is neither suspected nor given up."""
    model = pools.hashing("neighbours", poison="1")
    found: dict[int, pa.RecordBatch] = {}

    def embed(number: int, rows: pa.RecordBatch, priority: int) -> None:
        found[number] = pools.embed(pool, model, rows, origin=Origin(f"batch {number}", priority))

    threads = [
        threading.Thread(target=embed, args=(number, pools.shard("embatch-poison:exit"), 1))
        for number in range(6)
    ]
    threads.append(threading.Thread(target=embed, args=(6, pools.shard(*pools.texts(20)), 0)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pools.blamed(found[number]) for number in range(6)] == [{0: "ENGINE_CRASH"}] * 6
    assert pools.blamed(found[6]) == {}
