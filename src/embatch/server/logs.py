"""The log: one JSON object a line, with ids and sizes and never a text, a vector or a key.

Every event of the service is a line, and what libraries log from WARNING up. An exception is logged by its
type and the places it passed, without its message: a message can quote what a user sent.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from embatch.events import LoopFailed, ServiceEvent, emit

if TYPE_CHECKING:
    import asyncio

_FRAMES = 12


class JsonLine(logging.Formatter):
    """Formats a record as one line: time, level, source, words, and the event's members."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "source": record.name,
            "event": record.getMessage(),
        }
        event = getattr(record, "event", None)
        if isinstance(event, ServiceEvent):
            line |= event.members()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]
            ]
            cause = error.__cause__ or error.__context__
            if cause is not None:
                line["cause"] = type(cause).__name__
        return orjson.dumps(line, default=repr).decode()


def configure() -> None:
    """Send everything from INFO up to standard error; libraries from WARNING up."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonLine())
    logging.basicConfig(handlers=[stream], level=logging.WARNING, force=True)
    logging.getLogger("embatch").setLevel(logging.INFO)
    # What it warns of, requests that are no HTTP, is told with the reason where they are refused.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def report_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tell of what the event loop could not deliver: its own handler would print the exception's message."""
    message = str(context.get("message", "error"))
    if "handle" in context:  # it ends with the call, and that with its arguments
        message = message.partition("(")[0]
    emit(LoopFailed(message=message, exception=context.get("exception")))
