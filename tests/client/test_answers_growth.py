"""What reads answers takes four times as long for four times as much, whatever an answer is made of."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
import pytest
from growth import MOST, growth

from embatch import Batch, BatchStats, EmbatchError, State
from embatch.client.readers import LINE_BYTES, ResponseLines, from_rows
from embatch.errors import printable
from embatch.wire.gemini import read_responses
from embatch.wire.google.read_errors import parse_error

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST: Final = 1 << 20
"""What takes no time at this size is none to fear: answers are bounded."""
Make: TypeAlias = "Callable[[int], Callable[[], object]]"


def refused(work: Callable[[], object]) -> Callable[[], object]:
    """Return work that may end in an error of ours."""

    def run() -> None:
        with contextlib.suppress(EmbatchError):
            work()

    return run


def body(said: Any) -> bytes:
    """Return JSON."""
    return orjson.dumps(said)


def row(key: str | None = None, count: int = 3) -> dict[str, Any]:
    """Return the result of one request."""
    return {"key": key, "response": {"embedding": {"values": [0.5] * count}}}


def feed(content: bytes, piece: int) -> Callable[[], object]:
    """Return the reading of a responses file in pieces."""

    def read() -> object:
        lines = ResponseLines(0)
        for begin in range(0, len(content), piece):
            lines.feed(content[begin : begin + piece])
        return lines.rows()

    return read


def placed(count: int, key: Callable[[int], str | None]) -> Callable[[], object]:
    """Return the reading of inlined results whose keys are these."""
    stats = BatchStats(count, count)
    batch = Batch("batches/b", "models/m", State.COMPLETED, "b", 0, None, None, None, stats)
    content = body(
        {
            "metadata": {
                "output": {"inlinedResponses": {"inlinedResponses": [row(key(at)) for at in range(count)]}}
            }
        }
    )
    return lambda: from_rows(batch, read_responses.parse_items(content) or [], None)


def batches(count: int, **more: Any) -> bytes:
    """Return a page of batches."""
    one = {"name": "batches/b", "metadata": {"name": "batches/b", "model": "models/m", **more}}
    return body({"operations": [one] * count})


def reading(read: Callable[[bytes], object], make: Callable[[int], bytes]) -> Make:
    """Return the reading of an answer of any size."""
    return lambda size: partial(read, make(size))


def refusal(make: Callable[[int], bytes], **headers: str) -> Make:
    """Return the reading of an error of any size."""
    return reading(lambda content: parse_error(503, headers, content), make)


def batch_with(**more: Any) -> bytes:
    """Return a page of one batch."""
    return batches(1, **more)


READERS: dict[str, Make] = {
    "rows in order": lambda n: placed(n, "r-{}".format),
    "rows backwards": lambda n: placed(n, lambda at: f"r-{n - 1 - at}:key"),
    "rows without tags": lambda n: placed(n, lambda _: None),
    "rows that stand twice": lambda n: placed(n, lambda _: "r-0"),
    "long tags": lambda n: placed(4, lambda at: f"r-{at}:" + "x" * n),
    "a long line": lambda n: feed(b"x" * min(n, LINE_BYTES), 512),
    "many short lines": lambda n: feed(b"{}\n" * n, 4096),
    "blank lines": lambda n: feed(b"\n" * n, 4096),
    "wide embeddings": reading(
        read_responses.parse_embeddings,
        lambda n: body({"embeddings": [{"values": [0.5] * 1024}] * (n // 256)}),
    ),
    "embeddings": reading(
        read_responses.parse_embeddings, lambda n: body({"embeddings": [{"values": [0.5] * 8}] * n})
    ),
    "batches": reading(read_responses.parse_batches, batches),
    "notes": reading(read_responses.parse_batches, lambda n: batch_with(notes=["x"] * n)),
    "long times": reading(
        read_responses.parse_batches, lambda n: batch_with(createTime=f"2026-06-01T10:00:00.{'1' * n}Z")
    ),
    "long states": reading(read_responses.parse_batches, lambda n: batch_with(state="JOB_STATE_" * n)),
    "long numbers": reading(
        read_responses.parse_batches, lambda n: batches(n // 1000 + 1, priority="9" * 4000)
    ),
    "models": reading(read_responses.parse_models, lambda n: body({"models": [{"name": "models/m"}] * n})),
    "an error of many words": refusal(lambda n: body({"error": {"message": "\x1b" * n, "status": "x" * n}})),
    "an error of many details": refusal(
        lambda n: body({"error": {"details": [{"fieldViolations": [{}], "retryDelay": "1" * 50}] * n}})
    ),
    "an error that is no envelope": refusal(lambda n: b"<" * n),
    "words to be shown": lambda n: partial(printable, "\x1b\u202e" * n, 2 * n),
    "a header": lambda n: partial(parse_error, 503, {"retry-after": "1" * n + ":", "date": "Mon, " * n}, b""),
}


@pytest.mark.parametrize("reader", READERS)
def test_four_times_as_much_takes_four_times_as_long(reader: str) -> None:
    """No answer makes a reader go over it again and again."""
    assert growth(lambda size: refused(READERS[reader](size)), 1 << 10, LARGEST) < MOST
