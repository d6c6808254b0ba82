"""What a pool is to those above it, and what the work of a shard needs of the processes below it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Mapping, Sequence
    from queue import SimpleQueue

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.engine.frames import Frame
    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description, Shape
    from embatch.shard import Done

TICK: Final = 0.1
"""Seconds between two looks at a stop signal."""
CLOSING: Final = "the service is closing"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How the engine of a model in a lane does."""

    model: str
    lane: str
    pid: int | None
    """`None` while there is no process."""
    state: str
    """`starting` (or unloaded until somebody asks), `ready`, or `broken`: it does not come up; `message` says
    why."""
    restarts: int
    """How often its process was replaced."""
    message: str | None


@dataclass(frozen=True, slots=True)
class Referenced:
    """What the reference path gave."""

    results: pa.RecordBatch
    """`shard.results_schema`, in the order of the requests."""
    tokens: int
    cpu_seconds: float
    """What the engine spent on them, one at a time."""
    compared: Description
    """The engine of the shards that these vectors stand against."""


@dataclass(slots=True, eq=False)
class Origin:
    """Where texts come from: by this they wait for their turn among others, and find what was done before."""

    batch: str = ""
    """Whose turn it is; empty: nobody else's."""
    priority: int = 0
    """Of the batch. It may be changed while the texts are worked, and then counts for those that are left."""
    kept: pa.RecordBatch | None = None
    """What an earlier attempt left, and after one that was stopped what it leaves; see `pool.kept`."""


class Stopped(Exception):
    """The caller's stop signal was set."""


class End(Enum):
    """How a process ended."""

    DIED = "died"
    KILLED = "killed"
    """By a SIGKILL that is not ours."""
    HUNG = "hung"
    """It was silent, or too long at one piece of work, and we ended it."""
    CLOSED = "closed"
    """We ended it because it is not needed any more."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The last event of a job whose process ended."""

    end: End
    message: str
    others: bool = False
    """Whether texts of other jobs were under way in it, which may be what ended it."""


class Skipped(NamedTuple):
    """Groups of a plan that were run before."""

    plan: str
    """Digest of the plan: they are left out of this one alone. See `packing.digest`."""
    groups: Sequence[int]


class Job(Protocol):
    """Texts under way in a worker. Leaving its context takes no further events."""

    @property
    def worker(self) -> Worker:
        """Where they are."""
        ...

    @property
    def events(self) -> SimpleQueue[Frame | Gone]:
        """What the engine says of it, in order; `Gone` is the last one of a worker that ended."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Take no further events."""
        ...

    def cancel(self) -> None:
        """Ask that no further micro-batch of it is begun."""
        ...

    def prioritise(self, priority: int) -> None:
        """Let its batch have another priority from now on."""
        ...


class Worker(Protocol):
    """What holds one loaded engine, and may end at any moment."""

    def await_ready(self, stop: threading.Event | None = None) -> Description:
        """Wait until the engine is loaded and return what it is, also of a worker that ended since.

        Raises:
            EngineTrouble: it failed to load, died, or took too long; the message is the engine's own.
            Stopped: `stop` was set first.
        """
        ...

    def submit(
        self,
        texts: Sequence[str],
        groups: Sequence[tuple[int, Shape]] | None,
        origin: Origin,
        *,
        alone: bool = False,
        kept: Skipped | None = None,
    ) -> Job:
        """Send texts; `None` lets the worker plan, groups say how many rows in order run in which shape.

        No groups at all ask for encoding alone. `origin` says who waits, and `kept` which groups need not run
        if the plan is what it was. `alone` runs each text by itself while nothing else runs, before all
        others. In a worker that is gone the job's first event is `Gone`.
        """
        ...

    def retire(self) -> None:
        """Take no new jobs; end once the last open one is closed."""
        ...

    def kill(self, why: End) -> None:
        """End it at once, without waiting for it. Repeating is safe; the first reason counts."""
        ...


class Processes(Protocol):
    """What the work of a shard needs of a lane. Both methods wait until the engine is loaded.

    Both raise EngineTrouble when none comes up, and Stopped when `stop` is set first.
    """

    proven: bool
    """Whether any text was ever embedded here: until then failures are the engine's, not a text's."""

    def process(self, stop: threading.Event) -> Worker:
        """Return the process that works, started anew if need be."""
        ...

    def fresh(self, stop: threading.Event) -> Worker:
        """Start a process that nobody else uses. The caller ends it."""
        ...


class Pool(Protocol):
    """Texts in, vectors out, whatever happens to the processes in between. Thread-safe.

    Every method may block, but for `slots`, `loaded`, `unbatched_cost`, `troubles` and `status`: they tell at
    once.
    """

    @property
    def slots(self) -> int:
        """How many shards are worth embedding at once, the same for as long as it lives."""
        ...

    def loaded(self) -> Collection[str]:
        """Return the models whose shards need no engine to be loaded, and that may stay as they are."""
        ...

    def describe(self, model: ServedModel) -> Description:
        """Return what is loaded for a model, loading it if need be. Raises EngineTrouble."""
        ...

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
        """Embed a payload shard: `shard.REQUESTS` in, `shard.results_schema` out.

        The results say in `shard.COMPUTED_BY` what made their vectors, in `shard.IDENTITY` which engine.
        Rows keep their order; a faulty row keeps its fault; a row that an engine cannot bear gets an error.
        Rows that come with a vector of the same model (`shard.PRECOMPUTED`) keep it. `on_progress` is told
        what more is finished. With `suspect` nothing that others use is put at risk. `origin` says whose turn
        it is, as far as shards wait for one another. `None`: `stop` was set, heard between micro-batches, and
        `origin.kept` is what the next attempt need not do again.

        Raises:
            EngineTrouble: no engine process comes up; no row is to blame.
        """
        ...

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """Embed a few texts that somebody waits for, same columns as `embed`. Raises EngineTrouble."""
        ...

    def reference(self, model: ServedModel, requests: pa.RecordBatch) -> Referenced:
        """Embed a few texts by the reference path: float32, one text at a time. Raises EngineTrouble.

        It waits behind the shards of the moment. Without texts it waits for their engine alone, and an engine
        of its own, where it needs one, begins to load.
        """
        ...

    def count(self, model: ServedModel, requests: pa.RecordBatch) -> NDArray[np.int32]:
        """Return the tokens the model would see of each request, int32 (n,). Raises EngineTrouble."""
        ...

    def unbatched_cost(self, model: str) -> float | None:
        """Return the CPU seconds a token costs one text at a time; `None`: not measured yet."""
        ...

    def troubles(self) -> Mapping[str, str]:
        """Return by model why no engine comes up for its shards; empty: none is known to be in trouble.

        Engines may begin to load before a shard waits for them: who reads this knows before that.
        """
        ...

    def status(self) -> Sequence[EngineStatus]:
        """Return how each engine process does."""
        ...

    def close(self, grace: float) -> None:
        """End all processes; running micro-batches get `grace` seconds. Repeating is safe."""
        ...
