"""The engine process: `python -m embatch.engine.host`. Loads one engine, then works jobs from a pipe.

Reads frames on standard input and answers on a copy of standard output; what libraries print goes to standard
error. A job is a list of distinct texts, composed already. Without groups it is planned here (see `packing`);
with groups, given by the supervisor after a fault, exactly those rows run in exactly those shapes, so that
survivors keep their bytes.

    in   start   spec, budget, heartbeat, nice          out   ready     description
         job     job, lengths, groups?  (body: texts)         failed    message, and the process ends
         cancel  job                                          alive     every `heartbeat` seconds
                                                              encoded   job, tokens, truncated, groups
                                                              started   job, group
                                                              finished  job, group   (body: float32 vectors)
                                                              wrong     job, group, reason, message
                                                              unreadable job, message: encoding raised
                                                              trouble   job, message: the engine, not the rows
                                                              done      job

`started` is written before the engine sees the rows: whoever finds this process dead knows what it was doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from embatch.engine import frames
from embatch.engine.loading import load
from embatch.engine.packing import pack
from embatch.engine.protocol import EngineSpec, RowsRefused, Shape
from embatch.errors import EmbatchError, EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.engine.protocol import Engine, TokenRow

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Job:
    id: int
    texts: list[str]
    groups: list[tuple[int, Shape]] | None
    """Rows (taken in order) and shape of each group; `None` to plan."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Host:
    """One engine and the jobs that wait for it."""

    def __init__(self, out: BinaryIO, engine: Engine, budget: int) -> None:
        self._out, self._engine, self._budget = out, engine, budget
        self._about = engine.describe()
        self._writing = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._known: dict[int, _Job] = {}
        self._streams = ThreadPoolExecutor(max(1, self._about.streams), "forward")
        self._encoder = threading.Thread(target=self._encode_jobs, name="encode", daemon=True)

    def say(self, kind: str, body: bytes | memoryview = b"", **fields: Any) -> None:
        """Write one frame; a supervisor that has gone ends this process."""
        try:
            with self._writing:
                frames.write(self._out, {"type": kind, **fields}, body)
        except OSError:
            os._exit(0)

    def serve(self, source: BinaryIO) -> None:
        """Take jobs until the pipe ends; jobs encode while earlier ones still run."""
        self._encoder.start()
        while (frame := frames.read(source)) is not None:
            header = frame.header
            if header["type"] == "cancel":
                if (job := self._known.get(header["job"])) is not None:
                    job.cancelled.set()
                continue
            groups = header["groups"]
            job = _Job(
                header["job"],
                _texts(frame.body, header["lengths"]),
                None if groups is None else [(rows, Shape(*shape)) for rows, shape in groups],
            )
            self._known[job.id] = job
            self._jobs.put(job)

    def _encode_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._encode(job)
            except EngineTrouble as error:
                self.say("trouble", job=job.id, message=error.message)
            except BaseException as error:  # noqa: BLE001  (a panic in a tokenizer is no Exception)
                self.say("unreadable", job=job.id, message=type(error).__name__)

    def _encode(self, job: _Job) -> None:
        encoded = self._engine.encode(job.texts)
        if job.groups is None:
            about = self._about
            plan = pack(encoded.lengths.tolist(), self._budget, about.multiple, about.max_tokens)
            parts = [(list(part.rows), part.shape) for part in plan]
        else:
            parts, at = [], 0
            for count, shape in job.groups:
                parts.append((list(range(at, at + count)), shape))
                at += count
        self.say(
            "encoded",
            job=job.id,
            tokens=encoded.lengths,
            truncated=encoded.truncated,
            groups=[[rows, [shape.rows, shape.tokens]] for rows, shape in parts],
        )
        if not parts:
            self._end(job)
            return
        left = _Countdown(len(parts))
        for number, (rows, shape) in enumerate(parts):
            self._streams.submit(self._forward, job, number, [encoded.rows[row] for row in rows], shape, left)

    def _forward(
        self, job: _Job, number: int, rows: Sequence[TokenRow], shape: Shape, left: _Countdown
    ) -> None:
        if not job.cancelled.is_set():
            self.say("started", job=job.id, group=number)
            try:
                vectors = self._engine.forward(rows, shape)
            except EngineTrouble as error:
                job.cancelled.set()
                self.say("trouble", job=job.id, message=error.message)
            except RowsRefused as error:
                self.say("wrong", job=job.id, group=number, reason="REFUSED", message=error.message)
            except Exception as error:  # noqa: BLE001  (about these rows until shown otherwise)
                self.say("wrong", job=job.id, group=number, reason="RAISED", message=type(error).__name__)
            else:
                self._judge(job, number, len(rows), vectors)
        if left.last():
            self._end(job)

    def _judge(self, job: _Job, number: int, rows: int, vectors: Any) -> None:
        """Pass vectors on only if they can be right."""
        expected = (rows, self._about.dimensions)
        if vectors.shape != expected:
            self.say(
                "wrong",
                job=job.id,
                group=number,
                reason="SHAPE",
                message=f"{vectors.shape} is not {expected}",
            )
        elif not np.isfinite(vectors).all():
            self.say("wrong", job=job.id, group=number, reason="NUMBER", message="not a finite number")
        else:
            content = np.ascontiguousarray(vectors, "<f4")
            self.say("finished", content.tobytes(), job=job.id, group=number)

    def _end(self, job: _Job) -> None:
        self._known.pop(job.id, None)
        self.say("done", job=job.id)


class _Countdown:
    """Tells the last of several threads that it is the last."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = count, threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def _texts(body: bytes, lengths: Sequence[int]) -> list[str]:
    texts, at = [], 0
    for length in lengths:
        # Lone surrogates were refused long before; if one comes through, its row fails in the tokenizer.
        texts.append(body[at : at + length].decode(errors="surrogatepass"))
        at += length
    return texts


def _beat(host: Host, seconds: float) -> None:
    pause = threading.Event()
    while not pause.wait(seconds):
        host.say("alive")


def _die_with_parent() -> None:
    """Let the kernel end this process with the service, however that ends; elsewhere the pipe's end does."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _spec(fields: Mapping[str, Any]) -> EngineSpec:
    return EngineSpec(**fields)


def main() -> None:
    """Load the engine that the first frame names and serve until the pipe ends."""
    _die_with_parent()
    # A signal meant for the service (Ctrl-C goes to the whole group) is the service's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = sys.stdin.buffer
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start = frames.read(source)
    if start is None:
        return
    if start.header["nice"]:
        os.nice(start.header["nice"])
    try:
        engine = load(_spec(start.header["spec"]))
        engine.warm()
    except EmbatchError as error:
        frames.write(out, {"type": "failed", "message": error.message})
        return
    except Exception as error:  # noqa: BLE001  (the supervisor tells it to whoever asks for health)
        frames.write(out, {"type": "failed", "message": f"{type(error).__name__}: {error}"[:500]})
        return
    host = Host(out, engine, start.header["budget"])
    host.say("ready", description=asdict(engine.describe()))
    threading.Thread(target=_beat, args=(host, start.header["heartbeat"]), daemon=True).start()
    host.serve(source)
    # Threads may hang inside the engine: nothing here needs them to end well.
    os._exit(0)


if __name__ == "__main__":
    main()
