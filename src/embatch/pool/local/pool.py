"""The pool on this machine: for each model a bulk process, niced, and a query process of one thread.

Both start on first use. The lanes share nothing but the CPU, and the kernel's scheduler prefers the query
process, so neither a long micro-batch nor a poisonous one delays a query.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from embatch.engine.protocol import ModelChanged, replaced
from embatch.errors import EngineTrouble
from embatch.events import EngineUnloaded, ModelReplaced, emit
from embatch.pool.embedding import Embedding
from embatch.pool.kept import Kept
from embatch.pool.local import memory
from embatch.pool.local.lane import BULK, QUERY, REFERENCE, Lane, Quarantine
from embatch.pool.local.supervisor import Supervisor
from embatch.pool.protocol import CLOSING, TICK, Origin, Referenced, Stopped
from embatch.shard import Done, results_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description
    from embatch.pool.local.process import EngineProcess
    from embatch.pool.protocol import EngineStatus
    from embatch.settings import Settings


_CALIBRATED: Final = 64
"""Requests that a shard must have before some of them are embedded again to see what one at a time costs."""
_SAMPLED: Final = 8
_SLOTS: Final = 8
_QUARANTINED: Final = 2
"""Shards at once that have a process of their own: each holds the model's weights."""


def _one_by_one(lane: Lane, requests: pa.RecordBatch) -> tuple[pa.RecordBatch, Done]:
    """Embed each text by itself while the lane does nothing else; return the results and what they took."""
    total = Done(0)

    def progress(done: Done) -> None:
        nonlocal total
        total += done

    return Embedding(lane, requests, progress, alone=True).run(), total


class LocalPool:
    """Runs engines in child processes of this one. See `Pool`."""

    def __init__(self, settings: Settings, *, environment: Mapping[str, str] | None = None) -> None:
        """Start nothing yet. `environment` is added to that of every engine process."""
        self._settings = settings
        self._supervisor = Supervisor(settings, dict(environment or {}))
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._idle = threading.Condition()
        self._busy = 0
        self._closing = False
        self._unbatched: dict[str, float] = {}
        self._calibrated: set[str] = set()
        self._kept = Kept()
        self._quarantine = threading.BoundedSemaphore(_QUARANTINED)
        self._limit = memory.allowed(int(settings.engine_bytes))
        self._users: Counter[str] = Counter()
        """How many use the engines of a model just now."""
        self._leaving: Collection[str] = ()
        """Models whose engines go once nobody uses them, for want of memory."""
        self._uses = itertools.count()
        self._used: dict[tuple[str, str], int] = {}

    @property
    def slots(self) -> int:
        """As `Pool.slots`: shards of several batches wait in the engine for their turns, not before it."""
        return _SLOTS

    @property
    def starts(self) -> int:
        """Engine processes started so far, those for suspects included."""
        return self._supervisor.starts

    def loaded(self) -> Collection[str]:
        """As `Pool.loaded`."""
        with self._lock:
            lanes = [(name, lane) for (name, kind), lane in self._lanes.items() if kind == BULK]
            leaving = self._leaving
        return {name for name, lane in lanes if name not in leaving and lane.loaded() is not None}

    def begin(self, model: ServedModel) -> None:
        """Start loading a model's bulk engine without waiting for it; what goes wrong shows on first use."""
        with suppress(EngineTrouble):
            self._lane(model, BULK).begin()

    def renew(self, model: ServedModel) -> None:
        """Load what a model is now: whoever asks next gets an engine that was begun after now."""
        with self._lock:
            lanes = [lane for (name, _), lane in self._lanes.items() if name == model.name]
        for lane in lanes:
            lane.renew()

    def describe(self, model: ServedModel) -> Description:
        """As `Pool.describe`: from a lane that is up, else by loading the bulk engine."""
        with self._lock:
            known = [self._lanes.get((model.name, name)) for name in (BULK, QUERY)]
        up = (lane for lane in known if lane is not None and lane.status().state == "ready")
        with self._working(model):  # one that loads is not idle
            return next(up, self._lane(model, BULK)).process().await_ready()

    def embed(
        self,
        model: ServedModel,
        requests: pa.RecordBatch,
        *,
        on_progress: Callable[[Done], None],
        stop: threading.Event,
        suspect: bool = False,
        origin: Origin | None = None,
    ) -> pa.RecordBatch | None:
        """As `Pool.embed`: the engine process takes them in turns, and encodes some while others run."""
        lane = self._lane(model, BULK)
        try:
            with self._working(model), self._apart(lane, stop, suspect=suspect) as processes:
                found = Embedding(
                    processes,
                    requests,
                    on_progress,
                    stop,
                    doubted=suspect,
                    origin=origin or Origin(),
                    kept=self._kept,
                ).run()
                self._calibrate(model, requests)
                return found
        except Stopped:
            return None

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """As `Pool.query`."""
        with self._working(model):
            return Embedding(self._lane(model, QUERY), requests).run()

    def reference(self, model: ServedModel, requests: pa.RecordBatch) -> Referenced:
        """As `Pool.reference`: the bulk engine where it computes in float32, else one of its own."""
        with self._working(model):
            lane = self._lane(model, BULK)
            about = lane.process().await_ready()
            if about.precision != "f32" and model.spec.engine != "remote":
                lane = self._lane(model, REFERENCE)
            if not requests.num_rows:
                with suppress(EngineTrouble):  # whoever brings texts is told
                    lane.begin()
                nothing = pa.RecordBatch.from_pylist([], schema=results_schema(about.dimensions))
                return Referenced(nothing, 0, 0.0, about)
            found, total = _one_by_one(lane, requests)
            return Referenced(found, total.tokens, total.cpu_seconds, about)

    def count(self, model: ServedModel, requests: pa.RecordBatch) -> NDArray[np.int32]:
        """As `Pool.count`, in the bulk engine."""
        with self._working(model):
            return Embedding(self._lane(model, BULK), requests).count()

    def unbatched_cost(self, model: str) -> float | None:
        """As `Pool.unbatched_cost`."""
        return self._unbatched.get(model)

    def _calibrate(self, model: ServedModel, requests: pa.RecordBatch) -> None:
        """Measure once what texts cost the bulk engine one at a time, on a few of the first large shard."""
        if requests.num_rows < _CALIBRATED or model.spec.engine == "remote":
            return
        with self._lock:
            if model.name in self._calibrated:
                return
            self._calibrated.add(model.name)
        step = requests.num_rows // _SAMPLED
        some = requests.take(pa.array(range(0, step * _SAMPLED, step)))
        with suppress(EngineTrouble):
            _, total = _one_by_one(self._lane(model, BULK), some)
            if total.tokens:
                self._unbatched[model.name] = total.cpu_seconds / total.tokens

    def troubles(self) -> Mapping[str, str]:
        """As `Pool.troubles`: what the bulk lanes say."""
        return {one.model: one.message for one in self.status() if one.lane == BULK and one.message}

    def status(self) -> Sequence[EngineStatus]:
        """As `Pool.status`."""
        with self._lock:
            lanes = list(self._lanes.values())
        return [lane.status() for lane in lanes]

    def close(self, grace: float) -> None:
        """As `Pool.close`."""
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: self._busy == 0, timeout=grace)
        self._supervisor.close()

    def _lane(self, model: ServedModel, name: str) -> Lane:
        with self._lock:
            key = (model.name, name)
            if key not in self._lanes:
                told = partial(self._look_at, model.name)
                self._lanes[key] = Lane(model, name, self._settings, self._supervisor, told)
            lane, self._used[key] = self._lanes[key], next(self._uses)
        if not lane.begun:
            self._make_room(model.name, memory.expected(model.spec.model))
        return lane

    def _look_at(self, model: str, process: EngineProcess) -> None:
        """Do what has to be done once an engine is loaded."""
        self._compare(model, process)
        self._make_room(model)

    def _make_room(self, keep: str | None = None, needed: int = 0) -> None:
        """Unload the least recently used engines of other models, where all together are too large.

        Kept is a model of one's choice, else that which was used last. Those that somebody uses go when they
        are idle, and the one that is kept stays though it be too large alone: no work is ended for another.
        """
        with self._lock:
            lanes, used = dict(self._lanes), dict(self._used)
        pids = {key: lane.status().pid for key, lane in lanes.items()}
        engines = [
            memory.LoadedEngine(*key, memory.taken(pid), used[key])
            for key, pid in pids.items()
            if pid is not None
        ]
        if keep is None:
            keep = max(engines, key=lambda engine: engine.used).model if engines else ""
        with self._lock:  # nobody begins to use one meanwhile
            busy = {name for name, count in self._users.items() if count}
            found = memory.unloading(engines, self._limit, needed=needed, keep=keep, busy=busy)
            self._leaving = found.busy
            for engine in found.idle:
                lanes[engine.model, engine.lane].renew()
        for engine in found.idle:
            emit(EngineUnloaded(model=engine.model, lane=engine.lane, bytes=engine.bytes))

    def _compare(self, model: str, process: EngineProcess) -> None:
        """Have lanes work with one state of the model's files, the newest that any has loaded.

        Queries would else be answered by another model than the batches they are looked up in.
        """
        about = process.await_ready()
        with self._lock:
            lanes = [lane for (name, _), lane in self._lanes.items() if name == model]
        for lane in lanes:
            other = lane.loaded()
            if other is not None and other is not process and replaced(about, other.await_ready()):
                older = min(process, other, key=attrgetter("began"))
                emit(ModelReplaced(model=model, old=older.pid))
                older.retire()

    @contextmanager
    def _apart(self, lane: Lane, stop: threading.Event, *, suspect: bool) -> Iterator[Lane | Quarantine]:
        """Yield the lane, or to a suspect shard what nobody else uses, once there may be one more."""
        if not suspect:
            yield lane
            return
        while not self._quarantine.acquire(timeout=TICK):
            if stop.is_set():
                raise Stopped
        apart = Quarantine(lane)
        try:
            yield apart
        finally:
            apart.close()
            self._quarantine.release()

    @contextmanager
    def _working(self, model: ServedModel) -> Iterator[None]:
        with self._idle:
            if self._closing:
                raise EngineTrouble(CLOSING)
            self._busy += 1
        with self._lock:
            self._users[model.name] += 1
        try:
            yield
        except ModelChanged:
            self.renew(model)  # whichever lane found out: the others ask the same endpoint
            raise
        finally:
            with self._lock:
                self._users[model.name] -= 1
                leaves = not self._users[model.name] and model.name in self._leaving
            if leaves:
                self._make_room()
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()
