"""How an event is made, and told to all who subscribed."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
def event(words: str, source: str, level: Level) -> Callable[[type[E]], type[E]]:
    """Return what makes a class an event that is told in these words, by this source."""

    def complete(declared: type[E]) -> type[E]:
        declared.words, declared.source, declared.level = words, source, level
        made = dataclass(frozen=True, slots=True, kw_only=True)(declared)
        made.defaults = tuple((item.name, item.default) for item in fields(made) if item.name != "exception")
        return made

    return complete


@event("a subscriber failed", "embatch.events", Level.ERROR)
class SubscriberFailed(FailureEvent):
    """A subscriber of events raised; it is told of once, and goes on being called."""

    subscriber: str


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


@contextmanager
def log_untouched() -> Iterator[None]:
    """Keep what is imported meanwhile from setting up the log: that is the program's affair."""
    root, still = logging.getLogger(), logging.NullHandler()
    root.addHandler(still)  # who has a handler is left alone
    try:
        yield
    finally:
        root.removeHandler(still)
