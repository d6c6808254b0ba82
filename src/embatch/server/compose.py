"""The parts of a service put together. Nothing here begins anything: see `Service.start`.

held ─┬─ dispatcher ────────┐  works shards: alone in a process, it is a worker
└─ service(workers) ◄─┘  answers, plans and sweeps: with `Elsewhere` for workers, it only answers
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.backoff import patience
from embatch.service.application import Service, ServiceParts
from embatch.service.caching import Cached
from embatch.service.dispatcher import Dispatcher
from embatch.service.interactive import Interactive
from embatch.service.planner import Planner
from embatch.service.recovery import recover
from embatch.service.registry import Registry
from embatch.service.sweeps import SWEEP_SECONDS, AgeClock, Ageing, since_boot
from embatch.service.uploads import Uploads
from embatch.store.cache import VectorCache
from embatch.store.claims import SoleClaims
from embatch.store.model_names import ModelNames
from embatch.store.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.service.workers import Workers
    from embatch.settings import Settings
    from embatch.store.blobs import FolderBlobs
    from embatch.store.store import Store


@dataclass(frozen=True, slots=True)
class Held:
    """What parts stand on: a store and its blobs, the models and where they run, and the time."""

    store: Store
    blobs: FolderBlobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    now: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic
    """The clock of pauses after failures."""
    patience: Callable[[int], float] = patience
    """Seconds until what failed so often in a row is tried again."""

    def recover(self) -> None:
        """Take up what the last service left: for whoever has store and blobs to itself; see `recovery`."""
        recover(self.store, self.blobs, Spool(self.blobs))


def dispatcher(held: Held) -> Dispatcher:
    """Return what works the shards of a store, beside a service or by itself."""
    claims = SoleClaims(held.store, held.now)
    return Dispatcher(
        claims, held.blobs, held.catalog, held.pool, held.settings, held.patience, held.monotonic
    )


def registry(held: Held, place: Path, renew: Callable[[ServedModel], object]) -> Registry:
    """Return what serves the models that clients ask for, with those of before.

    For a private service, before anything is worked.

    Args:
        held: what the service stands on.
        place: its data folder.
        renew: told of a model whose files have changed.
    """
    made = Registry(held.catalog, ModelNames(place), renew, int(held.settings.threads))
    made.restore(held.store.models_of_batches())
    return made


def service(
    held: Held,
    workers: Workers,
    cache: Path,
    *,
    steady: Callable[[], float] = since_boot,
    sweep_seconds: float = SWEEP_SECONDS,
    sweeps: Sequence[Callable[[], object]] = (),
) -> Service:
    """Return a service.

    Args:
        held: what it stands on.
        workers: who works what it accepts: a dispatcher, or `Elsewhere` where another process does.
        cache: folder of this machine for vectors that runs computed.
        steady: seconds that nobody sets, those since the machine was switched on.
        sweep_seconds: the pause between two looks at what has grown old.
        sweeps: what else is done every few seconds.
    """
    store, blobs, settings, now = held.store, held.blobs, held.settings, held.now
    uploads = Uploads(store, blobs, Spool(blobs), settings, now)
    cached = Cached(VectorCache(cache, settings.cache_bytes), held.pool, blobs)
    planner = Planner(
        store, blobs, held.catalog, held.pool, settings, now, cached, workers.wake, held.patience
    )

    def expired(batch_id: str) -> None:
        workers.cancel(batch_id)
        planner.stop(batch_id)

    clock = AgeClock(now, steady)
    ageing = Ageing(store, blobs, settings, clock, expired=expired, seconds=sweep_seconds)
    ageing.sweeps.append(lambda: uploads.sweep(clock.by(settings.file_expiry)))
    ageing.sweeps.append(cached.cache.prune)
    ageing.sweeps.extend(sweeps)
    interactive = Interactive(held.catalog, held.pool, settings)
    return Service(
        ServiceParts(
            store=store,
            blobs=blobs,
            catalog=held.catalog,
            pool=held.pool,
            settings=settings,
            now=now,
            workers=workers,
            planner=planner,
            ageing=ageing,
            cached=cached,
            uploads=uploads,
            interactive=interactive,
        )
    )
