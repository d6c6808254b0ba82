"""One shard's way through engine processes, faults and all, to one outcome for each of its texts.

The distinct texts of the shard are the rows here. Rows leave the work with a vector or with an error; what is
left over when a process ends is begun again in the plan it had, suspects apart from the rest.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.engine import frames
from embatch.engine.protocol import EndpointTrouble, Shape
from embatch.errors import Code, EngineTrouble, Reason, RequestError
from embatch.pool.kept import Plan
from embatch.pool.poison import Blame, Fault, Group, Inquiry, suspects
from embatch.pool.protocol import CLOSING, TICK, End, Gone, Origin, Stopped

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.engine.frames import Frame
    from embatch.engine.protocol import Description
    from embatch.pool.kept import KeptGroups, KeptRows
    from embatch.pool.protocol import Job, Processes, Worker

CONTROL: Final = "The quick brown fox jumps over the lazy dog."
"""What an engine must manage before any text is blamed for its failures."""
EMPTY: Final = RequestError(
    Code.INVALID_ARGUMENT,
    Reason.EMPTY_TEXT,
    "the model's tokenizer leaves nothing of this text: leave it out or change it",
)
_PATIENCE: Final = 3
"""How often in a row a process may end with nothing begun before the engine itself is in trouble."""
_FAULTS: Final = {
    "SHAPE": Fault.WRONG,
    "NUMBER": Fault.WRONG,
    "REFUSED": Fault.REFUSED,
    "RAISED": Fault.RAISED,
}
_ENDS: Final = {End.DIED: Fault.DIED, End.KILLED: Fault.KILLED, End.HUNG: Fault.HUNG}


@dataclass(slots=True)
class Outcome:
    """What became of each row: float32 (rows, dimensions), zeros where `errors` has the row."""

    vectors: NDArray[np.float32]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    done: NDArray[np.bool_]
    """Rows that have their vector or their error for good."""
    errors: dict[int, RequestError] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    """What the engine processes spent on it."""


@dataclass(slots=True)
class _Course:
    """How far a job came in one process."""

    rows: Sequence[int]
    """The rows that were sent, in this order."""
    priority: int
    """What the process was told last."""
    kept: KeptGroups | None = None
    """What need not run if the plan is what it was."""
    given: bool = False
    """Whether the process was told the groups, and did not plan them."""
    groups: list[Group] = field(default_factory=list)
    begun: bool = False
    """Whether the engine has seen any row."""
    encoded: bool = False
    running: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    failed: list[tuple[Group, Fault, str]] = field(default_factory=list)
    """Groups that failed while the process went on, with the engine's own words."""
    fault: Fault | None = None
    """How it ended before its time; `None` if every group has finished or failed."""
    others: bool = False
    """Whether it ended while others were at work, which may have been their doing."""
    finished: int = 0

    def rest(self) -> list[Group]:
        """Return the groups that no engine has touched."""
        return [self.groups[number] for number in sorted(self.left - self.running)]


@dataclass(slots=True)
class ShardWork:
    """Works the rows of one shard. Use once."""

    texts: Sequence[str]
    about: Description
    """What shall embed them: a process that loaded something else is not asked."""
    processes: Processes
    stop: threading.Event
    on_rows: Callable[[Sequence[int]], None]
    """Told which rows are finished, with a vector or an error."""
    doubted: bool = False
    """Whether trouble of the engine may be a row's doing: the shard was tried before and never got done."""
    alone: bool = False
    """Whether each text runs by itself, and nothing else meanwhile."""
    known: KeptRows | None = None
    """What an earlier attempt has of them: it is not worked again."""
    kept: KeptGroups | None = None
    """What an earlier attempt has of their plan: it is not worked again if the plan is the same."""
    origin: Origin = field(default_factory=Origin)
    """Whose turn it is."""
    outcome: Outcome = field(init=False)
    plan: Plan | None = field(init=False, default=None)
    """What was planned for all of them; `None`: nothing yet."""
    _vain: int = 0
    """Processes in a row that ended with nothing done and nobody suspected."""

    def __post_init__(self) -> None:
        count = len(self.texts)
        self.outcome = Outcome(
            np.zeros((count, self.about.dimensions), np.float32),
            np.zeros(count, np.int32),
            np.zeros(count, np.bool_),
            np.zeros(count, np.bool_),
        )

    def run(self) -> Outcome:
        """Work everything; return what became of each row.

        Raises:
            Stopped: the stop signal was set; nothing of the outcome counts.
            EngineTrouble: no engine process comes up, or the engine says or shows that it cannot work.
        """
        self._take_known()
        apart: list[Group] = []
        course = self._begin()
        while course is not None:
            again = course.rest()
            if course.fault is not None:
                found = suspects(course.groups[number] for number in sorted(course.running))
                self._mind_vain(course, vain=not found)
                apart += found
            for group, fault, detail in course.failed:
                if fault.spoils:
                    apart += suspects([group])
                elif len(group.rows) > 1:
                    again += group.halves()
                else:
                    self._accuse(Blame(group.rows[0], fault), detail)
            course = self._attempt(self.processes.process(self.stop), None, again) if again else None
        self._inquire(apart)
        if not self.outcome.done.all():
            raise EngineTrouble("the engine left out texts that it was given")
        return self.outcome

    def count(self) -> NDArray[np.int32]:
        """Return the tokens of each row, int32 (rows,), without running the model. Raises as `run`."""
        process = self.processes.process(self.stop)
        if not self._attempt(process, range(len(self.texts)), []).encoded:
            raise EngineTrouble("the engine cannot count the tokens of these texts")
        return self.outcome.tokens

    def _take_known(self) -> None:
        if (part := self.known) is None:
            return
        self.outcome.vectors[part.rows] = part.vectors
        self.outcome.tokens[part.rows] = part.tokens
        self.outcome.truncated[part.rows] = part.truncated
        self.outcome.done[part.rows] = True
        self.outcome.errors |= part.errors
        self.on_rows(part.rows.tolist())

    def _begin(self) -> _Course | None:
        """Have the shard encoded, planned and run; return how far that came, `None` if no row is left."""
        rows: Sequence[int] = np.flatnonzero(~self.outcome.done).tolist()
        while rows:
            course = self._attempt(self.processes.process(self.stop), rows, None, self.kept)
            if course.encoded:
                return course
            # The plan needs all lengths: find the texts that cannot be encoded, and plan without them.
            if course.begun:
                self._inquire([Group(tuple(rows), None)])
            good = [row for row in rows if row not in self.outcome.errors]
            self._mind_vain(course, vain=len(good) == len(rows))
            rows = good
        return None

    def _mind_vain(self, course: _Course, *, vain: bool) -> None:
        """Give up when process after process ends and neither work nor suspicion comes of it.

        Those that ended while others were at work are not counted: they may have been the others' doing.
        """
        if course.others and vain and not course.finished:
            return
        self._vain = self._vain + 1 if vain and not course.finished else 0
        if self._vain >= _PATIENCE:
            raise EngineTrouble("engine processes end again and again before they have done anything")

    def _inquire(self, groups: Sequence[Group]) -> None:
        """Try suspects one group at a time in processes of their own until each row passed or is blamed."""
        inquiry = Inquiry(groups)
        process: Worker | None = None
        try:
            while (trial := inquiry.next()) is not None:
                if trial.new_process or process is None:
                    if process is not None:
                        process.kill(End.CLOSED)
                    process = self.processes.fresh(self.stop)
                    self._prove(process)
                group = trial.group
                course = self._attempt(process, group.rows, [] if group.shape is None else [group])
                if course.fault is not None and not course.begun:
                    self._mind_vain(course, vain=True)
                    inquiry.lost()
                    continue
                self._vain = 0
                fault, detail = course.fault, ""
                if fault is None and course.failed:
                    _, fault, detail = course.failed[0]
                if (blame := inquiry.report(fault)) is not None:
                    self._accuse(blame, detail)
        finally:
            if process is not None:
                process.kill(End.CLOSED)

    def _prove(self, process: Worker) -> None:
        """Make sure that this engine ever embedded anything, before it is believed about a text."""
        if not self.processes.proven:
            self._control(process)

    def _control(self, process: Worker) -> None:
        """Embed a harmless text. Raises EngineTrouble when the engine fails on that too."""
        work = ShardWork(
            [CONTROL],
            self.about,
            self.processes,
            self.stop,
            on_rows=lambda _: None,
            origin=self.origin,  # this shard waits for it
        )
        course = work._attempt(process, [0], None)
        fault = course.fault or next((fault for _, fault, _ in course.failed), None)
        if fault is not None:
            raise EngineTrouble(f"the engine {fault.value} on any text")

    def _accuse(self, blame: Blame, detail: str) -> None:
        if not blame.fault.spoils:
            self._prove(self.processes.process(self.stop))
        self.outcome.errors[blame.row] = blame.error(detail)
        self.outcome.tokens[blame.row] = 0  # as in the results: what was told of progress is not taken back
        self.outcome.done[blame.row] = True
        self.on_rows([blame.row])

    def _attempt(
        self,
        process: Worker,
        rows: Sequence[int] | None,
        groups: Sequence[Group] | None,
        kept: KeptGroups | None = None,
    ) -> _Course:
        """Run rows (planned by the process) or groups in one process; return how far that came.

        Raises:
            EngineTrouble: the process was started after the model's files, or the engine, had changed.
        """
        if process.await_ready() != self.about:
            raise EngineTrouble("the model changed while a shard was worked: it is begun anew")
        if rows is None:
            rows = [row for group in groups or () for row in group.rows]
        shapes = (
            None
            if groups is None
            else [(len(group.rows), group.shape) for group in groups if group.shape is not None]
        )
        kept = kept if len(rows) == len(self.texts) else None
        course = _Course(rows, self.origin.priority, kept)
        if groups is not None:  # they are left also where the process ends before it has said so
            course.given, course.groups, course.left = True, list(groups), set(range(len(groups)))
        skipped = None if course.kept is None else course.kept.skipped
        texts = [self.texts[row] for row in rows]
        with process.submit(texts, shapes, self.origin, alone=self.alone, kept=skipped) as job:
            self._follow(job, course)
        fault = course.fault
        if self.about.elsewhere and fault is not None and fault in _ENDS.values():
            raise EndpointTrouble(f"the process that asks the endpoint {fault.value}")
        if course.fault is Fault.RAISED or any(fault.spoils for _, fault, _ in course.failed):
            process.retire()
        return course

    def _follow(self, job: Job, course: _Course) -> None:
        """Take a job's events to its end."""
        cancelled = False
        while True:
            try:
                event = job.events.get(timeout=TICK)
            except queue.Empty:
                event = None
            if self.stop.is_set() and not cancelled:
                cancelled = True
                job.cancel()
            if self.origin.priority != course.priority:
                course.priority = self.origin.priority
                job.prioritise(course.priority)
            ended = isinstance(event, Gone) or (event is not None and event.header["type"] == "done")
            if cancelled and (ended or (event is None and not course.running)):
                raise Stopped
            if isinstance(event, Gone):
                if event.end is End.CLOSED:
                    raise EngineTrouble(CLOSING)
                course.fault, course.others = _ENDS[event.end], event.others
                return
            if ended:
                return
            if event is not None:
                self._note(event, course, job.worker)

    def _note(self, event: Frame, course: _Course, process: Worker) -> None:
        header = event.header
        match header["type"]:
            case "encoding":
                course.begun = True
            case "unreadable":
                course.fault = Fault.RAISED
            case "encoded":
                self._planned(header, course)
            case "started":
                course.running.add(header["group"])
            case "trouble":
                self._trouble(header, course, process)
            case kind:
                self._settle(kind, event, course)

    def _planned(self, header: Mapping[str, Any], course: _Course) -> None:
        course.encoded = True
        course.groups = [
            Group(tuple(course.rows[row] for row in rows), Shape(*shape)) for rows, shape in header["groups"]
        ]
        course.left = set(range(len(course.groups))) - set(header["kept"])
        at = list(course.rows)
        self.outcome.tokens[at] = header["tokens"]
        self.outcome.truncated[at] = header["truncated"]
        # A vector of no tokens is that of no text, whatever numbers an engine has for it.
        self.outcome.errors |= {row: EMPTY for row in at if not self.outcome.tokens[row]}
        if len(at) == len(self.texts) and not course.given:
            self.plan = Plan(header["plan"], tuple(course.groups))
        if course.kept is not None and header["kept"]:
            self.outcome.vectors[course.kept.rows] = course.kept.vectors
            self.outcome.done[course.kept.rows] = True
            self.outcome.cpu_seconds += course.kept.cpu_seconds
            self.on_rows(course.kept.rows.tolist())

    def _settle(self, kind: str, event: Frame, course: _Course) -> None:
        """Note that a group has `finished` or was `wrong`."""
        number = event.header["group"]
        course.running.discard(number)
        course.left.discard(number)
        group = course.groups[number]
        if kind == "wrong":
            reason = event.header["reason"]
            if reason == "SAME":
                raise EngineTrouble("the engine gives different texts the same vector")
            course.failed.append((group, _FAULTS[reason], event.header["message"]))
            return
        at: Any = np.array(group.rows)
        self.outcome.vectors[at] = np.frombuffer(event.body, "<f4").reshape(len(at), -1)
        self.outcome.cpu_seconds += event.header["cpu"]
        self.processes.proven = True
        self.outcome.done[at] = True
        course.finished += 1
        self.on_rows(at)

    def _trouble(self, header: Mapping[str, Any], course: _Course, process: Worker) -> None:
        """Pass the engine's trouble on, unless a doubted shard may be its cause: a harmless text tells.

        An endpoint that is well for a harmless text and refuses real ones, as a rate limit does, is no sign
        of that.
        """
        trouble = frames.trouble(header)
        if not self.doubted or isinstance(trouble, EndpointTrouble):
            raise trouble
        try:
            self._control(process)
        except EngineTrouble:
            raise trouble from None
        number = header.get("group")
        if number is None:
            course.fault = Fault.RAISED
            return
        course.running.discard(number)
        course.left.discard(number)
        course.failed.append((course.groups[number], Fault.RAISED, ""))
