"""The pool on this machine: for each model a bulk process, niced, and a query process of one thread.

Both start on first use. The lanes share nothing but the CPU, and the kernel's scheduler prefers the query
process, so neither a long micro-batch nor a poisonous one delays a query.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from embatch.backoff import Backoff
from embatch.engine.packing import distinct
from embatch.engine.texts import compose
from embatch.errors import EngineTrouble
from embatch.pool.process import EngineProcess
from embatch.pool.work import ShardWork, Stopped
from embatch.shard import results_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description
    from embatch.pool.work import Outcome
    from embatch.settings import Settings

BULK, QUERY = "bulk", "query"
_RESTART: Final = Backoff(first=0.5, limit=30.0, attempts=1_000_000)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How one engine process does."""

    model: str
    lane: str
    pid: int | None
    state: str
    """`starting`, `ready`, or `broken`: it does not come up, and `message` says why."""
    restarts: int
    message: str | None


class _Lane:
    """The one process of a model in a lane, replaced when it is gone."""

    def __init__(self, model: ServedModel, name: str, settings: Settings) -> None:
        self.model, self.name, self.settings = model, name, settings
        bulk = name == BULK
        self._spec = replace(model.spec, threads=settings.threads if bulk else 1)
        self._nice = int(settings.bulk_nice) if bulk else 0
        self._lock = threading.Lock()
        self._process: EngineProcess | None = None
        self._others: set[EngineProcess] = set()
        self._failures = 0
        self._not_before = 0.0
        self._message: str | None = None
        self._starts = 0
        self._closed = False

    def process(self) -> EngineProcess:
        """Return the live process, loaded; start one if there is none.

        Raises:
            EngineTrouble: it does not come up, or did not a moment ago: between two tries lies a pause.
        """
        with self._lock:
            if self._closed:
                raise EngineTrouble("the service is closing")
            if self._process is not None and self._process.alive:
                return self._process
            wait = self._not_before - time.monotonic()
            if wait > 0:
                raise EngineTrouble(self._message or "the engine is broken", retry_after=wait)
            self._process = self._loaded()
            return self._process

    def fresh(self) -> EngineProcess:
        """Return a process of its own, loaded, for suspects; the caller ends it."""
        with self._lock:
            if self._closed:
                raise EngineTrouble("the service is closing")
            self._others = {other for other in self._others if other.alive}
            process = self._loaded()
            self._others.add(process)
            return process

    def _loaded(self) -> EngineProcess:
        process = EngineProcess(self._spec, self.settings, self._nice)
        self._starts += 1
        self._process_starting = process
        try:
            process.await_ready()
        except EngineTrouble as error:
            self._failures += 1
            pause = _RESTART.delay(self._failures, 1.0) or 0.0
            self._not_before = time.monotonic() + pause
            self._message = error.message
            raise EngineTrouble(error.message, retry_after=pause) from None
        self._failures, self._message = 0, None
        return process

    def status(self) -> EngineStatus:
        process = self._process
        alive = process is not None and process.alive
        state = "broken" if self._message else "ready" if alive else "starting"
        pid = process.pid if process is not None and alive else None
        return EngineStatus(self.model.name, self.name, pid, state, max(0, self._starts - 1), self._message)

    def close(self) -> None:
        self._closed = True
        for process in (self._process, getattr(self, "_process_starting", None), *self._others):
            if process is not None:
                process.kill()


class LocalPool:
    """Runs engines in child processes of this one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._busy = 0
        self._idle = threading.Condition()

    def describe(self, model: ServedModel) -> Description:
        """Return what is loaded for a model, loading the bulk engine if neither is."""
        for name in (BULK, QUERY):
            lane = self._lanes.get((model.name, name))
            if lane is not None and lane.status().state == "ready":
                with contextlib.suppress(EngineTrouble):
                    return lane.process().await_ready()
        return self._lane(model, BULK).process().await_ready()

    def embed(
        self,
        model: ServedModel,
        requests: pa.RecordBatch,
        *,
        on_progress: Callable[[int], None],
        stop: threading.Event,
        suspect: bool = False,
    ) -> pa.RecordBatch | None:
        """As `Pool.embed`."""
        try:
            return self._work(self._lane(model, BULK), requests, on_progress, stop, suspect=suspect)
        except Stopped:
            return None

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """As `Pool.query`."""
        return self._work(
            self._lane(model, QUERY), requests, lambda _: None, threading.Event(), suspect=False
        )

    def status(self) -> Sequence[EngineStatus]:
        """As `Pool.status`."""
        return [lane.status() for lane in list(self._lanes.values())]

    def close(self, grace: float) -> None:
        """As `Pool.close`."""
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, timeout=grace)
        for lane in list(self._lanes.values()):
            lane.close()

    def _lane(self, model: ServedModel, name: str) -> _Lane:
        with self._lock:
            return self._lanes.setdefault((model.name, name), _Lane(model, name, self._settings))

    def _work(
        self,
        lane: _Lane,
        requests: pa.RecordBatch,
        on_progress: Callable[[int], None],
        stop: threading.Event,
        *,
        suspect: bool,
    ) -> pa.RecordBatch:
        columns = {name: requests.column(name).to_pylist() for name in ("text", "task_type", "title")}
        sound = [at for at, text in enumerate(columns["text"]) if text is not None]
        on_progress(len(columns["text"]) - len(sound))
        own = lane.fresh() if suspect else None
        with self._idle:
            self._busy += 1
        try:
            about = (own or lane.process()).await_ready()
            composed = distinct(
                compose(
                    str(columns["text"][at]), columns["task_type"][at], columns["title"][at], about.prompts
                )
                for at in sound
            )
            repeats = (
                np.bincount(composed.of, minlength=len(composed.texts)) if sound else np.zeros(0, np.int64)
            )
            work = ShardWork(
                composed.texts,
                about.dimensions,
                self._settings,
                on_rows=lambda rows: on_progress(int(repeats[list(rows)].sum())),
                stop=stop,
                process=(lambda: own if own is not None and own.alive else lane.fresh())
                if suspect
                else lane.process,
                fresh=lane.fresh,
            )
            outcome = work.run() if composed.texts else work.outcome
            return _results(requests, sound, composed.of, outcome, about.dimensions)
        finally:
            if own is not None:
                own.kill()
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()


def _results(
    requests: pa.RecordBatch, sound: Sequence[int], of: Sequence[int], outcome: Outcome, dimensions: int
) -> pa.RecordBatch:
    """Put each distinct text's outcome at every request with the text; faulty requests keep their fault."""
    count = requests.num_rows
    place = np.full(count, -1, np.int64)
    place[list(sound)] = list(of)
    errors = [requests.column(name).to_pylist() for name in ("error_code", "error_reason", "error_message")]
    for at in sound:
        error = outcome.errors.get(int(place[at]))
        if error is not None:
            reason = error.reason.value if error.reason else None
            errors[0][at], errors[1][at], errors[2][at] = error.code.number, reason, error.message
    good = np.array([code is None for code in errors[0]], np.bool_)
    vectors = np.zeros((count, dimensions), np.float32)
    tokens = np.zeros(count, np.int32)
    truncated = np.zeros(count, np.bool_)
    vectors[good] = outcome.vectors[place[good]]
    tokens[good] = outcome.tokens[place[good]]
    truncated[good] = outcome.truncated[place[good]]
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), dimensions, mask=pa.array(~good)
    )
    return pa.RecordBatch.from_arrays(
        [
            requests.column("index"),
            embedding,
            pa.array(tokens),
            pa.array(truncated),
            pa.array(errors[0], pa.int32()),
            pa.array(errors[1], pa.string()),
            pa.array(errors[2], pa.string()),
        ],
        schema=results_schema(dimensions),
    )
