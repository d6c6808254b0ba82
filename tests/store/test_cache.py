"""The vector cache: nothing answers before its run ends, nothing damaged ever, and its size has a limit."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch import durable
from embatch.errors import InvalidArgument, Unavailable
from embatch.store import segments
from embatch.store.cache import STAGED_SECONDS, Entries, VectorCache, key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT = 1 << 30


def entries(texts: Sequence[str], *, dimensions: int = 4, identity: str = "model") -> Entries:
    """Return entries whose vectors can be told from their texts."""
    vectors = np.array([[len(text), *map(ord, text[:3].ljust(3))][:dimensions] for text in texts], np.float32)
    return Entries(
        [key(identity, text) for text in texts],
        vectors.reshape(len(texts), dimensions),
        np.array([len(text) for text in texts], np.int32),
        np.array([text.startswith("long") for text in texts], np.bool_),
    )


def texts(prefix: str, count: int) -> list[str]:
    """Return so many texts of their own."""
    return [f"{prefix} {number}" for number in range(count)]


def known(cache: VectorCache, asked: Sequence[str]) -> int:
    """Return how many of these texts are answered, each with its vector."""
    found = cache.find([key("model", text) for text in asked])
    if found is None:
        return 0
    expected = entries([text for text, there in zip(asked, found[0], strict=True) if there])
    assert found[1].vectors.tolist() == expected.vectors.tolist()
    return len(expected.keys)


def held(folder: Path) -> int:
    """Return the bytes of arrays in a folder and below."""
    return sum(file.stat().st_size for file in folder.rglob("*.npy"))


@contextlib.contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Allow this process so many more descriptors than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_a_run_staged_answers_once_it_has_ended(tmp_path: Path) -> None:
    """Also after the next start; unknown keys stay unknown, and the order is that of the question."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("run", "a", entries(["one", "two", "long three"]))
    assert cache.empty
    assert cache.find([key("model", "one")]) is None
    assert cache.publish("run") == 3
    for opened in (cache, VectorCache(tmp_path, LIMIT)):
        found = opened.find([key("model", text) for text in ("long three", "nothing", "one")])
        assert found is not None
        assert found[0].tolist() == [True, False, True]
        assert found[1].vectors.tolist() == entries(["long three", "one"]).vectors.tolist()
        assert found[1].tokens.tolist() == [10, 3]
        assert found[1].truncated.tolist() == [True, False]
    assert cache.publish("run") == 0


def test_another_identity_never_hits(tmp_path: Path) -> None:
    """The same text under other weights or numerics is another key."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("run", "a", entries(["one"]))
    cache.publish("run")
    assert cache.find([key("other", "one")]) is None


@given(st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=20, unique=True), max_size=8))
@settings(max_examples=30, deadline=None)
def test_many_runs_answer_as_one(tmp_path_factory: pytest.TempPathFactory, runs: list[list[str]]) -> None:
    """Whatever was merged with what: each text has one vector, and the new ones are counted once."""
    folder = tmp_path_factory.mktemp("cache")
    cache = VectorCache(folder, LIMIT)
    seen: set[str] = set()
    for number, texts in enumerate(runs):
        cache.stage(f"run-{number}", "all", entries(texts))
        assert cache.publish(f"run-{number}") <= len(texts)
        seen |= set(texts)
    if seen:
        asked = sorted(seen)
        found = cache.find([key("model", text) for text in asked])
        assert found is not None
        assert found[0].all()
        assert found[1].vectors.tolist() == entries(asked).vectors.tolist()
        assert len(list(folder.glob("segment-*"))) <= len(runs)


def test_small_segments_are_merged(tmp_path: Path) -> None:
    """A hundred small runs leave few files, and none of another number of dimensions is mixed in."""
    cache = VectorCache(tmp_path, LIMIT)
    for number in range(100):
        cache.stage(f"run-{number}", "a", entries([f"text {number}"]))
        assert cache.publish(f"run-{number}") == 1
    cache.stage("wide", "a", entries(["wide"], dimensions=2, identity="wide"))
    cache.publish("wide")
    assert len(list(tmp_path.glob("segment-*"))) <= 8
    found = cache.find([key("model", f"text {number}") for number in range(100)])
    assert found is not None
    assert found[0].all()
    wide = cache.find([key("wide", "wide")])
    assert wide is not None
    assert wide[1].vectors.shape == (1, 2)


def test_a_flipped_bit_is_a_miss(tmp_path: Path) -> None:
    """The vector does not match its sum: it is computed again."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("run", "a", entries(["one", "two"]))
    cache.publish("run")
    (path,) = tmp_path.glob("segment-*/vectors.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cache = VectorCache(tmp_path, LIMIT)
    found = cache.find([key("model", "one"), key("model", "two")])
    assert found is not None
    assert found[0].sum() == 1


@pytest.mark.parametrize("name", ["head.npy", "vectors.npy", "tokens.npy"])
@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
def test_a_damaged_segment_is_left_out(tmp_path: Path, name: str, harm: str) -> None:
    """It is no error: the texts are embedded again, and the next sweep removes it."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("run", "a", entries(["one"]))
    cache.publish("run")
    (path,) = tmp_path.glob(f"segment-*/{name}")
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 50 if harm == "cut" else 0])
    cache = VectorCache(tmp_path, LIMIT)
    assert cache.empty
    cache.prune()
    assert not list(tmp_path.glob("segment-*"))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Over the limit, what was asked for last stays."""
    cache = VectorCache(tmp_path, LIMIT)
    for number, size in enumerate((400, 100)):
        cache.stage(f"run-{number}", "a", entries([f"{number} {at}" for at in range(size)]))
        cache.publish(f"run-{number}")
    first, second = sorted(tmp_path.glob("segment-*"))
    for age, path in ((100, first), (200, second)):
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    assert cache.find([key("model", "1 5")]) is not None
    limit = sum(file.stat().st_size for file in second.iterdir())
    bounded = VectorCache(tmp_path, limit)
    bounded.prune()
    assert list(tmp_path.glob("segment-*")) == [second]
    assert bounded.find([key("model", "0 5")]) is None
    assert bounded.find([key("model", "1 5")]) is not None


def test_a_segment_too_large_for_the_limit_costs_the_others_nothing(tmp_path: Path) -> None:
    """The limit was lowered, or the segment is an older version's: the others stay."""
    cache = VectorCache(tmp_path, LIMIT)
    for run, count in (("large", 400), ("small", 100)):
        cache.stage(run, "a", entries(texts(run, count)))
        cache.publish(run)
    (_, small) = sorted(tmp_path.glob("segment-*"))
    assert known(cache, texts("large", 400)) == 400
    bounded = VectorCache(tmp_path, held(small))
    bounded.prune()
    assert (known(bounded, texts("small", 100)), known(bounded, texts("large", 400))) == (100, 0)


def test_a_run_of_many_shards_needs_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it staged is opened one by one, some shards are merged at a time, and one segment is left."""
    monkeypatch.setattr("embatch.store.cache.MERGED_AT_ONCE", 16)
    cache = VectorCache(tmp_path, LIMIT)
    for number in range(40):
        cache.stage("run", f"{number:05}", entries(texts(str(number), 3)))
    with descriptors(more=30):
        assert cache.publish("run") == 120
    assert known(cache, [text for number in range(40) for text in texts(str(number), 3)]) == 120
    assert len(list(tmp_path.glob("segment-*"))) == 1
    assert not list(tmp_path.glob("staged/*"))


def test_many_runs_need_few_descriptors(tmp_path: Path) -> None:
    """However many there were: the sizes of segments double at least, up to a part of the limit."""
    limit = 200_000
    cache = VectorCache(tmp_path, limit)
    for number in range(60):
        cache.stage(f"run-{number}", "a", entries(texts(str(number), 50)))
        assert cache.publish(f"run-{number}") == 50
    sizes = [held(path) for path in tmp_path.glob("segment-*")]
    assert len(sizes) <= 10
    assert max(sizes) <= limit // 8
    assert known(cache, [text for number in range(60) for text in texts(str(number), 50)]) == 3000


def test_no_more_is_staged_than_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is not kept, which is said once; the rest is, and it answers."""
    limit = 100_000
    cache = VectorCache(tmp_path, limit)
    for number in range(40):
        cache.stage("run", f"{number:05}", entries(texts(str(number), 100)))
        assert held(tmp_path) <= limit
    assert [record.name for record in caplog.records] == ["embatch.cache"]
    staged = len(list((tmp_path / "staged" / "run").iterdir()))
    assert 10 < staged < 40
    reopened = VectorCache(tmp_path, limit)
    reopened.stage("other", "a", entries(texts("other", 100)))
    assert not (tmp_path / "staged" / "other").exists()
    assert reopened.publish("run") == 100 * staged
    assert known(reopened, [text for number in range(40) for text in texts(str(number), 100)]) == 100 * staged
    assert held(tmp_path) <= limit
    reopened.stage("other", "a", entries(texts("other", 100)))
    assert reopened.publish("other") == 100


def test_staging_again_takes_no_more_room(tmp_path: Path) -> None:
    """It replaces what stood under the name; a run that is given up leaves its room."""
    size = entries(texts("a", 100))
    cache = VectorCache(tmp_path, 2 * sum(column.nbytes + 128 for column in size.columns().values()))
    for _ in range(5):
        cache.stage("old", "a", entries(texts("a", 100)))
    cache.stage("old", "b", entries(texts("b", 100)))
    cache.stage("young", "c", entries(texts("c", 100)))
    assert not (tmp_path / "staged" / "young").exists()
    old = tmp_path / "staged" / "old"
    assert len(list(old.iterdir())) == 2
    os.utime(old, (0, old.stat().st_mtime - STAGED_SECONDS - 60))
    cache.prune()
    cache.stage("young", "c", entries(texts("c", 100)))
    assert cache.publish("young") == 100


def test_a_shard_larger_than_the_limit_costs_the_others_nothing(tmp_path: Path) -> None:
    """It is not staged; one that was, under a higher limit, is not published."""
    limit = 20_000
    cache = VectorCache(tmp_path, limit)
    cache.stage("old", "a", entries(texts("old", 100)))
    assert cache.publish("old") == 100
    cache.stage("large", "a", entries(texts("large", 5000)))
    assert cache.publish("large") == 0
    VectorCache(tmp_path, LIMIT).stage("large", "a", entries(texts("large", 5000)))
    lowered = VectorCache(tmp_path, limit)
    assert lowered.publish("large") == 0
    assert (known(lowered, texts("old", 100)), known(lowered, texts("large", 5000))) == (100, 0)
    assert held(tmp_path) <= limit


def test_a_run_larger_than_a_lowered_limit_says_what_it_kept(tmp_path: Path) -> None:
    """As much as fits answers, and no more than that is counted."""
    before = VectorCache(tmp_path, LIMIT)
    for number in range(40):
        before.stage("run", f"{number:05}", entries(texts(str(number), 100)))
    cache = VectorCache(tmp_path, 50_000)
    new = cache.publish("run")
    assert 500 < new < 4000
    assert known(cache, [text for number in range(40) for text in texts(str(number), 100)]) == new
    assert held(tmp_path) <= 50_000


def test_a_run_with_two_models_is_published(tmp_path: Path) -> None:
    """Their vectors have different dimensions: each joins its own."""
    cache = VectorCache(tmp_path, LIMIT)
    for number in range(3):
        cache.stage("run", f"narrow-{number}", entries(texts(f"n{number}", 10)))
        cache.stage("run", f"wide-{number}", entries(texts(f"w{number}", 10), dimensions=2, identity="wide"))
    assert cache.publish("run") == 60
    assert known(cache, [text for number in range(3) for text in texts(f"n{number}", 10)]) == 30
    wide = cache.find([key("wide", text) for text in texts("w2", 10)])
    assert wide is not None
    assert wide[1].vectors.shape == (10, 2)


def test_a_publish_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published stays, what was not stays staged, and nothing half-written does."""
    cache = VectorCache(tmp_path, 100_000)
    for number in range(20):
        cache.stage("run", f"{number:05}", entries(texts(str(number), 100)))
    syncs: list[int] = []

    def full(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) > 10:
            raise OSError(errno.ENOSPC, "no room")
        durable.sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(segments, "sync", full)
        with pytest.raises(Unavailable) as failed:
            cache.publish("run")
    assert failed.value.reason == "STORAGE_FULL"
    assert not list(tmp_path.glob(".*"))
    before = known(cache, [text for number in range(20) for text in texts(str(number), 100)])
    assert 0 < before < 2000
    cache = VectorCache(tmp_path, 100_000)
    assert cache.publish("run") == 2000 - before
    assert known(cache, [text for number in range(20) for text in texts(str(number), 100)]) == 2000


def test_no_limit_keeps_nothing(tmp_path: Path) -> None:
    """The setting 0 turns the cache off."""
    cache = VectorCache(tmp_path / "cache", 0)
    cache.stage("run", "a", entries(["one"]))
    assert cache.publish("run") == 0
    cache.prune()
    assert cache.empty
    assert not (tmp_path / "cache").exists()


def test_a_crash_between_the_steps_loses_no_more_than_the_cache(tmp_path: Path) -> None:
    """Half-written folders are swept; a run that was not published yet can be, after the next start."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("run", "a", entries(["one"]))
    shutil.copytree(tmp_path / "staged" / "run" / "a", tmp_path / ".segment-half")
    cache = VectorCache(tmp_path, LIMIT)
    cache.prune()
    assert not (tmp_path / ".segment-half").exists()
    assert cache.publish("run") == 1


def test_runs_that_never_ended_are_given_up(tmp_path: Path) -> None:
    """After a month; a younger one is kept."""
    cache = VectorCache(tmp_path, LIMIT)
    for run in ("old", "young"):
        cache.stage(run, "a", entries([run]))
    old = tmp_path / "staged" / "old"
    os.utime(old, (0, old.stat().st_mtime - STAGED_SECONDS - 60))
    cache.prune()
    assert [path.name for path in (tmp_path / "staged").iterdir()] == ["young"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "x" * 129, "ü"])
def test_a_run_has_a_plain_name(tmp_path: Path, name: str) -> None:
    """It becomes a folder's name."""
    with pytest.raises(InvalidArgument) as error:
        VectorCache(tmp_path, LIMIT).publish(name)
    assert error.value.field == "run"


def test_lookups_go_on_while_runs_end(tmp_path: Path) -> None:
    """What was known stays known while segments are merged underneath."""
    cache = VectorCache(tmp_path, LIMIT)
    cache.stage("first", "a", entries(["known"]))
    cache.publish("first")
    stop, missed = threading.Event(), list[int]()

    def ask() -> None:
        while not stop.is_set():
            if cache.find([key("model", "known")]) is None:
                missed.append(1)

    asker = threading.Thread(target=ask)
    asker.start()
    for number in range(30):
        cache.stage(f"run-{number}", "a", entries([f"text {number}"]))
        cache.publish(f"run-{number}")
    stop.set()
    asker.join()
    assert not missed
