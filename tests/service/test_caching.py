"""Batches of runs and the vector cache: what an ended run computed is not computed again, and agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from service_rig import Rig

from embatch.engine.models import Catalog, serve_model
from embatch.pool.local import LocalPool
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.shard import PRECOMPUTED, RequestRow, precomputed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch.batch import Batch

TEXTS = [f"text number {number}" for number in range(40)]


def _catalog(**options: str) -> Catalog:
    return Catalog([serve_model("cached", engine="hashing", options=options)])


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Rig]:
    """A service with real engine processes."""
    rig = Rig(tmp_path / "data", catalog=_catalog(), pool=LocalPool)
    yield rig
    rig.stop()


def _embedded(rig: Rig, run: str | None, texts: list[str]) -> tuple[Batch, list[object]]:
    batch = rig.done(rig.service.submit_inline(Draft(run=run), [RequestRow(text) for text in texts]).name)
    (part,) = rig.service.results(batch.name).parts
    return batch, part.column("embedding").to_pylist()


def test_a_later_run_is_answered_from_an_earlier_one(local: Rig) -> None:
    """Only once the earlier one has ended; counts, tokens and vectors are those of the work itself."""
    first, vectors = _embedded(local, "first", TEXTS)
    assert first.usage.cached_request_count == 0
    assert first.usage.token_count > 0
    local.service.delete(first.name)
    meanwhile, _ = _embedded(local, "meanwhile", TEXTS)
    assert meanwhile.usage.cached_request_count == 0
    assert local.service.publish("first") == len(TEXTS)
    again, cached = _embedded(local, "second", [*TEXTS, "a new one"])
    assert again.usage.cached_request_count == len(TEXTS)
    assert again.usage.token_count > first.usage.token_count
    assert again.batch_stats.successful_request_count == len(TEXTS) + 1
    assert cached[:-1] == vectors


def test_the_cache_is_for_runs(local: Rig) -> None:
    """A batch that belongs to no run is neither answered from it nor kept in it."""
    first, _ = _embedded(local, None, TEXTS)
    local.service.delete(first.name)
    assert local.service.publish("first") == 0
    second, _ = _embedded(local, "run", TEXTS)
    local.service.delete(second.name)
    local.service.publish("run")
    third, _ = _embedded(local, None, TEXTS)
    assert third.usage.cached_request_count == 0


def test_what_a_shard_was_given_stays_in_it(local: Rig) -> None:
    """The vectors stand in the payload: an attempt after the cache is gone gives the same."""
    first, _ = _embedded(local, "first", TEXTS)
    local.service.delete(first.name)
    local.service.publish("first")
    second = local.service.submit_inline(Draft(run="second"), [RequestRow(text) for text in TEXTS])
    (shard,) = local.store.shards(second.name.removeprefix("batches/"))
    payload = local.blobs.read(shard.payload.path, shard.payload.digest)
    assert precomputed(payload).all()
    assert set(PRECOMPUTED) <= set(payload.schema.names)


def test_other_numerics_never_hit(local: Rig, tmp_path: Path) -> None:
    """The same name over another engine configuration is another identity."""
    first, _ = _embedded(local, "first", TEXTS)
    local.service.delete(first.name)
    local.service.publish("first")
    local.stop()
    for options in ({"dimensions": "32"}, {"max_tokens": "7"}):
        other = Rig(tmp_path / "data", catalog=_catalog(**options), pool=LocalPool)
        try:
            batch, _ = _embedded(other, "second", TEXTS)
            assert batch.usage.cached_request_count == 0
        finally:
            other.stop()


def test_what_was_staged_outlives_the_service(local: Rig) -> None:
    """A run may end under another service than the one that embedded it."""
    first, vectors = _embedded(local, "first", TEXTS)
    local.service.delete(first.name)
    local.restart(_catalog())
    assert local.service.publish("first") == len(TEXTS)
    again, cached = _embedded(local, "second", TEXTS)
    assert again.usage.cached_request_count == len(TEXTS)
    assert cached == vectors


def test_a_cut_text_is_refused_from_the_cache_too(local: Rig) -> None:
    """`auto_truncate` false fails it, whoever embedded it before."""
    long = "word " * 5000
    first, _ = _embedded(local, "first", [long, "short"])
    local.service.delete(first.name)
    local.service.publish("first")
    rows = [RequestRow(long, auto_truncate=False), RequestRow(long), RequestRow("short", auto_truncate=False)]
    batch = local.done(local.service.submit_inline(Draft(run="second"), rows).name)
    (part,) = local.service.results(batch.name).parts
    assert part.column("error_reason").to_pylist() == ["TOO_LONG", None, None]
    assert part.column("truncated").to_pylist() == [False, True, False]
    assert batch.usage.cached_request_count == 3


def test_the_cache_can_be_turned_off(tmp_path: Path) -> None:
    """With the setting 0 every run computes for itself."""
    rig = Rig(
        tmp_path / "data", catalog=_catalog(), pool=LocalPool, settings=replace(Settings(), cache_bytes=0)
    )
    try:
        first, _ = _embedded(rig, "first", TEXTS)
        rig.service.delete(first.name)
        assert rig.service.publish("first") == 0
        again, _ = _embedded(rig, "second", TEXTS)
        assert again.usage.cached_request_count == 0
    finally:
        rig.stop()
