"""One model's processes in one lane: the one that works, replaced when it is gone, and those for suspects."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from embatch.backoff import Backoff, meanwhile
from embatch.errors import EngineTrouble
from embatch.pool.protocol import TICK, End, EngineStatus, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.engine.models import ServedModel
    from embatch.pool.local.process import EngineProcess
    from embatch.pool.local.supervisor import Supervisor
    from embatch.settings import Settings

BULK: Final = "bulk"
QUERY: Final = "query"
REFERENCE: Final = "reference"
"""Float32 beside a bulk lane that computes in less, for the few texts of a certificate."""
_INQUIRIES: Final = 2
"""Processes for suspects at once: each holds the model's weights, and many shards may have a suspect."""
_RESTART: Final = Backoff(first=0.5, limit=30.0, attempts=1_000_000)


class Lane:
    """The processes of a model in a lane. See `Processes`; each failed start makes the next wait longer."""

    def __init__(
        self,
        model: ServedModel,
        name: str,
        settings: Settings,
        supervisor: Supervisor,
        on_loaded: Callable[[EngineProcess], object] = lambda _: None,
    ) -> None:
        """Start nothing yet. `on_loaded` is told of each process that works, once it is loaded."""
        self.proven = False
        self.name = name
        self._on_loaded = on_loaded
        self._told: EngineProcess | None = None
        self._model, self._supervisor = model.name, supervisor
        if name == BULK:
            self._spec = replace(model.spec, threads=settings.threads or model.spec.threads)
            self._nice = int(settings.bulk_nice)
        elif name == REFERENCE:
            # Our own kernel has no float32: another engine stands in for it.
            engine = "auto" if model.spec.engine == "amx" else model.spec.engine
            self._spec = replace(model.spec, engine=engine, precision="f32", threads=1)
            self._nice = int(settings.bulk_nice)
        else:
            # More than one thread would fight the bulk lane for cores. A remote engine uses none of them.
            remote = model.spec.engine == "remote"
            self._spec, self._nice = model.spec if remote else replace(model.spec, threads=1), 0
        self._lock = threading.Lock()
        self._process: EngineProcess | None = None
        self._suspects: list[EngineProcess] = []
        self._starts = 0
        self._failures = 0
        self._failed_last: EngineProcess | None = None
        self._not_before = 0.0
        self._trouble: EngineTrouble | None = None

    def process(self, stop: threading.Event | None = None) -> EngineProcess:
        """Return the process that works, loaded.

        Raises:
            EngineTrouble: it does not come up, or did not a moment ago; `retry_after` says when to ask again.
            Stopped: `stop` was set first.
        """
        while True:
            process = self.begin()
            self._await(process, stop)
            with self._lock:
                new, self._told = process is not self._told, process
            if new:
                self._on_loaded(process)
            if not process.retired:
                return process

    def begin(self) -> EngineProcess:
        """Return the process that works, loaded or not. Raises as `process`, without waiting."""
        with self._lock:
            process = self._process
            if process is None or not process.usable:
                process = self._process = self._start()
                self._starts += 1
            return process

    def fresh(self, stop: threading.Event | None = None) -> EngineProcess:
        """As `apart`, for suspects: it waits while there are `_INQUIRIES` of them."""
        heard = stop or threading.Event()
        while not heard.is_set():
            with self._lock:
                self._suspects = [process for process in self._suspects if process.alive]
                if len(self._suspects) < _INQUIRIES:
                    process = self._start()
                    self._suspects.append(process)
                    break
            heard.wait(TICK)
        else:
            raise Stopped
        return self._owned(process, stop)

    def apart(self, stop: threading.Event | None = None) -> EngineProcess:
        """Start a process that nobody else uses, loaded. The caller ends it. Raises as `process`."""
        with self._lock:
            process = self._start()
        return self._owned(process, stop)

    def _start(self) -> EngineProcess:
        self._check_pause()
        return self._supervisor.start(self._spec, self._nice)

    def _owned(self, process: EngineProcess, stop: threading.Event | None) -> EngineProcess:
        try:
            self._await(process, stop)
        except BaseException:
            process.kill(End.CLOSED)
            raise
        return process

    @property
    def begun(self) -> bool:
        """Whether there is a process to work, loaded or not."""
        with self._lock:
            return self._process is not None and self._process.usable

    def loaded(self) -> EngineProcess | None:
        """Return the process that works if it is loaded, without waiting for it."""
        with self._lock:
            process = self._process
            return process if process is not None and process.usable and process.ready else None

    def renew(self) -> None:
        """Have the next one who asks get a process that was loaded after now; jobs under way end first."""
        with self._lock:
            if self._process is not None:
                self._process.retire()

    def status(self) -> EngineStatus:
        """Return how it does, without waiting for it."""
        with self._lock:
            process = self._process
            # One that was only begun has failed before anybody waited for it.
            known = self._trouble.message if self._trouble is not None else None
            message = known or (process.trouble if process is not None else None)
            state = "broken" if message else "ready" if process is not None and process.ready else "starting"
            pid = process.pid if process is not None and process.alive else None
            return EngineStatus(self._model, self.name, pid, state, max(0, self._starts - 1), message)

    def _check_pause(self) -> None:
        wait = self._not_before - time.monotonic()
        if self._trouble is not None and wait > 0:
            raise type(self._trouble)(self._trouble.message, retry_after=wait)

    def _await(self, process: EngineProcess, stop: threading.Event | None) -> None:
        try:
            process.await_ready(stop)
        except EngineTrouble as error:
            raise type(error)(error.message, retry_after=self._failed(process, error)) from None
        with self._lock:
            self._failures, self._trouble = 0, None

    def _failed(self, process: EngineProcess, trouble: EngineTrouble) -> float:
        """Note once, however many waited, that a process did not come up; return the seconds to wait."""
        with self._lock:
            if process is not self._failed_last:
                self._failed_last = process
                self._failures += 1
                own = _RESTART.delay(self._failures, 1.0) or 0.0
                asked = meanwhile(trouble.retry_after or 0.0, self._failures)
                self._not_before = time.monotonic() + max(own, asked)
                self._trouble = trouble
            return max(0.0, self._not_before - time.monotonic())


class Quarantine:
    """The processes of a shard under suspicion: none that other shards use."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._process: EngineProcess | None = None

    @property
    def proven(self) -> bool:
        """As the lane's."""
        return self._lane.proven

    @proven.setter
    def proven(self, value: bool) -> None:
        self._lane.proven = value

    def process(self, stop: threading.Event) -> EngineProcess:
        """As `Processes.process`, with a process of this shard's own."""
        if self._process is None or not self._process.usable:
            self._process = self._lane.apart(stop)
        return self._process

    def fresh(self, stop: threading.Event) -> EngineProcess:
        """As `Processes.fresh`."""
        return self._lane.fresh(stop)

    def close(self) -> None:
        """End the process. Repeating is safe."""
        if self._process is not None:
            self._process.kill(End.CLOSED)
