"""The engine process: `python -m embatch.engine.host`. Loads one engine, then works jobs from a pipe.

Reads frames on standard input and answers on a copy of standard output; what libraries print goes to standard
error. A job is a list of distinct texts, composed already. Without groups it is planned here (see `packing`);
with groups, given by the supervisor after a fault, exactly those rows run in exactly those shapes, so that
survivors keep their bytes. No groups at all ask for encoding alone. `kept` names groups of a plan that were
run before: they are left out if the plan is that one. An `alone` job runs each text by itself while nothing
else runs: what it costs is what one text at a time costs. Many jobs may be open; `turns` says whose
micro-batch is next.

    in   start     spec, budget, heartbeat, nice, parent   out  ready      description, passed_over
         job       job, batch, priority, lengths,               failed     message, retry_after, whose;
                   groups?, kept?, alone (body: texts)                     it ends
         priority  job, priority: of its whole batch            alive      every `heartbeat` seconds
         cancel    job                                          encoding   job
                                                                encoded    job, tokens, truncated, plan,
                                                                           groups, kept
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
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from embatch.engine import frames
from embatch.engine.loading import choose
from embatch.engine.packing import digest, plan
from embatch.engine.protocol import EngineSpec, RowsRefused, Shape
from embatch.engine.turns import Turns
from embatch.errors import EmbatchError, EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import Encoded, Engine, TokenRow
    from embatch.engine.turns import Turn

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
    kept: Mapping[str, Any] | None
    """`plan` and `groups`: which groups of which plan were run before."""
    alone: bool
    """Whether each text runs by itself, and nothing else meanwhile."""
    parts: list[tuple[Sequence[int], Shape]] = field(default_factory=list)
    rows: Sequence[TokenRow] = ()


class Host:
    """One engine and the jobs that wait for it."""

    def __init__(self, out: BinaryIO, engine: Engine, budget: int) -> None:
        self._out, self._engine, self._budget = out, engine, budget
        self._about = engine.describe()
        self._writing = threading.Lock()
        self._told_cpu = time.process_time()
        self._changed = threading.Condition()
        """Guards what follows, and tells of anything that may let something begin."""
        self._turns = Turns()
        self._open: dict[int, _Job] = {}
        self._measuring = threading.Lock()
        """Held while texts are encoded, and while one runs alone: what it costs is then its own."""

    def say(self, kind: str, fields: Mapping[str, Any] = _NOTHING, body: bytes = b"") -> None:
        """Write one frame; a supervisor that has gone ends this process."""
        try:
            with self._writing:
                frames.write(self._out, {"type": kind, **fields}, body)
        except OSError:
            os._exit(0)

    def serve(self, source: BinaryIO) -> None:
        """Take jobs until the pipe ends; jobs are encoded while others run."""
        threading.Thread(target=self._encode_jobs, name="encode", daemon=True).start()
        for number in range(max(1, self._about.streams)):
            threading.Thread(target=self._forward_groups, name=f"forward-{number}", daemon=True).start()
        while (frame := frames.read(source)) is not None:
            header, number = frame.header, frame.header["job"]
            match header["type"]:
                case "cancel":
                    self._cancel(number)
                case "priority":
                    with self._changed:
                        self._turns.prioritise(number, header["priority"])
                case _:
                    self._take(header, frame.body)

    def _take(self, header: Mapping[str, Any], body: bytes) -> None:
        groups = header["groups"]
        job = _Job(
            header["job"],
            _texts(body, header["lengths"]),
            None if groups is None else [(rows, Shape(*shape)) for rows, shape in groups],
            header.get("kept"),
            header.get("alone", False),
        )
        with self._changed:
            self._open[job.id] = job
            self._turns.open(job.id, header.get("batch", ""), header.get("priority", 0), alone=job.alone)
            self._changed.notify_all()

    def _encode_jobs(self) -> None:
        while True:
            with self._changed:
                while (number := self._turns.encode()) is None:
                    self._changed.wait()
                job = self._open[number]
            groups: list[tuple[int, int]] = []
            try:
                with self._measuring:
                    self.say("encoding", {"job": job.id})
                    encoded = self._engine.encode(job.texts)
                groups = self._plan(job, encoded)
            except EngineTrouble as error:
                self.say("trouble", {"job": job.id, **frames.told(error)})
            except BaseException as error:  # noqa: BLE001  (a panic in a tokenizer is no Exception)
                self.say("unreadable", {"job": job.id, "message": type(error).__name__})
            with self._changed:
                over = self._turns.plan(job.id, groups)
                self._changed.notify_all()
            self._end(job.id, over=over)

    def _plan(self, job: _Job, encoded: Encoded) -> list[tuple[int, int]]:
        """Tell of the plan; return the groups that are to run, each with its tokens."""
        if job.groups is None:
            planned = plan(encoded.lengths.tolist(), 1 if job.alone else self._budget, self._about)
            job.parts = [(part.rows, part.shape) for part in planned]
        else:
            ends = accumulate(count for count, _ in job.groups)
            job.parts = [
                (range(end - count, end), shape) for (count, shape), end in zip(job.groups, ends, strict=True)
            ]
        job.rows = encoded.rows
        told = [[list(rows), [shape.rows, shape.tokens]] for rows, shape in job.parts]
        whole = digest(told, encoded.lengths)
        kept = job.kept["groups"] if job.kept is not None and job.kept["plan"] == whole else []
        self.say(
            "encoded",
            {
                "job": job.id,
                "tokens": encoded.lengths,
                "truncated": encoded.truncated,
                "plan": whole,
                "groups": told,
                "kept": kept,
            },
        )
        left = sorted(set(range(len(told))) - set(kept))
        return [(number, int(encoded.lengths[list(job.parts[number][0])].sum())) for number in left]

    def _forward_groups(self) -> None:
        while True:
            with self._changed:
                while (turn := self._turns.next()) is None:
                    self._changed.wait()
                job = self._open[turn.job]
            self._forward(job, turn)
            with self._changed:
                over = self._turns.end(turn)
                self._changed.notify_all()
            self._end(turn.job, over=over)

    def _forward(self, job: _Job, turn: Turn) -> None:
        where = {"job": job.id, "group": turn.group}
        at, shape = job.parts[turn.group]
        rows = [job.rows[row] for row in at]
        self.say("started", where)
        try:
            if turn.alone:
                vectors, spent = self._alone([job.texts[row] for row in at], shape)
            else:
                vectors, spent = self._engine.forward(rows, shape), None
            vectors = np.asarray(vectors, np.float32)
            fault = wrong(vectors, rows, self._about.dimensions)
            if fault is None:
                told = {**where, "cpu": self._cpu(spent)}
                self.say("finished", told, np.ascontiguousarray(vectors, "<f4").tobytes())
            else:
                self.say("wrong", {**where, "reason": fault, "message": ""})
        except EngineTrouble as error:
            self._cancel(job.id)
            self.say("trouble", {**where, **frames.told(error)})
        except RowsRefused as error:
            self.say("wrong", {**where, "reason": "REFUSED", "message": error.message})
        except BaseException as error:  # noqa: BLE001  (about these rows until shown otherwise)
            self.say("wrong", {**where, "reason": "RAISED", "message": type(error).__name__})

    def _alone(self, texts: Sequence[str], shape: Shape) -> tuple[NDArray[np.float32], float]:
        """Embed one text from its words on; return its vector and the CPU seconds that it took."""
        with self._measuring:
            before = time.process_time()
            vectors = self._engine.forward(self._engine.encode(texts).rows, shape)
            return vectors, time.process_time() - before

    def _cpu(self, spent: float | None) -> float:
        """Return `spent`, or else the CPU seconds that this process has not told yet, encoding included."""
        with self._writing:
            if spent is None:
                spent = max(0.0, time.process_time() - self._told_cpu)
            self._told_cpu += spent
            return spent

    def _cancel(self, number: int) -> None:
        with self._changed:
            over = self._turns.cancel(number)
            self._changed.notify_all()
        self._end(number, over=over)

    def _end(self, number: int, *, over: bool) -> None:
        if over:
            with self._changed:
                del self._open[number]
            self.say("done", {"job": number})


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
