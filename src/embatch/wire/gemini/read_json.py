"""The JSON of a body, read strictly: once, in UTF-8, no deeper than it needs to be, no field given twice.

While a piece of JSON is parsed no other thread runs, and as values it takes up to twenty times its bytes. So
the one long list of a body is cut into pieces, by brackets and commas alone, and each is parsed in its turn:

    body   {"batch": {…, "requests": [ piece , piece , … ]}}
    head   {"batch": {…, "requests": "mark"}}            parsed at once
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from embatch import jsontext
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

_Error = orjson.JSONDecodeError

DEPTH: Final = 32
"""Most levels of a body, those of metadata in it included."""
_MOST: Final = jsontext.MOST_MARKS
_MARK_BYTES: Final = 34
_LONGEST_ESCAPE: Final = 6
"""Bytes that JSON may take for one byte of UTF-8."""


def load(body: bytes) -> Any:
    """Return the JSON of a body, refusing what proto3 JSON has no reading for.

    Raises:
        InvalidArgument: not JSON, not UTF-8, nested too deeply, too many values, or a field given twice.
    """
    _check_encoding(body)
    return _object(body)


def _check_encoding(body: bytes) -> None:
    if not body.strip():
        raise InvalidArgument("the body is empty: send a JSON object", field="body", reason="MALFORMED_JSON")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or body[:2] in (b"{\x00", b"\x00{"):
        raise InvalidArgument(
            "the body must be UTF-8 without a byte order mark", field="body", reason="BAD_ENCODING"
        )


def _object(body: bytes, placed: Callable[[_Error], _Error] = lambda error: error) -> Any:
    if jsontext.too_deep(body, DEPTH):
        raise _too_deep()
    if jsontext.too_many(body):
        raise _too_many("body", "the body")
    try:
        value = jsontext.loads(body)
    except _Error as error:
        raise _malformed(placed(error)) from None
    _refuse_twice(body)
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", field="body", reason="MALFORMED_JSON")
    return value


def _refuse_twice(data: bytes) -> None:
    """Orjson lets the last of two equal keys win in silence; a second, slower reading tells them."""
    if (name := jsontext.twice(data)) is not None:
        raise InvalidArgument("this field is given twice", field=name[:64], reason="DUPLICATE_KEY")


def _too_deep() -> InvalidArgument:
    return InvalidArgument(
        f"the body nests deeper than {DEPTH} levels: metadata that does goes with its text in a file",
        field="body",
        reason="TOO_DEEP",
    )


def _too_many(place: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{what} has more than {_MOST} brackets and commas: send fewer values in it",
        field=place,
        reason="TOO_MANY_VALUES",
    )


def _malformed(error: _Error) -> InvalidArgument:
    encoding = any(word in str(error).lower() for word in ("utf-8", "surrogate"))
    reason = "BAD_ENCODING" if encoding else "MALFORMED_JSON"
    return InvalidArgument(f"Invalid JSON payload received: {error}", field="body", reason=reason)


class Body:
    """The JSON object of a body, of which the long list is parsed piece by piece.

    Args:
        body: as it came.
        depth: the level at which the elements of the list stand.
        pulse: called before each piece; what it raises ends the reading.
        longest: bytes of UTF-8 that a string may have. One that is longer in any spelling is not read: in its
            place stands another that is too long as well.

    Raises:
        InvalidArgument: as `load`, for all that is outside of the list.
    """

    def __init__(
        self, body: bytes, depth: int, pulse: Callable[[], None] = lambda: None, longest: int | None = None
    ) -> None:
        self._body, self._pulse = body, pulse
        self._lists: dict[str, _Stretch] = {}
        _check_encoding(body)
        if len(body) <= jsontext.BLOCK_BYTES:
            self.value = _object(body)
            return
        cutter = self._scanned(depth)
        if longest is not None and (short := _shortened(body, cutter.strings, longest)) is not body:
            self._body = short
            cutter = self._scanned(depth)
        self.value = self._head(cutter.found)

    def _scanned(self, depth: int) -> _Cutter:
        cutter = _Cutter(depth)
        for places, kinds, levels in jsontext.marks(self._body, cutter.strings):
            self._pulse()
            if len(levels) and levels.max() > DEPTH:
                raise _too_deep()
            cutter.add(places, kinds, levels)
            if cutter.broken is not None:
                raise _malformed(self._at(cutter.broken, 0, "unexpected character"))
            if cutter.outside > _MOST:
                raise _too_many("body", "the body, without its list,")
        if cutter.unended:
            raise _malformed(self._at(len(self._body), 0, "unexpected end of data"))
        return cutter

    def _head(self, stretches: list[_Stretch]) -> Any:
        """Return the value of all but the stretches; each of them is a text that nobody can guess."""
        head, end = [], 0
        for stretch in stretches:
            mark = secrets.token_hex(_MARK_BYTES // 2 - 1)
            self._lists[mark] = stretch
            head += [self._body[end : stretch.begin - 1], b'"', mark.encode(), b'"']
            end = stretch.end + 1
        return _object(b"".join((*head, self._body[end:])), self._in_body)

    def elements(self, value: object, path: str) -> Iterable[Any] | None:
        """Return the elements of a list that the body holds; `None` of what is no list, or an empty one.

        Args:
            value: as it was found in `value`.
            path: the list's, for errors, which are raised as its elements are taken: as those of `load`.
        """
        if isinstance(value, str) and value in self._lists:
            return self._cut(self._lists[value], path)
        return value if isinstance(value, list) and value else None

    def _cut(self, stretch: _Stretch, path: str) -> Iterator[Any]:
        count = 0
        for begin, piece, marks in stretch.pieces(self._body):
            self._pulse()
            if marks > _MOST:  # more than stand in a block: it is one element
                raise _too_many(f"{path}[{count}]", f"{path}[{count}]")
            try:
                elements = jsontext.loads(piece)
            except _Error as error:
                raise _malformed(self._at(begin, error.pos - 1, error.msg)) from None
            if not elements:  # there is nothing between two commas, or behind the last one
                trailing = stretch.end == begin + len(piece) - 2
                raise _malformed(self._at(begin - trailing, 0, "unexpected character"))
            _refuse_twice(piece)
            count += len(elements)
            yield from elements

    def _in_body(self, error: _Error) -> _Error:
        """Return an error in the head as one in the body."""
        place, left_out = len(error.doc[: error.pos].encode()), 0
        for stretch in self._lists.values():
            if place + left_out >= stretch.begin:
                left_out += stretch.end - stretch.begin + 2 - _MARK_BYTES
        return self._at(place + left_out, 0, error.msg)

    def _at(self, begin: int, beyond: int, message: str) -> _Error:
        """Return an error at so many characters beyond a byte of the body."""
        before = len(self._body[:begin].decode(errors="replace"))
        return _Error(message, self._body.decode(errors="replace"), before + max(0, beyond))


def _shortened(body: bytes, strings: list[tuple[int, int]], longest: int) -> bytes:
    """Return a body with another string for each that is too long however its characters are written."""
    pieces, end = [], 0
    for begin, after in strings:
        if after - begin > _LONGEST_ESCAPE * longest:
            pieces += [body[end:begin], b"x" * (longest + 1)]
            end = after
    return b"".join((*pieces, body[end:])) if pieces else body


@dataclass(slots=True)
class _Stretch:
    """A list that is longer than a block, and where it can be cut."""

    begin: int
    """Of its first element."""
    marks: list[int]
    """Marks of the body before the list, before each cut, and before its end."""
    cuts: list[int] = field(default_factory=list)
    """Commas between elements: before and after each that lies in two blocks, so that this one is alone."""
    end: int = 0
    """Of its last element."""

    def pieces(self, body: bytes) -> Iterator[tuple[int, bytes, int]]:
        """Yield where each piece begins, the piece as a list, and how many marks it has."""
        begins = [self.begin, *(cut + 1 for cut in self.cuts)]
        for begin, end, (before, after) in zip(
            begins, [*self.cuts, self.end], pairwise(self.marks), strict=True
        ):
            yield begin, b"[" + body[begin:end] + b"]", after - before


class _Cutter:
    """Finds the lists at a depth that are longer than a block."""

    def __init__(self, depth: int) -> None:
        self.found: list[_Stretch] = []
        self.strings: list[tuple[int, int]] = []
        """First byte and end of each string that is longer than a block."""
        self.broken: int | None = None
        """Where one ends as an object would."""
        self._depth = depth
        self._open: _Stretch | None = None
        self._count = self._within = 0

    @property
    def outside(self) -> int:
        """How many marks are outside of such lists."""
        return self._count - self._within - (self._count - self._open.marks[0] if self._open else 0)

    @property
    def unended(self) -> bool:
        """Whether such a list has not ended."""
        return self._open is not None

    def add(self, places: NDArray[np.int64], kinds: NDArray[np.uint8], levels: NDArray[np.int64]) -> None:
        """Take the marks of the next block."""
        ends = np.flatnonzero((kinds >= jsontext.LIST_END) & (levels == self._depth - 1))
        if self._open is not None:
            end = int(ends[0]) if len(ends) else len(places)
            commas = np.flatnonzero((kinds[:end] == jsontext.COMMA) & (levels[:end] == self._depth))
            self._cut(places, commas)
            if len(ends):
                self._open.end = int(places[end])
                self._open.marks.append(self._count + end)
                if kinds[end] != jsontext.LIST_END:
                    self.broken = self._open.end
                self.found.append(self._open)
                self._within += self._open.marks[-1] - self._open.marks[0]
                self._open = None
        begins = np.flatnonzero((kinds == jsontext.LIST) & (levels == self._depth))
        if self._open is None and len(begins) and (not len(ends) or begins[-1] > ends[-1]):
            first = int(begins[-1]) + 1
            self._open = _Stretch(int(places[first - 1]) + 1, [self._count + first])
            commas = np.flatnonzero((kinds[first:] == jsontext.COMMA) & (levels[first:] == self._depth))
            self._cut(places, commas + first)
        self._count += len(places)

    def _cut(self, places: NDArray[np.int64], commas: NDArray[np.int64]) -> None:
        assert self._open is not None  # noqa: S101  (its callers see to it)
        for comma in dict.fromkeys((commas[0], commas[-1]) if len(commas) else ()):
            self._open.cuts.append(int(places[comma]))
            self._open.marks.append(self._count + int(comma))
