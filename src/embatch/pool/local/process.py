"""One engine process: started, listened to, and known dead at once when it dies.

A reader thread hands each frame to the job it belongs to. When the process ends, for whatever reason, every
open job gets `Gone` as its last event, and whoever waits for the engine to load learns why it did not.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

from embatch.engine import frames
from embatch.engine.protocol import Description
from embatch.errors import EngineTrouble
from embatch.events import EngineEnded, EngineGivenUp, EngineReady, emit
from embatch.pool.local.watchdog import Watchdog
from embatch.pool.protocol import CLOSING, TICK, End, Gone, Stopped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.engine.protocol import EngineSpec, Shape
    from embatch.pool.protocol import Origin, Skipped
    from embatch.settings import Settings

HEARTBEATS: Final = 4
"""Signs of life within the time after which a silent process is replaced."""
_LAST_WORDS: Final = 300
_REAP_SECONDS: Final = 2.0
_PIPE_BYTES: Final = 1 << 20
"""A job's texts go through in one piece: through 64 KiB they cost both sides a turn each time."""


class EngineProcess:
    """A child that holds one loaded engine. Start it with `Supervisor.start`, which also watches it."""

    _numbers = itertools.count(1)
    _starts = itertools.count(1)

    def __init__(
        self, spec: EngineSpec, nice: int, settings: Settings, environment: Mapping[str, str]
    ) -> None:
        self._watchdog = Watchdog(settings)
        self._limits = settings
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._jobs: dict[int, ProcessJob] = {}
        self._settled = threading.Event()
        self._description: Description | None = None
        self._failure = ""
        self._told: Mapping[str, Any] | None = None
        self._said = ""
        self._wanted_end: End | None = None
        self._gone: Gone | None = None
        self._retired = False
        self.began = next(self._starts)
        """Higher than that of every process that was started before."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "embatch.engine.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **_threads(spec.threads), **environment},
        )
        self.pid = self._child.pid
        for pipe in (self._child.stdin, self._child.stdout):
            _widen(cast("BinaryIO", pipe))
        self._threads = [
            threading.Thread(target=self._read, name=f"engine-{self.pid}", daemon=True),
            threading.Thread(target=self._read_stderr, name=f"engine-{self.pid}-stderr", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._write(
            {
                "type": "start",
                "spec": asdict(spec),
                "budget": settings.micro_batch_tokens,
                "heartbeat": settings.heartbeat_seconds / HEARTBEATS,
                "nice": nice,
                "parent": os.getpid(),
            }
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._gone is None

    @property
    def busy(self) -> bool:
        """Whether it loads or has jobs: then it may be too long at one thing."""
        return self._gone is None and (self._description is None or bool(self._jobs))

    @property
    def ready(self) -> bool:
        """Whether the process runs and its engine is loaded."""
        return self._gone is None and self._description is not None

    @property
    def trouble(self) -> str | None:
        """Why the engine did not load; `None` while it may, once it has, and where we ended it ourselves."""
        ended = self._gone is not None and self._gone.end is not End.CLOSED
        return self._failure if ended and self._description is None else None

    @property
    def usable(self) -> bool:
        """Whether new jobs should go to it."""
        return self._gone is None and self._wanted_end is None and not self._retired

    @property
    def retired(self) -> bool:
        """Whether another process takes its place: see `retire`."""
        return self._retired

    def await_ready(self, stop: threading.Event | None = None) -> Description:
        """Wait until the engine is loaded and return what it is, also of a process that ended since.

        Raises:
            EngineTrouble: it failed to load, died, or took too long; the message is the engine's own.
            Stopped: `stop` was set first.
        """
        while not self._settled.wait(TICK if stop is not None else None):
            if stop is not None and stop.is_set():
                raise Stopped
        if self._description is None:
            raise EngineTrouble(self._failure) if self._told is None else frames.trouble(self._told)
        return self._description

    def submit(
        self,
        texts: Sequence[str],
        groups: Sequence[tuple[int, Shape]] | None,
        origin: Origin,
        *,
        alone: bool = False,
        kept: Skipped | None = None,
    ) -> ProcessJob:
        """As `Worker.submit`."""
        job = ProcessJob(self, next(self._numbers))
        with self._lock:
            if self._gone is not None:
                job.events.put(self._gone)
                return job
            self._jobs[job.number] = job
        content = [text.encode(errors="surrogatepass") for text in texts]
        planned = None if groups is None else [[rows, [at.rows, at.tokens]] for rows, at in groups]
        self._write(
            {
                "type": "job",
                "job": job.number,
                "batch": origin.batch,
                "priority": origin.priority,
                "lengths": [len(text) for text in content],
                "groups": planned,
                "kept": None if kept is None else kept._asdict(),
                "alone": alone,
            },
            b"".join(content),
        )
        return job

    def retire(self) -> None:
        """Take no new jobs; end once the last open one is closed."""
        with self._lock:
            self._retired = True
            idle = not self._jobs
        if idle:
            self.kill(End.CLOSED)

    def kill(self, why: End) -> None:
        """End the process at once, without waiting for it. Repeating is safe; the first reason counts."""
        self._wanted_end = self._wanted_end or why
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    def join(self) -> None:
        """Wait for the end of a process that was killed."""
        self._threads[0].join()

    def watch(self, seconds: float) -> None:
        """Let time pass: a process that is too slow, too long at one thing or silent is ended."""
        limit = self._watchdog.tick(seconds)
        if limit is None or self._wanted_end is not None:
            return
        if limit == "start":
            self._failure = f"the engine did not load within {self._limits.engine_start_seconds:.0f} s"
        emit(EngineGivenUp(pid=self.pid, limit=limit))
        self.kill(End.HUNG)

    def close(self, job: int) -> None:
        """Take no more events of a job."""
        with self._lock:
            self._jobs.pop(job, None)
            idle = self._retired and not self._jobs
        if idle:
            self.kill(End.CLOSED)

    def cancel(self, job: int) -> None:
        """Ask that no further micro-batch of a job is begun."""
        self._write({"type": "cancel", "job": job})

    def prioritise(self, job: int, priority: int) -> None:
        """Let the batch of a job have another priority."""
        self._write({"type": "priority", "job": job, "priority": priority})

    def _write(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        # When nobody reads any more, the reader tells of the death. A process that lives and does not read
        # blocks us here until the watchdog has ended it.
        with contextlib.suppress(OSError, ValueError), self._writing:
            frames.write(cast("BinaryIO", self._child.stdin), header, body)

    def _read(self) -> None:
        source = cast("BinaryIO", self._child.stdout)
        try:
            while (frame := frames.read(source)) is not None:
                self._take(frame)
        except (ValueError, KeyError, OSError):
            self._child.kill()  # what it writes is no longer our protocol
        finally:
            self._reap()

    def _take(self, frame: frames.Frame) -> None:
        header = frame.header
        kind = header["type"]
        self._watchdog.heard(ready=kind == "ready" or self._description is not None)
        if kind == "ready":
            about = self._description = Description(**header["description"])
            emit(
                EngineReady(
                    pid=self.pid,
                    engine=about.engine,
                    precision=about.precision,
                    streams=about.streams,
                    passed_over=header["passed_over"],
                )
            )
            self._settled.set()
            return
        if kind == "failed":
            self._failure, self._told = str(header["message"]), header
            return
        if kind == "alive":
            return
        work = header["job"], header.get("group")
        if kind in ("encoding", "started"):
            self._watchdog.begin(work)
        else:
            self._watchdog.end(work)
        with self._lock:
            job = self._jobs.get(header["job"])
        if job is not None:
            job.events.put(frame)

    def _read_stderr(self) -> None:
        """Read what the engine's libraries print. Once texts are there it may hold them: it goes nowhere."""
        with cast("BinaryIO", self._child.stderr) as source:
            for line in source:
                words = line.decode(errors="replace").strip()
                if words and self._description is None:
                    self._said = words[:_LAST_WORDS]

    def _reap(self) -> None:
        """Reap the process and tell everybody who waits for it."""
        try:
            code = self._child.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._threads[1].join(_REAP_SECONDS)  # its last words; a grandchild may keep the pipe open
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                cast("BinaryIO", pipe).close()
        end = self._wanted_end or (End.KILLED if code == -signal.SIGKILL else End.DIED)
        how = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        if end is End.CLOSED:
            self._failure, self._told = CLOSING, None
        elif not self._failure:
            self._failure = f"the engine process ended while loading ({how})"
            if self._said:
                self._failure += f": {self._said}"
        at_work = self._watchdog.at_work()
        with self._lock:
            self._gone = Gone(end, how)
            jobs = list(self._jobs.values())
            self._jobs.clear()
        self._settled.set()
        for job in jobs:
            job.events.put(Gone(end, how, others=bool(at_work - {job.number})))
        if end is not End.CLOSED:
            why = self._failure if self._description is None else None
            emit(EngineEnded(pid=self.pid, how=how, why=why))


class ProcessJob:
    """A job under way in a process: its events, in order. Closing it takes no further ones."""

    def __init__(self, process: EngineProcess, number: int) -> None:
        self.worker, self.number = process, number
        self.events: queue.SimpleQueue[frames.Frame | Gone] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close(self.number)

    def cancel(self) -> None:
        """Ask that no further micro-batch of it is begun."""
        self.worker.cancel(self.number)

    def prioritise(self, priority: int) -> None:
        """As `protocol.Job.prioritise`."""
        self.worker.prioritise(self.number, priority)


def _widen(pipe: BinaryIO) -> None:
    # Linux's, and refused to a user who has very many.
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _threads(count: int) -> dict[str, str]:
    """Return the environment that keeps libraries from starting other threads than planned."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return {
        "PYTHONSAFEPATH": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's own, which has nothing to multiply here
        "TOKENIZERS_PARALLELISM": "true",
        "OPENVINO_TELEMETRY": "0",
        **(dict.fromkeys(names, str(count)) if count else {}),
    }
