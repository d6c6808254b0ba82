"""JSON and the lines of JSONL, whoever reads or writes them.

Integers keep their digits: orjson alone would make a float of one beyond 64 bits, and what users give as ids
and metadata must come back equal. How deep JSON may nest is said here, for neither reader's own limit is told
to anybody: orjson has one, and the standard library's is what the interpreter has left of its stack.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import orjson

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Places = NDArray[np.int64]

DEPTH: Final = 100
"""Most levels of objects and lists within each other in what users say with their texts: ids, metadata."""
MESSAGE_DEPTH: Final = DEPTH + 20
"""Most levels of a message that holds such."""
BLOCK_BYTES: Final = 64 << 10
"""What is looked at, and of a long list parsed, at a time. While a piece is parsed no other thread runs."""
MOST_MARKS: Final = 70_000
"""Most brackets and commas of what is parsed at once: some 10 ms, and 10 MB of objects. No metadata that is
kept has as many."""

_BLOCK: Final = 1 << 20
_DIGITS: Final = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
"""Makes 0 of every digit and a blank of all else: a run of them is found five times as fast as by `_LONG`."""
_RUN: Final = b"0" * 19
_LONG: Final = re.compile(rb"[:,\[\s]-?[1-9][0-9]{18,}+\s*+[,\]}]")
"""A member or element that may be an integer beyond 64 bits, or a piece of text, which only costs time."""

_NESTS: Final = (dict, list, tuple)
"""What holds other values, to the standard library."""
_QUOTE: Final = 1
COMMA, LIST, OBJECT, LIST_END, OBJECT_END = 2, 3, 4, 5, 6
_KINDS: Final = bytes(b'",[{]}'.find(byte) + 1 for byte in range(256))
_STEPS: Final = np.array([0, 0, 0, 1, 1, -1, -1], np.int8)
"""By kind: how many levels deeper."""


def loads(content: bytes | bytearray | str) -> Any:
    """Return what an object or list of JSON says.

    Raises:
        orjson.JSONDecodeError: it is not JSON in UTF-8, nests some hundreds deep, or has an integer beyond 64
            bits and nests deeper than `MESSAGE_DEPTH`.
    """
    value = orjson.loads(content)  # the strict one of the two: what it takes, the other one reads alike
    data = content.encode() if isinstance(content, str) else content
    if _RUN not in data.translate(_DIGITS) or _LONG.search(data) is None:
        return value
    if too_deep(data, MESSAGE_DEPTH):
        raise orjson.JSONDecodeError(f"it nests too deeply: at most {DEPTH} levels", data.decode(), 0)
    return json.loads(data)


def too_deep(data: bytes | bytearray, most: int) -> bool:
    """Return whether objects and lists stand within each other in more levels than `most`, JSON or not."""
    if data.count(b"{") + data.count(b"[") <= most:
        return False
    return any(len(levels) and levels.max() > most for _, _, levels in marks(data))


def too_many(data: bytes | bytearray) -> bool:
    """Return whether JSON has more values than are parsed at once."""
    if len(data) <= MOST_MARKS or sum(map(data.count, (b",", b"{", b"["))) <= MOST_MARKS // 2:
        return False
    return sum(len(places) for places, _, _ in marks(data)) > MOST_MARKS


def marks(
    data: bytes | bytearray, strings: list[tuple[int, int]] | None = None
) -> Iterator[tuple[Places, NDArray[np.uint8], Places]]:
    """Yield block by block where brackets and commas stand, which they are, and the level after each.

    What stands in a string does not count. Nothing is tried twice, so the time is that of the bytes, whether
    they are JSON or not.

    Args:
        data: the JSON.
        strings: gets first byte and end of each string that is longer than a block.
    """
    quoted, level, held, begun = False, 0, False, 0
    for at in range(0, len(data), BLOCK_BYTES):
        begin = at - held
        block = data[begin : at + BLOCK_BYTES].replace(b"\\\\", b"  ")
        held = block.endswith(b"\\")  # the byte that it is for comes with the next block
        kinds = np.frombuffer(block.replace(b'\\"', b"  ").translate(_KINDS), np.uint8)
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        quotes = kinds == _QUOTE
        within = np.cumsum(quotes, dtype=np.uint8) + np.uint8(quoted) & 1
        outside = (within == 0) & ~quotes
        if strings is not None and quotes.any():
            first, last = (int(place) + begin for place in places[quotes][[0, -1]])
            if quoted and first - begun > BLOCK_BYTES:
                strings.append((begun, first))
            begun = last + 1
        quoted = bool(within[-1]) if len(within) else quoted
        places, kinds = places[outside] + begin, kinds[outside]
        levels = np.cumsum(_STEPS[kinds], dtype=np.int64) + level
        level = int(levels[-1]) if len(levels) else level
        yield places, kinds, levels


def encodable(text: str) -> bool:
    """Return whether a text is of whole characters: a lone surrogate is neither sent nor stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object of at most `DEPTH` levels."""
    try:
        return isinstance(orjson.loads(text), dict) and not too_deep(text.encode(), DEPTH)
    except orjson.JSONDecodeError:
        return False


def dumps(value: object, most: int = DEPTH) -> bytes:
    """Return a value as JSON in UTF-8.

    Raises:
        ValueError: JSON has no such value, a lone surrogate is in it, or it nests deeper than `most` levels.
    """
    try:
        said = orjson.dumps(value)
    except TypeError:  # also for an integer beyond 64 bits
        said = _dumps(value, most)
    if too_deep(said, most):
        raise _unsayable(most)
    return said


def encode(message: object) -> bytes:
    """Return a message as JSON of at most `MESSAGE_DEPTH` levels.

    Raises:
        InvalidArgument: JSON cannot say it.
    """
    try:
        return dumps(message, MESSAGE_DEPTH)
    except ValueError:
        raise InvalidArgument(
            "JSON cannot say this: a text holds a lone surrogate, or metadata something of Python's, or too "
            "many levels"
        ) from None


def encodable_or_none(text: str | None) -> str | None:
    """Return the text, or `None` for one that cannot be said: it arrives as no text and fails alone."""
    return text if text is not None and encodable(text) else None


def _dumps(value: object, most: int) -> bytes:
    level = {id(value): value} if isinstance(value, _NESTS) else {}
    for _ in range(most):  # and no further: a list may hold itself
        inner = (one.values() if isinstance(one, dict) else one for one in level.values())
        level = {id(one): one for some in inner for one in some if isinstance(one, _NESTS)}
    if level:
        raise _unsayable(most)
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"no JSON: {type(error).__name__}") from None


def _unsayable(most: int) -> ValueError:
    return ValueError(f"no JSON: it nests too deeply, at most {most} levels")


def twice(data: bytes | bytearray) -> str | None:
    """Return the first field that an object of JSON gives twice, of which orjson takes the last in silence.

    `data` is known to be JSON, and no deeper than `DEPTH`.
    """
    found: list[str] = []

    def pairs(members: list[tuple[str, Any]]) -> None:
        if found or len(dict(members)) == len(members):
            return
        seen = set()
        for name, _ in members:
            if name in seen:
                found.append(name)
                return
            seen.add(name)

    json.loads(data, object_pairs_hook=pairs, parse_int=str, parse_float=str)
    return found[0] if found else None


def split_lines(file: BinaryIO, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its end, and whether it is whole; of a longer one, a part, blank if all is."""
    held: list[bytes] = []
    size, whole = 0, True
    while block := file.read(_BLOCK):
        *ended, rest = block.split(b"\n")
        for part in ended:
            line = b"".join((*held, part)) if held else part
            yield _part(line, limit), whole and len(line) <= limit
            if held:
                held, size, whole = [], 0, True
        if rest:
            held.append(rest)
            size += len(rest)
        if size > limit:
            held, size, whole = [_part(b"".join(held), 1)], 1, False
    if held:
        line = b"".join(held)
        yield _part(line, limit), whole and len(line) <= limit


def _part(line: bytes, limit: int) -> bytes:
    """Return a line up to a limit, or as much of a longer one: blank only where all of it is."""
    return line if len(line) <= limit else line.lstrip()[:limit] or line[:limit]
