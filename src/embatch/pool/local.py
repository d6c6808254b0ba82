"""The pool on this machine: for each model a bulk process, niced, and a query process of one thread.

Both start on first use. The lanes share nothing but the CPU, and the kernel's scheduler prefers the query
process, so neither a long micro-batch nor a poisonous one delays a query.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from embatch.engine.packing import distinct
from embatch.engine.texts import compose
from embatch.errors import Code, EngineTrouble, Reason, RequestError
from embatch.pool.lane import BULK, QUERY, Apart, Lane
from embatch.pool.process import CLOSING, Stopped
from embatch.pool.supervisor import Supervisor
from embatch.pool.work import ShardWork
from embatch.shard import results_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description
    from embatch.pool.lane import EngineStatus, Processes
    from embatch.pool.work import Outcome
    from embatch.settings import Settings

TOO_LONG: Final = RequestError(
    Code.INVALID_ARGUMENT,
    Reason.TOO_LONG,
    "the text is longer than the model takes: shorten it, or leave autoTruncate out to have it cut",
)
_COMPOSED: Final = ("text", "task_type", "title")


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

    @property
    def starts(self) -> int:
        """Engine processes started so far, those for suspects included."""
        return self._supervisor.starts

    def begin(self, model: ServedModel) -> None:
        """Start loading a model's bulk engine without waiting for it; what goes wrong shows on first use."""
        with suppress(EngineTrouble):
            self._lane(model, BULK).begin()

    def describe(self, model: ServedModel) -> Description:
        """As `Pool.describe`: from a lane that is up, else by loading the bulk engine."""
        with self._lock:
            known = [self._lanes.get((model.name, name)) for name in (BULK, QUERY)]
        up = (lane for lane in known if lane is not None and lane.status().state == "ready")
        return next(up, self._lane(model, BULK)).process().await_ready()

    def embed(
        self,
        model: ServedModel,
        requests: pa.RecordBatch,
        *,
        on_progress: Callable[[int], None],
        stop: threading.Event,
        suspect: bool = False,
    ) -> pa.RecordBatch | None:
        """As `Pool.embed`. Two at once overlap: the second is encoded while the first runs."""
        lane = self._lane(model, BULK)
        apart = Apart(lane) if suspect else None
        try:
            with self._working():
                return _embedded(apart or lane, requests, on_progress, stop, doubted=suspect)
        except Stopped:
            return None
        finally:
            if apart is not None:
                apart.close()

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """As `Pool.query`."""
        with self._working():
            return _embedded(
                self._lane(model, QUERY), requests, lambda _: None, threading.Event(), doubted=False
            )

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
                self._lanes[key] = Lane(model, name, self._settings, self._supervisor)
            return self._lanes[key]

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._idle:
            if self._closing:
                raise EngineTrouble(CLOSING)
            self._busy += 1
        try:
            yield
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()


def _embedded(
    processes: Processes,
    requests: pa.RecordBatch,
    on_progress: Callable[[int], None],
    stop: threading.Event,
    *,
    doubted: bool,
) -> pa.RecordBatch:
    """Embed the sound requests, equal texts once, and return results for all."""
    about = processes.process(stop).await_ready()
    texts, task_types, titles = (requests.column(name).to_pylist() for name in _COMPOSED)
    sound = [at for at, text in enumerate(texts) if text is not None]
    on_progress(len(texts) - len(sound))
    merged = distinct(compose(texts[at] or "", task_types[at], titles[at], about.prompts) for at in sound)
    repeats = np.bincount(np.array(merged.of, np.int64), minlength=len(merged.texts))

    def finished(rows: Sequence[int]) -> None:
        on_progress(int(repeats[list(rows)].sum()))

    work = ShardWork(merged.texts, about.dimensions, processes, stop, finished, doubted)
    return _results(requests, sound, merged.of, work.run())


def _results(
    requests: pa.RecordBatch, sound: Sequence[int], of: Sequence[int], outcome: Outcome
) -> pa.RecordBatch:
    """Put each text's outcome at every request that has it; faulty requests keep their fault."""
    count, dimensions = requests.num_rows, outcome.vectors.shape[1]
    place = np.full(count, -1, np.int64)
    place[list(sound)] = list(of)
    errors = [requests.column(name).to_pylist() for name in ("error_code", "error_reason", "error_message")]
    may_cut = requests.column("auto_truncate").to_pylist()
    for at in sound:
        error = outcome.errors.get(int(place[at]))
        if error is None and not may_cut[at] and outcome.truncated[place[at]]:
            error = TOO_LONG
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
