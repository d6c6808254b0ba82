"""The log: what each event's line says is what the documentation says, and no word of a user."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from embatch import events
from embatch.events import ServiceEvent, emit, emitting, of_process, of_work
from embatch.server.logs import JsonLine, report_loop_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
SECRET = "a secret text"  # noqa: S105
ALWAYS = ("time", "level", "source", "event")
EVENTS = [
    kind
    for module in (of_process, of_work, emitting)
    for kind in vars(module).values()
    if isinstance(kind, type) and hasattr(kind, "words") and kind.__module__ == module.__name__
]
SAMPLES: dict[str, tuple[Any, Any]] = {
    "str": ("x", "x"),
    "int": (7, 7),
    "float": (0.5, 0.5),
    "bool": (False, True),
    "str | None": (None, "x"),
    "Mapping[str, str]": ({}, {"{engine}": "x"}),
}
"""By type a value for the shortest and for the longest line."""


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged since, as the service would write it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLine())
    here = threading.get_ident()
    handler.addFilter(lambda record: record.thread == here)
    logger = logging.getLogger("embatch")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def refuse(text: str) -> None:
    """Raise what quotes a user."""
    try:
        int(text)
    except ValueError as error:
        raise LookupError(text) from error


def raised() -> Exception:
    """Return an exception that has passed some places, and has a cause."""
    with pytest.raises(LookupError) as caught:
        refuse(SECRET)
    return caught.value


def sample(kind: type[ServiceEvent], *, longest: bool) -> ServiceEvent:
    """Return an event with what makes its line shortest or longest."""
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name == "exception":
            values[item.name] = raised()
        elif longest or item.default is MISSING:
            values[item.name] = SAMPLES[str(item.type)][longest]
    return kind(**values)


def documented() -> list[tuple[str, str, str, list[str], list[str]]]:
    """Return the rows of the table: event, level, source, members, and those in brackets."""
    section = OPERATIONS.read_text("utf-8").split("## The log")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| `(\S+)` \|(.*?)\|", section, re.MULTILINE)
    words = re.compile(r"`([^`]+)`")
    return [
        (event, level, source, words.findall(re.sub(r"\(.*?\)", "", named)), words.findall(named))
        for event, level, source, named in rows
    ]


def test_every_line_is_as_documented(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Words, level, source and the names of the members, in their order; and no line is without a row."""
    for kind in EVENTS:
        emit(sample(kind, longest=False))
        emit(sample(kind, longest=True))
    written = lines()
    for line in written:
        assert tuple(line)[:4] == ALWAYS
    told = [(line["event"], line["level"], line["source"], own_members(line)) for line in written]
    rows = documented()
    assert len(rows) == len(EVENTS)
    assert told[0::2] == [(event, level, source, least) for event, level, source, least, _ in rows]
    assert told[1::2] == [(event, level, source, most) for event, level, source, _, most in rows]


def own_members(line: dict[str, Any]) -> list[str]:
    """Return the names of an event's own members in a line."""
    of_an_exception = {"error", "at", "cause"} if "at" in line else set()
    return [name for name in line if name not in {*ALWAYS, *of_an_exception}]


def test_an_exception_is_told_without_its_message(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Its type, its places and the type of its cause; the message may quote a text."""
    emit(events.BugAnswered(kind="LookupError", exception=raised()))
    (line,) = lines()
    assert (line["error"], line["cause"]) == ("LookupError", "ValueError")
    assert any(place.endswith(" refuse") for place in line["at"])
    assert SECRET not in json.dumps(line)


def test_the_event_loop_tells_no_arguments(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """What it could deliver to nobody has a name; the arguments of the call may be texts."""

    def fail(text: str) -> None:
        raise ValueError(text)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_loop_error)
        loop.call_soon(fail, SECRET)
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "Fatal error on transport"})

    asyncio.run(run())
    called, told = lines()
    assert called["message"].startswith("Exception in callback")
    assert called["message"].endswith("fail")
    assert (called["event"], called["error"]) == ("event loop", "ValueError")
    assert (told["message"], told.get("error")) == ("Fatal error on transport", None)
    assert SECRET not in json.dumps(called)


def test_what_others_log_is_a_line_too() -> None:
    """Also where they call something of theirs an event."""
    record = logging.makeLogRecord(
        {"name": "library", "levelname": "WARNING", "msg": "odd", "event": "theirs"}
    )
    line = json.loads(JsonLine().format(record))
    assert (line["source"], line["level"], line["event"]) == ("library", "warning", "odd")
