"""What stands in queries and headers, read: sizes of pages, whole numbers, counts of bytes."""

from __future__ import annotations

from typing import Final

from embatch.errors import InvalidArgument
from embatch.wire.gemini import routes

_DIGITS: Final = 18
"""More digits than any number here has, and few enough for 64 bits."""


def integer(text: str | None, field: str) -> int | None:
    """Return a whole number; `None` for none. Raises InvalidArgument naming the field."""
    return _number(text, field, "this must be a whole number", signed=True) if text else None


def byte_count(text: str | None, field: str) -> int | None:
    """Return a number of bytes; `None` for none. Raises InvalidArgument naming the field."""
    return None if text is None else _number(text, field, "this must be a number of bytes")


def page_size(text: str | None, usual: int, most: int) -> int:
    """Return how many entries a page shall have: at most `most`, `usual` where it is not said, or 0.

    Raises:
        InvalidArgument: it is no number, or below 0.
    """
    wanted = _number(text, routes.PAGE_SIZE, "the page size is a number, 0 or more") if text else 0
    return min(wanted or usual, most)


def is_basic(view: str | None) -> bool:
    """Return whether a batch is wanted without its output. Raises InvalidArgument for a view there is not."""
    word = "FULL" if view is None else view.upper()
    if word not in (routes.BASIC, "FULL"):
        raise InvalidArgument("view is BASIC or FULL", field=routes.VIEW)
    return word == routes.BASIC


def _number(text: str, field: str, refusal: str, *, signed: bool = False) -> int:
    digits = text.removeprefix("-") if signed else text
    if not digits.isascii() or not digits.isdecimal() or len(text) > _DIGITS:
        raise InvalidArgument(refusal, field=field)
    return int(text)
