"""One supervised engine process: started, listened to, and known dead at once when it dies.

A reader thread hands each frame to the job it belongs to. When the process ends, for whatever reason, every
open job gets `Gone` as its last event, and so does whoever waits for `ready`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch.engine import frames
from embatch.engine.protocol import Description, Shape
from embatch.errors import EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.engine.protocol import EngineSpec
    from embatch.settings import Settings

HEARTBEATS: Final = 4
"""Signs of life within the time after which a silent process is replaced."""
# Threads that a library starts on its own would run beside the engine's planned ones.
_QUIET: Final = {"TOKENIZERS_PARALLELISM": "true", "PYTHONSAFEPATH": "1", "OPENVINO_TELEMETRY": "0"}


# Linux ends a child by its death signal when the *thread* that started it ends: callers' threads come and go.
_SPAWNER: Final = ThreadPoolExecutor(1, "engine-spawner")


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "embatch.engine.host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_QUIET},
    )


@dataclass(frozen=True, slots=True)
class Gone:
    """The last event of a job whose process ended."""

    message: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a job that run together, padded to a planned shape."""

    rows: tuple[int, ...]
    shape: Shape


class EngineProcess:
    """A child that holds one loaded engine."""

    _jobs = itertools.count(1)

    def __init__(self, spec: EngineSpec, settings: Settings, nice: int) -> None:
        self._settings = settings
        self._writing = threading.Lock()
        self._events: dict[int, queue.SimpleQueue[frames.Frame | Gone]] = {}
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[frames.Frame | Gone] = queue.SimpleQueue()
        self._gone: Gone | None = None
        self.description: Description | None = None
        self.heard = time.monotonic()
        """When the process last said anything."""
        self._child = _SPAWNER.submit(_spawn).result()
        self.pid = self._child.pid
        self._reader = threading.Thread(target=self._read, name=f"engine-{self.pid}", daemon=True)
        self._reader.start()
        self._write(
            {
                "type": "start",
                "spec": asdict(spec),
                "budget": settings.micro_batch_tokens,
                "heartbeat": max(0.05, settings.heartbeat_seconds / HEARTBEATS),
                "nice": nice,
            }
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._gone is None

    def await_ready(self) -> Description:
        """Wait until the engine is loaded and return what it is.

        Raises:
            EngineTrouble: it failed to load, died, or took too long; the message is the engine's own.
        """
        if self.description is not None:
            return self.description
        try:
            event = self._ready.get(timeout=self._settings.engine_start_seconds)
        except queue.Empty:
            self.kill()
            raise EngineTrouble(
                f"the engine did not load within {self._settings.engine_start_seconds:.0f} s"
            ) from None
        if isinstance(event, Gone):
            raise EngineTrouble(f"the engine process ended while loading ({event.message})")
        if event.header["type"] == "failed":
            self.kill()
            raise EngineTrouble(str(event.header["message"]))
        self.description = Description(**event.header["description"])
        return self.description

    def submit(self, texts: Sequence[str], groups: Sequence[tuple[int, Shape]] | None) -> Job:
        """Send texts; `None` lets the process plan, groups say how many rows in order run in which shape.

        No groups at all ask for encoding alone. A process that is already gone gives a job whose first event
        is `Gone`.
        """
        number = next(self._jobs)
        events: queue.SimpleQueue[frames.Frame | Gone] = queue.SimpleQueue()
        with self._lock:
            if self._gone is not None:
                events.put(self._gone)
                return Job(self, number, events)
            self._events[number] = events
        content = [text.encode(errors="surrogatepass") for text in texts]
        self._write(
            {
                "type": "job",
                "job": number,
                "lengths": [len(text) for text in content],
                "groups": None
                if groups is None
                else [[rows, [shape.rows, shape.tokens]] for rows, shape in groups],
            },
            b"".join(content),
        )
        return Job(self, number, events)

    def cancel(self, job: int) -> None:
        """Ask that no further micro-batch of a job is begun."""
        self._write({"type": "cancel", "job": job})

    def forget(self, job: int) -> None:
        """Take no more events of a job."""
        with self._lock:
            self._events.pop(job, None)

    def kill(self) -> None:
        """End the process at once and wait for it. Repeating is safe."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        self._child.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5.0)

    def _write(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        assert self._child.stdin is not None  # noqa: S101  (opened as a pipe above)
        with contextlib.suppress(OSError, ValueError), self._writing:  # the reader tells of the death
            frames.write(self._child.stdin, header, body)  # type: ignore[arg-type]  # IO[bytes] is a BinaryIO

    def _read(self) -> None:
        assert self._child.stdout is not None  # noqa: S101
        while (frame := frames.read(self._child.stdout)) is not None:  # type: ignore[arg-type]  # as above
            self.heard = time.monotonic()
            kind = frame.header["type"]
            if kind in ("ready", "failed"):
                self._ready.put(frame)
            elif kind != "alive":
                with self._lock:
                    events = self._events.get(frame.header["job"])
                if events is not None:
                    events.put(frame)
        code = self._child.wait()
        self._child.stdout.close()
        with contextlib.suppress(OSError):
            self._child.stdin.close()  # type: ignore[union-attr]  # a pipe
        gone = Gone(f"signal {-code}" if code < 0 else f"exit code {code}")
        with self._lock:
            self._gone = gone
            waiting = list(self._events.values())
            self._events.clear()
        for events in waiting:
            events.put(gone)
        self._ready.put(gone)


@dataclass(frozen=True, slots=True)
class Job:
    """A job under way in a process."""

    process: EngineProcess
    number: int
    events: queue.SimpleQueue[frames.Frame | Gone]
