"""Events: each is told somewhere, reaches everybody who subscribed, and never breaks the work."""

from __future__ import annotations

import ast
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import embatch
from embatch import events
from embatch.events import PayloadLost, ServiceEvent, StorageBroken, SubscriberFailed, emit, subscribe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path(embatch.__file__).parent
LOST = PayloadLost(batch="b", shard=3)


class Subscribing:
    """Subscribes for a test, and ends what it began."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def __call__(self, subscriber: Callable[[ServiceEvent], object]) -> Callable[[], None]:
        """Subscribe; return what ends it."""
        self._ends.append(subscribe(subscriber))
        return self._ends[-1]

    def end(self) -> None:
        """End all."""
        for end in self._ends:
            end()


@pytest.fixture
def subscribing() -> Iterator[Subscribing]:
    """What subscribes until the test ends."""
    subscribing = Subscribing()
    yield subscribing
    subscribing.end()


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text("utf-8"))


def _names(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


def test_every_event_is_told_somewhere() -> None:
    """No class of an event waits for a caller that is not there."""
    told: set[str] = set()
    for _, tree in _trees():
        if "emit" in _names(tree):
            made = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            chosen = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)]
            told |= {name for node in (*made, *chosen) for name in _names(node)}
    classes = {name for name, value in vars(events).items() if isinstance(value, type)}
    declared = {name for name in classes if hasattr(vars(events)[name], "words")}
    assert len(declared) > 20
    assert declared - told == set()


def test_nothing_is_logged_past_the_events() -> None:
    """Only `events` and the log itself know the logging library."""
    users = {
        name
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(alias.name.startswith("logging") for alias in node.names)
    }
    assert users == {"events/emitting.py", "server/logs.py"}


def test_an_event_is_a_value() -> None:
    """Equal fields make equal events; nobody changes one that others have."""
    assert PayloadLost(batch="b", shard=3) == LOST
    assert LOST.members() == {"batch": "b", "shard": 3}
    with pytest.raises(FrozenInstanceError):
        LOST.shard = 4  # type: ignore[misc]


def test_the_log_is_the_first_subscriber(caplog: pytest.LogCaptureFixture) -> None:
    """Without anybody's doing an event is logged under its source, with its level."""
    emit(LOST)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (LOST.source, "ERROR", "payload lost")
    assert vars(record)["event"] is LOST


def test_an_exception_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """As the log had it where it was caught."""
    error = ValueError("a text")
    emit(events.SweepFailed(exception=error))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_subscribers_are_told_in_their_order_until_they_leave(subscribing: Subscribing) -> None:
    """A callable that subscribes twice is told twice, and leaves once at a time."""
    seen: list[tuple[str, ServiceEvent]] = []

    def first(event: ServiceEvent) -> None:
        seen.append(("first", event))

    ends = [subscribing(first), subscribing(lambda event: seen.append(("second", event))), subscribing(first)]
    emit(LOST)
    assert seen == [("first", LOST), ("second", LOST), ("first", LOST)]
    seen.clear()
    ends[0]()
    ends[0]()  # repeating is safe, and takes nobody else's away
    emit(LOST)
    assert seen == [("second", LOST), ("first", LOST)]
    seen.clear()
    ends[1]()
    ends[2]()
    emit(LOST)
    assert seen == []


def test_a_subscriber_may_leave_while_it_is_told(subscribing: Subscribing) -> None:
    """Those behind it are told all the same."""
    seen: list[str] = []

    def once(event: ServiceEvent) -> None:
        seen.append("once")
        end()

    end = subscribing(once)
    subscribing(lambda _: seen.append("always"))
    emit(LOST)
    emit(LOST)
    assert seen == ["once", "always", "always"]


def test_a_subscriber_that_fails_breaks_nothing_and_is_told_of_once(
    subscribing: Subscribing, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on being called, for what troubles it may pass; so do the others."""
    seen: list[ServiceEvent] = []
    calls: list[ServiceEvent] = []

    def failing(event: ServiceEvent) -> None:
        calls.append(event)
        raise ZeroDivisionError

    subscribing(failing)
    subscribing(seen.append)
    for _ in range(3):
        emit(LOST)
    (told,) = (event for event in seen if isinstance(event, SubscriberFailed))
    assert "failing" in told.subscriber
    assert isinstance(told.exception, ZeroDivisionError)
    assert calls.count(LOST) == seen.count(LOST) == 3
    assert [record.getMessage() for record in caplog.records].count("a subscriber failed") == 1


def test_two_that_fail_are_both_told_of(subscribing: Subscribing) -> None:
    """Even where each fails at the news of the other, emitting comes back."""
    seen: list[str] = []

    class Failing:
        def __call__(self, event: ServiceEvent) -> None:
            raise RuntimeError(type(event).__name__)

    subscribing(Failing())
    subscribing(Failing())
    subscribing(lambda event: seen.append(event.words))
    emit(LOST)
    assert sorted(seen) == ["a subscriber failed", "a subscriber failed", "payload lost"]


def test_the_end_of_the_process_is_not_kept_from_going_up(subscribing: Subscribing) -> None:
    """Ctrl-C in a subscriber is no failure of it."""

    def interrupted(_: ServiceEvent) -> None:
        raise KeyboardInterrupt

    subscribing(interrupted)
    with pytest.raises(KeyboardInterrupt):
        emit(LOST)


def test_events_of_many_threads_all_arrive(subscribing: Subscribing) -> None:
    """Each once and in its thread's order, while others come and go."""
    seen: list[ServiceEvent] = []
    subscribing(seen.append)
    begin = threading.Barrier(8)

    def work(number: int) -> None:
        begin.wait()
        for shard in range(200):
            emit(PayloadLost(batch=str(number), shard=shard))
            subscribe(lambda _: None)()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        came = [
            event.shard for event in seen if isinstance(event, PayloadLost) and event.batch == str(number)
        ]
        assert came == list(range(200))


def test_an_event_without_fields_says_all_in_its_words() -> None:
    """It has no members."""
    assert StorageBroken().members() == {}
