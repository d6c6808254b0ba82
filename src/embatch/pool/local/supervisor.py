"""Starts engine processes and watches them, all from one thread that lives as long as they do.

Linux ends a child with the *thread* that started it (PR_SET_PDEATHSIG), and the threads that ask for an
engine come and go: a query's thread ends seconds after it.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeAlias

from embatch.errors import EngineTrouble
from embatch.pool.local.process import EngineProcess
from embatch.pool.protocol import CLOSING, End

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.engine.protocol import EngineSpec
    from embatch.settings import Settings

    _Order: TypeAlias = tuple[EngineSpec, int, Future[EngineProcess]]

_LOOKS: Final = 8
"""Looks at a process within its shortest limit."""


class Supervisor:
    """All engine processes of a pool. Thread-safe."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self._settings, self._environment = settings, environment
        shortest = min(settings.heartbeat_seconds, settings.micro_batch_seconds)
        self._idle_tick = max(0.01, shortest / _LOOKS)
        self._tick = min(1.0, self._idle_tick)
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._processes: list[EngineProcess] = []
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.starts = 0
        """Processes started so far."""

    def start(self, spec: EngineSpec, nice: int) -> EngineProcess:
        """Start a process and return it while it loads.

        Raises:
            EngineTrouble: the pool is closing, or this machine gives us no process.
        """
        future: Future[EngineProcess] = Future()
        with self._lock:
            if self._closed:
                raise EngineTrouble(CLOSING)
            if self._thread.ident is None:
                self._thread.start()
            self._orders.put((spec, nice, future))
        try:
            return future.result()
        except OSError as error:
            raise EngineTrouble(f"no engine process can be started: {error.strerror}") from error

    def close(self) -> None:
        """End every process and return when all are gone. Repeating is safe."""
        with self._lock:
            first, self._closed = not self._closed, True
            started = self._thread.ident is not None
        if started:
            if first:
                self._orders.put(None)
            self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            # Idle processes can only fall silent, which is soon enough noticed by fewer looks.
            tick = self._tick if any(process.busy for process in self._processes) else self._idle_tick
            try:
                order = self._orders.get(timeout=tick)
            except queue.Empty:
                pass
            else:
                if order is None:
                    break
                self._spawn(order)
            # A pause of ours, however long, is none of theirs.
            now = time.monotonic()
            if now - last >= tick / 2:
                self._watch(min(now - last, 2 * tick))
                last = now
        for process in self._processes:
            process.kill(End.CLOSED)
        for process in self._processes:
            process.join()

    def _spawn(self, order: _Order) -> None:
        spec, nice, future = order
        try:
            process = EngineProcess(spec, nice, self._settings, self._environment)
        except Exception as error:  # noqa: BLE001  (whoever ordered it gets it)
            future.set_exception(error)
            return
        self._processes.append(process)
        self.starts += 1
        future.set_result(process)

    def _watch(self, seconds: float) -> None:
        self._processes = [process for process in self._processes if process.alive]
        for process in self._processes:
            process.watch(seconds)
