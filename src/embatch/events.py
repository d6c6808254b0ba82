"""What a service tells of: frozen values, and `emit`, which hands each to all who subscribed.

One class an event. The log is the first subscriber (`server/logs.py` writes its lines); whoever counts, shows
or sends events is another, and no caller of `emit` knows of it:

    unsubscribe = subscribe(lambda event: counts.update([event.words]))

No text of a user, no vector and no key enters an event: ids, names, sizes and our own words do. An exception
may quote a user, so of it nothing but its type and the places it passed leaves the process.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

E = TypeVar("E", bound="ServiceEvent")


class Level(IntEnum):
    """How much an event matters to the person who runs the service. The numbers are those of `logging`."""

    INFO = logging.INFO
    """All is as it should be."""
    WARNING = logging.WARNING
    """The service goes on as it should; somebody may want to know."""
    ERROR = logging.ERROR
    """Somebody should look: work waits, or something was lost, or embatch has a bug."""
    CRITICAL = logging.CRITICAL
    """The service ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEvent:
    """What every event has beside its own fields."""

    words: ClassVar[str]
    """What happened, the same words each time."""
    source: ClassVar[str]
    """Which part of the service tells of it, as the name of a logger."""
    level: ClassVar[Level]
    defaults: ClassVar[tuple[tuple[str, Any], ...]]
    """The names of its members, each with its default: looked up once, for every request is an event."""

    def members(self) -> dict[str, Any]:
        """Return the fields by name, without an exception, and without those left at their default."""
        return {name: value for name, left in self.defaults if (value := getattr(self, name)) != left}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent(ServiceEvent):
    """An event that an exception stands behind."""

    exception: BaseException
    """With its traceback: a subscriber that keeps the event keeps the frames of all calls on the way."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _event(words: str, source: str, level: Level) -> Callable[[type[E]], type[E]]:
    def complete(declared: type[E]) -> type[E]:
        declared.words, declared.source, declared.level = words, source, level
        made = dataclass(frozen=True, slots=True, kw_only=True)(declared)
        made.defaults = tuple((item.name, item.default) for item in fields(made) if item.name != "exception")
        return made

    return complete


# The API.


@_event("request", "embatch.api", Level.INFO)
class RequestEnded(ServiceEvent):
    """An HTTP request was answered, or its client has gone."""

    method: str
    route: str | None
    """The pattern of the path, never the path; `None`: no route has it."""
    status: int
    """499: the client went before the answer. 503: the service ended before it."""
    ms: float
    """Milliseconds from the request's head to the end of its answer."""
    bytes_in: int
    """Bytes of the request's body, as far as it was read."""
    bytes_out: int
    """Bytes of the answer's body."""
    key: str | None = None
    """Id of the key that was shown; `None`: the service asks for none, or none of its own was."""
    torn: bool = False
    """Whether the answer ended before its last byte."""


@_event("refused", "embatch.api", Level.INFO)
class RequestRefused(ServiceEvent):
    """A connection was over a limit, or what came was no HTTP: no application saw the request."""

    status: int
    """499: not answered, for the client takes nothing."""
    reason: str


@_event("answer torn", "embatch.api", Level.WARNING)
class AnswerTorn(ServiceEvent):
    """A streamed answer was cut off in its midst by trouble that passes."""

    status: str
    reason: str | None
    message: str


@_event("answer torn", "embatch.api", Level.ERROR)
class AnswerTornByFault(AnswerTorn):
    """A streamed answer was cut off in its midst by what is damaged, or by a bug."""


@_event("error", "embatch.api", Level.ERROR)
class FaultAnswered(ServiceEvent):
    """A request got an error that is the service's fault: what is damaged, or could not be done."""

    status: str
    message: str


@_event("bug", "embatch.api", Level.ERROR)
class BugAnswered(FailureEvent):
    """A request met an exception that nobody foresaw."""

    kind: str
    """The exception's type."""


# The process.


@_event("listening", "embatch.server", Level.INFO)
class ServiceListening(ServiceEvent):
    """The service takes connections."""

    address: str
    pid: int


@_event("keys travel in clear unless a TLS proxy stands before this address", "embatch.server", Level.WARNING)
class KeysInClear(ServiceEvent):
    """A service with keys listens where others than this machine can reach it, and speaks no TLS."""


@_event("keys read", "embatch.server", Level.INFO)
class KeysRead(ServiceEvent):
    """The file of keys was read, at the start or when asked: what it holds counts from now on."""

    keys: int
    """How many it holds."""


@_event("keys not read", "embatch.server", Level.ERROR)
class KeysNotRead(ServiceEvent):
    """The file of keys was to be read again and cannot be, or is wrong: the old keys go on counting."""

    reason: str
    """With the file and a line's number, and nothing of what stands there."""


@_event("lingering", "embatch.server", Level.INFO)
class ServiceLingers(ServiceEvent):
    """The last client of a private service has gone; it ends when no other one comes in time."""

    seconds: float
    """How long it waits."""


@_event("leaving", "embatch.server", Level.INFO)
class ServiceLeaving(ServiceEvent):
    """A signal began the graceful end."""

    signal: int


@_event("leaving at once", "embatch.server", Level.WARNING)
class ServiceLeavingAtOnce(ServiceEvent):
    """A second signal ended the process without waiting."""

    signal: int


@_event("ended", "embatch.server", Level.INFO)
class ServiceEnded(ServiceEvent):
    """The service has ended as it should, or because its storage is broken."""

    storage: str
    """`good` or `broken`."""


@_event(
    "the storage failed, and what it holds is not known: the next start finds out",
    "embatch.server",
    Level.CRITICAL,
)
class StorageBroken(ServiceEvent):
    """The disk refused a commit in a way that leaves open what it holds; the service ends."""


@_event("the connection that keeps the database to this service has broken", "embatch.server", Level.CRITICAL)
class DatabaseLost(ServiceEvent):
    """Another service may take the database now; this one ends."""


@_event("event loop", "embatch.loop", Level.ERROR)
class LoopFailed(ServiceEvent):
    """The event loop had an error that it could hand to nobody."""

    message: str
    """asyncio's words, without arguments of calls."""
    exception: BaseException | None


@_event("a subscriber failed", "embatch.events", Level.ERROR)
class SubscriberFailed(FailureEvent):
    """A subscriber of events raised; it is told of once, and goes on being called."""

    subscriber: str


# Work.


@_event("a slot pauses", "embatch.dispatcher", Level.ERROR)
class SlotPaused(FailureEvent):
    """A slot could not go on, because of the disk or of a bug, and tries again."""

    message: str | None = None
    """What the trouble is; `None`: a bug."""


@_event("work pauses", "embatch.dispatcher", Level.ERROR)
class WorkPaused(ServiceEvent):
    """Shards of a model or of a batch wait although they could be worked."""

    of: str
    """The name of the model, or the id of the batch."""
    error: str


@_event("payload lost", "embatch.dispatcher", Level.ERROR)
class PayloadLost(ServiceEvent):
    """A shard's stored requests are gone or damaged: they fail."""

    batch: str
    shard: int


@_event("model changed", "embatch.dispatcher", Level.ERROR)
class BatchModelChanged(ServiceEvent):
    """The model is another than when the batch began: the shard's requests fail."""

    batch: str
    shard: int


@_event("a file could not be planned", "embatch.planner", Level.ERROR)
class FileNotPlanned(FailureEvent):
    """Planning an input file met a bug: its batch fails."""

    batch: str


@_event("a file cannot be planned yet", "embatch.planner", Level.WARNING)
class FileWaits(ServiceEvent):
    """An input file cannot be planned just now, and is tried again."""

    batch: str
    """The batch's id; `store`: the store did not say which files wait."""
    error: str


@_event("the wall clock was set", "embatch.sweeps", Level.WARNING)
class ClockSet(ServiceEvent):
    """Somebody set the wall clock."""

    seconds: float
    """By how much; negative: backwards."""


@_event("a sweep failed", "embatch.sweeps", Level.ERROR)
class SweepFailed(FailureEvent):
    """One of the sweeps for what has grown old failed; the next one tries again."""


# Engines.


@_event("engine ready", "embatch.pool", Level.INFO)
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


@_event("engine process given up", "embatch.pool", Level.WARNING)
class EngineGivenUp(ServiceEvent):
    """An engine process was over a limit of time, and is ended."""

    pid: int
    limit: str
    """`start`: loading took too long; `work`: a micro-batch did; `silence`: it gave no sign of life."""


@_event("engine process ended", "embatch.pool", Level.WARNING)
class EngineEnded(ServiceEvent):
    """An engine process has ended without having been asked to."""

    pid: int
    how: str
    """Exit code or signal."""
    why: str | None = None
    """For one that had not loaded yet: its own words."""


@_event("model replaced", "embatch.pool", Level.WARNING)
class ModelReplaced(ServiceEvent):
    """An engine process holds older files of its model than another one, and is replaced."""

    model: str
    old: int
    """The process id of the one that goes."""


@_event("engine unloaded", "embatch.pool", Level.INFO)
class EngineUnloaded(ServiceEvent):
    """An engine that nobody used made room for another one."""

    model: str
    lane: str
    bytes: int


@_event("model named", "embatch.registry", Level.INFO)
class ModelNamed(ServiceEvent):
    """A private service was asked for a model; its name, and the folder or Hub name that it is `of`, stay."""

    model: str
    of: str
    commit: str | None = None


# The vector cache.


@_event("not cached", "embatch.caching", Level.WARNING)
class NotCached(ServiceEvent):
    """What a batch of a run computed could not be kept: it will be computed again."""

    batch: str
    error: str


@_event("the cache keeps no more until a run ends", "embatch.cache", Level.WARNING)
class CacheFull(ServiceEvent):
    """What runs have staged takes all that the cache may have; said once until a run ends."""

    run: str
    limit_bytes: int


def log(event: ServiceEvent) -> None:
    """Hand an event to `logging` under its source; the record has it as `event`."""
    logging.getLogger(event.source).log(
        event.level, event.words, exc_info=getattr(event, "exception", None), extra={"event": event}
    )


@dataclass(slots=True, eq=False)
class _Subscription:
    """A subscriber, and whether it was told of that it fails."""

    call: Callable[[ServiceEvent], object]
    failed: bool = False


_subscriptions: Final = [_Subscription(log)]
_lock: Final = threading.Lock()


def subscribe(subscriber: Callable[[ServiceEvent], object]) -> Callable[[], None]:
    """Have every event from now on given to `subscriber`; return what ends this. Repeating the end is safe.

    It is called in the thread that emits, which works on only when it returns: it should put the event
    somewhere and be gone. What it raises breaks nothing, and is told once as `SubscriberFailed`.
    """
    subscription = _Subscription(subscriber)
    with _lock:
        _subscriptions.append(subscription)

    def unsubscribe() -> None:
        with _lock:
            if subscription in _subscriptions:
                _subscriptions.remove(subscription)

    return unsubscribe


def emit(event: ServiceEvent) -> None:
    """Give an event to every subscriber, in the order of their coming. Safe from any thread; never raises."""
    for subscription in tuple(_subscriptions):  # one of them may end its subscription meanwhile
        try:
            subscription.call(event)
        except Exception as error:  # noqa: BLE001  (who watches the work must not be able to break it)
            with _lock:
                told, subscription.failed = subscription.failed, True
            if not told:
                name = getattr(subscription.call, "__qualname__", type(subscription.call).__name__)
                emit(SubscriberFailed(subscriber=name, exception=error))
