"""A second pool, so that the first is not the only thing that passes for one: engines of this very process.

A worker is an engine, a job a thread. No process can die here, so none is replaced; all else a pool must do
it does, by what any pool shares: `pool.embedding` and what stands below it.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from embatch.engine import hashing
from embatch.engine.frames import Frame
from embatch.engine.host import wrong
from embatch.engine.packing import MicroBatch, digest, plan
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.pool.embedding import Embedding
from embatch.pool.protocol import CLOSING, End, EngineStatus, Gone, Origin, Referenced, Skipped, Stopped
from embatch.settings import Settings
from embatch.shard import Done, results_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description, Shape

SLOTS = 3


class InlineWorker:
    """A loaded hashing engine. See `pool.protocol.Worker`."""

    def __init__(self, model: ServedModel, budget: int) -> None:
        try:
            self.engine = hashing.load(model.spec)
        except InvalidArgument as error:
            raise EngineTrouble(error.message) from None
        self.about = self.engine.describe()
        self.budget = budget
        self.gone: End | None = None

    def await_ready(self, stop: threading.Event | None = None) -> Description:
        """As `Worker.await_ready`: it was loaded when it was made."""
        return self.about

    def submit(
        self,
        texts: Sequence[str],
        groups: Sequence[tuple[int, Shape]] | None,
        origin: Origin,
        *,
        alone: bool = False,
        kept: Skipped | None = None,
    ) -> InlineJob:
        """As `Worker.submit`; jobs run side by side, without turns, so `alone` holds within one."""
        job = InlineJob(self, texts, groups, alone=alone, kept=kept)
        threading.Thread(target=job.run, name="inline job", daemon=True).start()
        return job

    def retire(self) -> None:
        """As `Worker.retire`: whatever an engine of this process has been through, it is kept."""

    def kill(self, why: End) -> None:
        """As `Worker.kill`."""
        self.gone = self.gone or why


class InlineJob:
    """Texts under way in this process. See `pool.protocol.Job`."""

    def __init__(
        self,
        worker: InlineWorker,
        texts: Sequence[str],
        groups: Sequence[tuple[int, Shape]] | None,
        *,
        alone: bool,
        kept: Skipped | None,
    ) -> None:
        self._kept = kept
        self.worker = worker
        self.events: SimpleQueue[Frame | Gone] = SimpleQueue()
        self._texts, self._groups, self._budget = texts, groups, 1 if alone else worker.budget
        self._cancelled = threading.Event()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End with the micro-batch that runs."""
        self.cancel()

    def cancel(self) -> None:
        """As `Job.cancel`."""
        self._cancelled.set()

    def prioritise(self, priority: int) -> None:
        """As `Job.prioritise`: nobody waits for another."""

    def run(self) -> None:
        """Encode, plan and forward, telling of each step as an engine process does."""
        self._tell("encoding")
        try:
            encoded = self.worker.engine.encode(self._texts)
        except BaseException as error:  # noqa: BLE001  (a panic in a tokenizer is no Exception)
            self._tell("unreadable", message=type(error).__name__)
            self._tell("done")
            return
        parts = list(self._planned(encoded.lengths.tolist()))
        groups = [[list(part.rows), [part.shape.rows, part.shape.tokens]] for part in parts]
        told = digest(groups, encoded.lengths)
        kept = list(self._kept.groups) if self._kept is not None and self._kept.plan == told else []
        self._tell(
            "encoded",
            tokens=encoded.lengths,
            truncated=encoded.truncated,
            plan=told,
            groups=groups,
            kept=kept,
        )
        for number, part in enumerate(parts):
            if number in kept:
                continue
            if self._cancelled.is_set() or self.worker.gone is not None:
                break
            self._forward(number, [encoded.rows[row] for row in part.rows], part.shape)
        if self.worker.gone is not None:
            self.events.put(Gone(self.worker.gone, "it was closed"))
        else:
            self._tell("done")

    def _planned(self, lengths: Sequence[int]) -> Iterator[MicroBatch]:
        if self._groups is None:
            yield from plan(lengths, self._budget, self.worker.about)
            return
        at = 0
        for count, shape in self._groups:
            yield MicroBatch(tuple(range(at, at + count)), shape)
            at += count

    def _forward(self, number: int, rows: Sequence[Any], shape: Shape) -> None:
        self._tell("started", group=number)
        before = time.thread_time()
        try:
            vectors = np.asarray(self.worker.engine.forward(rows, shape), np.float32)
        except Exception as error:  # noqa: BLE001  (about these rows until shown otherwise)
            self._tell("wrong", group=number, reason="RAISED", message=type(error).__name__)
            return
        fault = wrong(vectors, rows, self.worker.about.dimensions)
        if fault is not None:
            self._tell("wrong", group=number, reason=fault, message="")
            return
        self._tell("finished", vectors.tobytes(), group=number, cpu=time.thread_time() - before)

    def _tell(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        self.events.put(Frame({"type": kind, **fields}, body))


class InlineWorkers:
    """The engine of a model, and others for suspects. See `pool.protocol.Processes`."""

    def __init__(self, model: ServedModel, budget: int) -> None:
        self.model, self.proven, self.trouble = model, False, ""
        self._budget, self._lock = budget, threading.Lock()
        self._worker: InlineWorker | None = None

    def process(self, stop: threading.Event) -> InlineWorker:
        """As `Processes.process`."""
        if stop.is_set():
            raise Stopped
        with self._lock:
            if self._worker is None:
                self._worker = self.fresh(stop)
            return self._worker

    def fresh(self, stop: threading.Event) -> InlineWorker:
        """As `Processes.fresh`."""
        try:
            worker = InlineWorker(self.model, self._budget)
        except EngineTrouble as error:
            self.trouble = error.message
            raise
        self.trouble = ""
        return worker

    def close(self) -> None:
        """Let nothing more be begun in the engine."""
        with self._lock:
            if self._worker is not None:
                self._worker.kill(End.CLOSED)

    def status(self) -> EngineStatus:
        """Return how the engine does."""
        state = "broken" if self.trouble else "starting" if self._worker is None else "ready"
        return EngineStatus(self.model.name, "inline", None, state, 0, self.trouble or None)


class InlinePool:
    """Runs hashing engines in this process. See `pool.protocol.Pool`."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._budget = int((settings or Settings()).micro_batch_tokens)
        self._lock = threading.Lock()
        self._workers: dict[str, InlineWorkers] = {}
        self._costs: dict[str, float] = {}
        self._closed = False

    @property
    def slots(self) -> int:
        """As `Pool.slots`."""
        return SLOTS

    def describe(self, model: ServedModel) -> Description:
        """As `Pool.describe`."""
        return self._of(model).process(threading.Event()).about

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
        """As `Pool.embed`; a suspect shard gets an engine of its own."""
        workers = self._of(model)
        if suspect:
            workers = InlineWorkers(model, self._budget)
        try:
            source = origin or Origin()
            return Embedding(workers, requests, on_progress, stop, doubted=suspect, origin=source).run()
        except Stopped:
            return None

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """As `Pool.query`, by the same engine."""
        return Embedding(self._of(model), requests).run()

    def reference(self, model: ServedModel, requests: pa.RecordBatch) -> Referenced:
        """As `Pool.reference`: the hashing engine computes in float32."""
        about = self.describe(model)
        if not requests.num_rows:
            nothing = pa.RecordBatch.from_pylist([], schema=results_schema(about.dimensions))
            return Referenced(nothing, 0, 0.0, about)
        told = [Done(0)]
        found = Embedding(self._of(model), requests, told.append, alone=True).run()
        total = sum(told, Done(0))
        if total.tokens:
            self._costs[model.name] = total.cpu_seconds / total.tokens
        return Referenced(found, total.tokens, total.cpu_seconds, about)

    def count(self, model: ServedModel, requests: pa.RecordBatch) -> NDArray[np.int32]:
        """As `Pool.count`."""
        return Embedding(self._of(model), requests).count()

    def unbatched_cost(self, model: str) -> float | None:
        """As `Pool.unbatched_cost`: known once texts were embedded by the reference path."""
        return self._costs.get(model)

    def troubles(self) -> Mapping[str, str]:
        """As `Pool.troubles`."""
        return {one.model: one.message for one in self.status() if one.message is not None}

    def loaded(self) -> Collection[str]:
        """As `Pool.loaded`: what has its engine keeps it."""
        return {one.model for one in self.status() if one.state == "ready"}

    def status(self) -> Sequence[EngineStatus]:
        """As `Pool.status`."""
        with self._lock:
            return [workers.status() for workers in self._workers.values()]

    def close(self, grace: float) -> None:
        """As `Pool.close`: micro-batches end by themselves, jobs when they see that nothing is begun."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        for one in workers:
            one.close()

    def _of(self, model: ServedModel) -> InlineWorkers:
        with self._lock:
            if self._closed:
                raise EngineTrouble(CLOSING)
            return self._workers.setdefault(model.name, InlineWorkers(model, self._budget))
