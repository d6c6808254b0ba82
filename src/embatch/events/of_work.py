"""What is told of work: shards, files, engines, models, the vector cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embatch.events.emitting import FailureEvent, Level, ServiceEvent, event

if TYPE_CHECKING:
    from collections.abc import Mapping

# Work.


@event("a slot pauses", "embatch.dispatcher", Level.ERROR)
class SlotPaused(FailureEvent):
    """A slot could not go on, because of the disk or of a bug, and tries again."""

    message: str | None = None
    """What the trouble is; `None`: a bug."""


@event("work pauses", "embatch.dispatcher", Level.ERROR)
class WorkPaused(ServiceEvent):
    """Shards of a model or of a batch wait although they could be worked."""

    of: str
    """The name of the model, or the id of the batch."""
    error: str


@event("payload lost", "embatch.dispatcher", Level.ERROR)
class PayloadLost(ServiceEvent):
    """A shard's stored requests are gone or damaged: they fail."""

    batch: str
    shard: int


@event("model changed", "embatch.dispatcher", Level.ERROR)
class BatchModelChanged(ServiceEvent):
    """The model is another than when the batch began: the shard's requests fail."""

    batch: str
    shard: int


@event("a file could not be planned", "embatch.planner", Level.ERROR)
class FileNotPlanned(FailureEvent):
    """Planning an input file met a bug: its batch fails."""

    batch: str


@event("a file cannot be planned yet", "embatch.planner", Level.WARNING)
class FileWaits(ServiceEvent):
    """An input file cannot be planned just now, and is tried again."""

    batch: str
    """The batch's id; `store`: the store did not say which files wait."""
    error: str


@event("the wall clock was set", "embatch.sweeps", Level.WARNING)
class ClockSet(ServiceEvent):
    """Somebody set the wall clock."""

    seconds: float
    """By how much; negative: backwards."""


@event("a sweep failed", "embatch.sweeps", Level.ERROR)
class SweepFailed(FailureEvent):
    """One of the sweeps for what has grown old failed; the next one tries again."""


# Engines.


@event("engine ready", "embatch.pool", Level.INFO)
class EngineReady(ServiceEvent):
    """An engine process has loaded its model."""

    pid: int
    engine: str
    precision: str
    streams: int
    """Micro-batches that it computes at once."""
    passed_over: Mapping[str, str]
    """By faster engine what stands against it, as `not_{engine}` in the log."""

    def members(self) -> dict[str, Any]:
        """Return the fields by name, and one more for each engine that was passed over."""
        members = ServiceEvent.members(self)
        del members["passed_over"]
        return members | {f"not_{name}": problem for name, problem in self.passed_over.items()}


@event("engine process given up", "embatch.pool", Level.WARNING)
class EngineGivenUp(ServiceEvent):
    """An engine process was over a limit of time, and is ended."""

    pid: int
    limit: str
    """`start`: loading took too long; `work`: a micro-batch did; `silence`: it gave no sign of life."""


@event("engine process ended", "embatch.pool", Level.WARNING)
class EngineEnded(ServiceEvent):
    """An engine process has ended without having been asked to."""

    pid: int
    how: str
    """Exit code or signal."""
    why: str | None = None
    """For one that had not loaded yet: its own words."""


@event("model replaced", "embatch.pool", Level.WARNING)
class ModelReplaced(ServiceEvent):
    """An engine process holds older files of its model than another one, and is replaced."""

    model: str
    old: int
    """The process id of the one that goes."""


@event("engine unloaded", "embatch.pool", Level.INFO)
class EngineUnloaded(ServiceEvent):
    """An engine that nobody used made room for another one."""

    model: str
    lane: str
    bytes: int


@event("model named", "embatch.registry", Level.INFO)
class ModelNamed(ServiceEvent):
    """A private service was asked for a model; its name, and the folder or Hub name that it is `of`, stay."""

    model: str
    of: str
    commit: str | None = None


# The vector cache.


@event("not cached", "embatch.caching", Level.WARNING)
class NotCached(ServiceEvent):
    """What a batch of a run computed could not be kept: it will be computed again."""

    batch: str
    error: str


@event("the cache keeps no more until a run ends", "embatch.cache", Level.WARNING)
class CacheFull(ServiceEvent):
    """What runs have staged takes all that the cache may have; said once until a run ends."""

    run: str
    limit_bytes: int
