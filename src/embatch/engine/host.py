"""The engine process: `python -m embatch.engine.host`. Loads one engine, then works jobs from a pipe.

Reads frames on standard input and answers on a copy of standard output; what libraries print goes to standard
error. A job is a list of distinct texts, composed already. Without groups it is planned here (see `packing`);
with groups, given by the supervisor after a fault, exactly those rows run in exactly those shapes, so that
survivors keep their bytes. No groups at all ask for encoding alone. An `alone` job runs each text by itself
while nothing else runs: what it costs is what one text at a time costs.

    in   start   spec, budget, heartbeat, nice, parent   out   ready      description, passed_over
         job     job, lengths, groups?, alone (body: texts)    failed     message, retry_after, whose; it ends
         cancel  job                                           alive      every `heartbeat` seconds
                                                               encoding   job
                                                               encoded    job, tokens, truncated, groups
                                                               unreadable job, message: encoding raised
                                                               started    job, group
                                                               finished   job, group, cpu (body: vectors)
                                                               wrong      job, group, reason, message
                                                               trouble    job, group?, and as `failed`
                                                               done       job

`encoding` and `started` are written before the engine sees the rows: whoever finds this process dead knows
what it was doing. `trouble` is the engine's own, not the rows', and `whose` says of what kind (see
`frames.told`); the rest of its job is skipped. Every job ends with `done`, a cancelled one too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from embatch.engine import frames
from embatch.engine.loading import choose
from embatch.engine.packing import plan
from embatch.engine.protocol import EngineSpec, RowsRefused, Shape
from embatch.errors import EmbatchError, EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import Engine, TokenRow

_PR_SET_PDEATHSIG: Final = 1
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_OOM_SCORE: Final = "500"
"""Makes the kernel end this process, whose work is repeated, rather than the service when memory runs out."""


@dataclass(slots=True)
class _Job:
    id: int
    texts: list[str]
    groups: list[tuple[int, Shape]] | None
    """How many rows, taken in order, and the shape of each group; `None` to plan."""
    alone: bool
    """Whether each text runs by itself, and nothing else meanwhile."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Host:
    """One engine and the jobs that wait for it."""

    def __init__(self, out: BinaryIO, engine: Engine, budget: int) -> None:
        self._out, self._engine, self._budget = out, engine, budget
        self._about = engine.describe()
        self._writing = threading.Lock()
        self._told_cpu = time.process_time()
        self._under_way = _UnderWay()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._known: dict[int, _Job] = {}
        self._streams = ThreadPoolExecutor(max(1, self._about.streams), "forward")
        self._encoder = threading.Thread(target=self._encode_jobs, name="encode", daemon=True)

    def say(self, kind: str, fields: Mapping[str, Any] = _NOTHING, body: bytes = b"") -> None:
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
                header.get("alone", False),
            )
            self._known[job.id] = job
            self._jobs.put(job)

    def _encode_jobs(self) -> None:
        while True:
            job = self._jobs.get()
            if job.alone:
                self._under_way.await_none()
                self._cpu()
            groups = 0
            if not job.cancelled.is_set():
                self.say("encoding", {"job": job.id})
                try:
                    groups = self._encode(job)
                except EngineTrouble as error:
                    self.say("trouble", {"job": job.id, **frames.told(error)})
                except BaseException as error:  # noqa: BLE001  (a panic in a tokenizer is no Exception)
                    self.say("unreadable", {"job": job.id, "message": type(error).__name__})
            if not groups:
                self._end(job)
            if job.alone:
                self._under_way.await_none()

    def _encode(self, job: _Job) -> int:
        """Encode, plan, and queue the micro-batches; return how many."""
        encoded = self._engine.encode(job.texts)
        if job.groups is None:
            planned = plan(encoded.lengths.tolist(), 1 if job.alone else self._budget, self._about)
            parts = [(list(part.rows), part.shape) for part in planned]
        else:
            parts, at = [], 0
            for count, shape in job.groups:
                parts.append((list(range(at, at + count)), shape))
                at += count
        self.say(
            "encoded",
            {
                "job": job.id,
                "tokens": encoded.lengths,
                "truncated": encoded.truncated,
                "groups": [[rows, [shape.rows, shape.tokens]] for rows, shape in parts],
            },
        )
        left = _Countdown(len(parts))
        self._under_way.begin(len(parts))
        for number, (rows, shape) in enumerate(parts):
            work = (job, number, [encoded.rows[row] for row in rows], shape, left)
            if job.alone:
                self._forward(*work)
            else:
                self._streams.submit(self._forward, *work)
        return len(parts)

    def _forward(
        self, job: _Job, number: int, rows: Sequence[TokenRow], shape: Shape, left: _Countdown
    ) -> None:
        if not job.cancelled.is_set():
            where = {"job": job.id, "group": number}
            self.say("started", where)
            try:
                vectors = np.asarray(self._engine.forward(rows, shape), np.float32)
                fault = wrong(vectors, rows, self._about.dimensions)
                if fault is None:
                    told = {**where, "cpu": self._cpu()}
                    self.say("finished", told, np.ascontiguousarray(vectors, "<f4").tobytes())
                else:
                    self.say("wrong", {**where, "reason": fault, "message": ""})
            except EngineTrouble as error:
                job.cancelled.set()
                self.say("trouble", {**where, **frames.told(error)})
            except RowsRefused as error:
                self.say("wrong", {**where, "reason": "REFUSED", "message": error.message})
            except BaseException as error:  # noqa: BLE001  (about these rows until shown otherwise)
                self.say("wrong", {**where, "reason": "RAISED", "message": type(error).__name__})
        if left.last():
            self._end(job)
        self._under_way.end()

    def _cpu(self) -> float:
        """Return the CPU seconds this process spent since they were told last, encoding included."""
        with self._writing:
            now = time.process_time()
            spent, self._told_cpu = now - self._told_cpu, now
        return spent

    def _end(self, job: _Job) -> None:
        self._known.pop(job.id, None)
        self.say("done", {"job": job.id})


class _UnderWay:
    """Counts the groups that run or wait for a stream."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def begin(self, groups: int) -> None:
        with self._changed:
            self._count += groups

    def end(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def await_none(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)


class _Countdown:
    """Tells the last of several threads that it is the last."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = count, threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def wrong(vectors: NDArray[np.float32], rows: Sequence[TokenRow], dimensions: int) -> str | None:
    """Return why these cannot be the vectors of the rows; `None` if they can.

    `SHAPE`: too few, or of other dimensions. `NUMBER`: one is not finite. `SAME`: texts of different words
    all got one and the same vector, for which no row is to blame.
    """
    if vectors.shape != (len(rows), dimensions):
        return "SHAPE"
    if not np.isfinite(vectors).all():
        return "NUMBER"
    if len(rows) > 1 and (vectors == vectors[0]).all():
        # Some models do not look at the order of tokens, and texts that differ may be the same in tokens.
        ids = {np.sort(row).tobytes() for row in rows if not isinstance(row, str)}
        if len(ids) > 1:
            return "SAME"
    return None


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


def _settle() -> None:
    """Die with the parent, leave signals to it, be the first to go without memory, leave no texts behind."""
    if sys.platform == "linux":
        # However the service ends; on other systems the end of the pipe tells.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    # A signal to the whole group (Ctrl-C, a service manager's TERM) is the service's to act on: it lets
    # running micro-batches finish first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A core dump would hold users' texts.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Load the engine that the first frame names and serve until the pipe ends."""
    _settle()
    source = sys.stdin.buffer
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start = frames.read(source)
    if start is None or start.header["parent"] != os.getppid():
        return
    if start.header["nice"]:
        os.nice(start.header["nice"])
    try:
        loaded = choose(EngineSpec(**start.header["spec"]))
        engine = loaded.engine
        engine.warm()
    except EngineTrouble as error:
        frames.write(out, {"type": "failed", **frames.told(error)})
        return
    except BaseException as error:  # noqa: BLE001  (the supervisor tells it to whoever asks for health)
        words = error.message if isinstance(error, EmbatchError) else f"{type(error).__name__}: {error}"[:500]
        frames.write(out, {"type": "failed", **frames.told(EngineTrouble(words))})
        return
    host = Host(out, engine, start.header["budget"])
    host.say("ready", {"description": asdict(engine.describe()), "passed_over": dict(loaded.passed_over)})
    threading.Thread(target=_beat, args=(host, start.header["heartbeat"]), daemon=True).start()
    host.serve(source)
    # Threads may hang inside the engine: nothing here needs them to end well.
    os._exit(0)


if __name__ == "__main__":
    main()
