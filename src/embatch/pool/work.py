"""One shard's way through engine processes, faults and all, to one outcome for each of its texts.

The distinct texts of the shard are the rows here. Rows leave the work with a vector or with an error; what is
left over when a process dies is begun again, suspects apart from the rest.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.engine.protocol import Shape
from embatch.errors import EngineTrouble
from embatch.pool.poison import Fault, Suspect, error_of, judge
from embatch.pool.process import Gone, Group

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from embatch.engine.frames import Frame
    from embatch.errors import RequestError
    from embatch.pool.process import EngineProcess, Job
    from embatch.settings import Settings

_TICK: Final = 0.1
"""Seconds between two looks at the stop signal and the watchdog."""
_FAULTS: Final = {
    "SHAPE": Fault.WRONG,
    "NUMBER": Fault.WRONG,
    "RAISED": Fault.RAISED,
    "REFUSED": Fault.REFUSED,
}


class Stopped(Exception):
    """The stop signal was set."""


@dataclass(slots=True)
class Outcome:
    """What became of each row."""

    vectors: NDArray[np.float32]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: dict[int, RequestError] = field(default_factory=dict)


@dataclass(slots=True)
class _Watch:
    """What a job was doing when its process was last heard of."""

    groups: list[Group] = field(default_factory=list)
    encoded: bool = False
    running: dict[int, float] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    wrong: list[tuple[Group, Fault]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    cancelled: bool = False


@dataclass(slots=True)
class ShardWork:
    """Works the rows of one shard. Use once."""

    texts: Sequence[str]
    dimensions: int
    settings: Settings
    on_rows: Callable[[Sequence[int]], None]
    """Told which rows are finished, with a vector or an error."""
    stop: threading.Event
    process: Callable[[], EngineProcess]
    """Gives the lane's process, started anew if it is gone."""
    fresh: Callable[[], EngineProcess]
    """Starts a process of its own for suspects."""
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.texts)
        self.outcome = Outcome(
            np.zeros((count, self.dimensions), np.float32),
            np.zeros(count, np.int32),
            np.zeros(count, np.bool_),
        )

    def run(self) -> Outcome:
        """Work everything; return what became of each row.

        Raises:
            Stopped: the stop signal was set; nothing of the outcome counts.
            EngineTrouble: no engine process comes up, or the engine says it cannot work.
        """
        rows = list(range(len(self.texts)))
        while True:
            watch, fault = self._attempt(self.process(), rows, None)
            if watch.encoded or fault is None:
                break
            # It never got as far as a plan: some text cannot be encoded. Find those, plan without them.
            good = self._encodable(rows)
            self.on_rows(sorted(set(rows) - set(good)))
            rows = good
            if not rows:
                return self.outcome
        self._suspects(watch, fault)
        return self.outcome

    def _suspects(self, watch: _Watch, fault: Fault | None) -> None:
        """Finish what a first attempt left: the rest in the lane's process, suspects in a fresh one."""
        rest = watch
        suspects: list[Suspect] = []
        while True:
            suspects += [Suspect(rest.groups[number], proven=False) for number in rest.running]
            suspects += [
                verdict
                for group, kind in rest.wrong
                for verdict in self._blame(Suspect(group, proven=True), kind)
            ]
            idle = [rest.groups[number] for number in sorted(rest.left - set(rest.running))]
            if fault is None or not idle:
                break
            rest, fault = self._attempt(self.process(), None, idle)
        self._quarantine(suspects)

    def _quarantine(self, suspects: list[Suspect]) -> None:
        """Try suspects one at a time in a process of their own; a death costs a new one."""
        lonely: EngineProcess | None = None
        try:
            while suspects:
                if lonely is None or not lonely.alive:
                    lonely = self.fresh()
                suspect = suspects.pop()
                watch, fault = self._attempt(lonely, None, [suspect.group])
                if fault is None and watch.wrong:
                    fault = watch.wrong[0][1]
                if fault is not None:
                    suspects += self._blame(Suspect(suspect.group, proven=True), fault)
        finally:
            if lonely is not None:
                lonely.kill()

    def _blame(self, suspect: Suspect, fault: Fault) -> tuple[Suspect, ...]:
        verdict = judge(suspect, fault)
        if verdict.blamed is not None and verdict.error is not None:
            self.outcome.errors[verdict.blamed] = verdict.error
            self.on_rows([verdict.blamed])
        return verdict.retry

    def _encodable(self, rows: list[int]) -> list[int]:
        """Return the rows that can be encoded, bisecting in fresh processes; the others get their error."""
        lonely: EngineProcess | None = None
        good: list[int] = []
        pending = [rows]
        try:
            while pending:
                if lonely is None or not lonely.alive:
                    lonely = self.fresh()
                part = pending.pop()
                # No groups: encoding alone.
                _, fault = self._attempt(lonely, part, [])
                if fault is None:
                    good += part
                elif len(part) == 1:
                    self.outcome.errors[part[0]] = error_of(fault)
                else:
                    middle = len(part) // 2
                    pending += [part[middle:], part[:middle]]
        finally:
            if lonely is not None:
                lonely.kill()
        return sorted(good)

    def _attempt(
        self, process: EngineProcess, rows: list[int] | None, groups: list[Group] | None
    ) -> tuple[_Watch, Fault | None]:
        """Run rows (planned by the process) or groups in one process; return where it ended, and how.

        `None`: to its end, apart from what `wrong` lists.
        """
        planned = None if groups is None else [(len(group.rows), group.shape) for group in groups]
        numbered = [row for group in groups or () for row in group.rows] if rows is None else rows
        job = process.submit([self.texts[row] for row in numbered], planned)
        watch = _Watch()
        try:
            return watch, self._follow(job, watch, numbered)
        finally:
            process.forget(job.number)

    def _follow(self, job: Job, watch: _Watch, numbered: list[int]) -> Fault | None:
        """Take a job's events to its end."""
        while True:
            try:
                event = job.events.get(timeout=_TICK)
            except queue.Empty:
                if self._overdue(job.process, watch):
                    job.process.kill()
                    return Fault.HUNG
                event = None
            if self.stop.is_set():
                self._wind_down(job, watch, event)
            if event is None:
                continue
            if isinstance(event, Gone):
                return Fault.DIED
            kind = event.header["type"]
            if kind == "done":
                return None
            if kind == "trouble":
                raise EngineTrouble(str(event.header["message"]))
            if kind == "unreadable":
                return Fault.RAISED
            self._note(event, watch, numbered)

    def _wind_down(self, job: Job, watch: _Watch, event: Frame | Gone | None) -> None:
        """Stop a job between micro-batches: once what runs has ended, or its process has."""
        if not watch.cancelled:
            watch.cancelled = True
            job.process.cancel(job.number)
        ended = isinstance(event, Gone) or (event is not None and event.header["type"] == "done")
        if ended or (event is None and not watch.running):
            raise Stopped

    def _note(self, event: Frame, watch: _Watch, numbered: list[int]) -> None:
        header = event.header
        if header["type"] == "encoded":
            watch.encoded = True
            watch.groups = [
                Group(tuple(numbered[row] for row in rows), Shape(*shape)) for rows, shape in header["groups"]
            ]
            watch.left = set(range(len(watch.groups)))
            self.outcome.tokens[numbered] = header["tokens"]
            self.outcome.truncated[numbered] = header["truncated"]
            return
        number = header["group"]
        if header["type"] == "started":
            watch.running[number] = time.monotonic()
            return
        watch.running.pop(number, None)
        watch.left.discard(number)
        group = watch.groups[number]
        if header["type"] == "wrong":
            watch.wrong.append((group, _FAULTS[header["reason"]]))
            return
        vectors: Any = np.frombuffer(event.body, "<f4").reshape(len(group.rows), -1)
        self.outcome.vectors[list(group.rows)] = vectors
        self.on_rows(group.rows)

    def _overdue(self, process: EngineProcess, watch: _Watch) -> bool:
        """Whether a micro-batch, or the encoding, takes too long, or the process has gone silent."""
        now, settings = time.monotonic(), self.settings
        if now - process.heard > settings.heartbeat_seconds:
            return True
        if not watch.encoded:
            return now - watch.begun > settings.micro_batch_seconds
        return any(now - begun > settings.micro_batch_seconds for begun in watch.running.values())
