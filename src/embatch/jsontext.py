"""JSON and the lines of JSONL, whoever reads or writes them.

Integers keep their digits: orjson alone would make a float of one beyond 64 bits, and what users give as ids
and metadata must come back equal.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK: Final = 1 << 20
_DIGITS: Final = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
"""Makes 0 of every digit and a blank of all else: a run of them is found five times as fast as by `_LONG`."""
_RUN: Final = b"0" * 19
_LONG: Final = re.compile(rb"[:,\[\s]-?[1-9][0-9]{18,}\s*[,\]}]")
"""A member or element that may be an integer beyond 64 bits, or a piece of text, which only costs time."""


def loads(content: bytes | str) -> Any:
    """Return what an object or list of JSON says.

    Raises:
        orjson.JSONDecodeError: it is not JSON in UTF-8, or nests some hundreds deep.
    """
    value = orjson.loads(content)  # the strict one of the two: what it takes, the other one reads alike
    data = content.encode() if isinstance(content, str) else content
    if _RUN not in data.translate(_DIGITS) or _LONG.search(data) is None:
        return value
    try:
        return json.loads(data)
    except RecursionError:
        raise orjson.JSONDecodeError("it nests too deeply", data.decode(), 0) from None


def encodable(text: str) -> bool:
    """Return whether a text is of whole characters: a lone surrogate is neither sent nor stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def dumps(value: object) -> bytes:
    """Return a value as JSON in UTF-8.

    Raises:
        ValueError: JSON has no such value, or a text in it holds a lone surrogate.
    """
    try:
        return orjson.dumps(value)
    except TypeError:  # also for an integer beyond 64 bits
        pass
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {type(error).__name__}") from None


def split_lines(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its end, and whether it is whole; of a longer one, a part of its head."""
    held, size, whole = list[bytes](), 0, True
    while block := file.read(_BLOCK):
        *ended, rest = block.split(b"\n")
        for part in ended:
            line = b"".join((*held, part)) if held else part
            yield line[:limit], whole and len(line) <= limit
            held, size, whole = [], 0, True
        if rest:  # joined once: a long line would be copied with every block
            held.append(rest)
            size += len(rest)
        if size > limit:
            held, size, whole = [held[0][:1]], 1, False  # something, so that it does not look blank
    if held or not whole:
        line = b"".join(held)
        yield line[:limit], whole and len(line) <= limit
