"""A service in its parts: nothing begins by itself, and who answers need not be who works."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from service_rig import DIMENSIONS, MODEL, Signals, ToldPool, WatchedBlobs, WatchedStore, large, rows, vector
from service_world import Clock

from embatch.engine.models import Catalog
from embatch.server import compose
from embatch.service.intake import Draft
from embatch.service.workers import Elsewhere
from embatch.settings import Settings
from embatch.shard import RequestRow
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch.service.application import Service


@dataclass
class Place:
    """A data folder, and what parts on it stand on; each part has a pool of its own, as in a process."""

    folder: Path
    signals: Signals = field(default_factory=Signals)
    stores: list[WatchedStore] = field(default_factory=list)

    def held(self) -> compose.Held:
        """Open it once more."""
        blobs = WatchedBlobs(self.folder)
        blobs.ensure_layout()
        store = WatchedStore.open(f"sqlite:///{self.folder / 'embatch.db'}")
        store.signals, store.before, store.after = self.signals, {}, {}
        self.stores.append(store)
        return compose.Held(store, blobs, Catalog([MODEL]), ToldPool(self.signals), Settings(), Clock())

    def service_of(self, held: compose.Held) -> Service:
        """Return a service that answers and does not work."""
        return compose.service(held, Elsewhere(), self.folder / "cache")

    def close(self) -> None:
        """Close what was opened."""
        for store in self.stores:
            store.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty data folder."""
    made = Place(tmp_path / "data")
    yield made
    made.close()


def pool_of(held: compose.Held) -> ToldPool:
    """Return the pool of parts."""
    assert isinstance(held.pool, ToldPool)
    return held.pool


def test_a_service_that_only_answers_has_its_work_done_by_a_worker_without_one(place: Place) -> None:
    """One after the other over one folder: accepted here, worked there, read here again."""
    held = place.held()
    service = place.service_of(held)
    service.start()
    inline = service.submit_inline(Draft(), [*rows(3), RequestRow("")]).name
    token = service.uploads.begin(None, None, "application/jsonl", None)
    service.uploads.append(token, 0, b'{"key":"k","request":{"content":{"parts":[{"text":"line"}]}}}\n')
    file = service.submit_file(Draft(), f"files/{service.uploads.finish(token).id}").name
    place.signals.until(lambda: service.get(file).batch_stats.request_count == 1)
    assert service.get(inline).state is State.PENDING
    assert pool_of(held).calls == []
    service.close(30)

    worker_held = place.held()
    worker = compose.dispatcher(worker_held)
    worker.start()
    place.signals.until(
        lambda: all(worker_held.store.get(n.removeprefix("batches/")).state.final for n in (inline, file))
    )
    worker.close(30)

    again = place.service_of(place.held())
    done = again.get(inline)
    assert (done.state, done.batch_stats.successful_request_count) == (State.COMPLETED, 3)
    found = [row for part in again.results(inline).parts for row in part.to_pylist()]
    assert [row["embedding"] for row in found] == [*(vector(f"text {at}") for at in range(3)), None]
    assert len(found[0]["embedding"]) == DIMENSIONS
    (row,) = (row for part in again.results(file).parts for row in part.to_pylist())
    assert (row["key"], row["embedding"]) == ("k", vector("line"))


def test_they_work_side_by_side_and_a_cancel_is_final_for_both(place: Place) -> None:
    """What the worker still brings of a batch that the service has cancelled is refused."""
    service_held, worker_held = place.held(), place.held()
    service, worker = place.service_of(service_held), compose.dispatcher(worker_held)
    pool = pool_of(worker_held)
    pool.gated = True
    service.start()
    worker.start()
    try:
        name = service.submit_inline(Draft(), large(1)).name
        worker.wake()
        place.signals.until(lambda: pool.running == 1)
        pool.allow(1)
        place.signals.until(lambda: pool.micro_batches == 1)
        assert service.get(name).batch_stats.uncommitted_request_count == 0  # nobody here knows of them
        cancelled = service.cancel(name)
        pool.open()
        place.signals.until(lambda: pool.running == 0 and not worker.at_work())
        assert service.get(name) == cancelled
        assert cancelled.state is State.CANCELLED
        other = service.submit_inline(Draft(), rows(2)).name
        worker.wake()
        place.signals.until(lambda: service.get(other).done)
        assert service.get(other).batch_stats.successful_request_count == 2
        assert service.health().ready
    finally:
        pool.open()
        worker.close(30)
        service.close(30)


def test_parts_that_are_put_together_have_begun_nothing(place: Place) -> None:
    """No thread, no claim, nothing removed: that comes with `recover` and `start`, when it is told to."""
    held = place.held()
    stray = place.folder / "batches" / "stray"
    stray.mkdir()
    before = set(threading.enumerate())
    worker = compose.dispatcher(held)
    service = compose.service(held, worker, place.folder / "cache")
    name = service.submit_inline(Draft(), rows(1)).name
    assert set(threading.enumerate()) == before
    assert stray.is_dir()
    assert pool_of(held).calls == []
    held.recover()
    assert not stray.exists()
    assert (place.folder / name).is_dir()
    service.start()
    place.signals.until(lambda: service.get(name).done)
    service.close(30)
    assert set(threading.enumerate()) == before


def test_a_service_beside_another_takes_nothing_from_it(place: Place) -> None:
    """Starting one is no recovery: what the other has claimed stays claimed, and its files stay."""
    worker_held = place.held()
    worker, pool = compose.dispatcher(worker_held), pool_of(worker_held)
    pool.gated = True
    first = compose.service(worker_held, worker, place.folder / "cache")
    first.start()
    name = first.submit_inline(Draft(), rows(2)).name
    place.signals.until(lambda: pool.running == 1)
    second = place.service_of(place.held())
    second.start()
    (shard,) = worker_held.store.shards(name.removeprefix("batches/"))
    assert (shard.state, shard.attempt) == ("claimed", 1)
    pool.open()
    place.signals.until(lambda: second.get(name).done)
    assert second.get(name).batch_stats.successful_request_count == 2
    second.close(30)
    first.close(30)
