"""The JSON of a body, read strictly: once, in UTF-8, no deeper than it needs to be, no field given twice."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import orjson

from embatch import jsontext
from embatch.errors import InvalidArgument

DEPTH: Final = 32


def load(body: bytes) -> Any:
    """Return the JSON of a body, refusing what proto3 JSON has no reading for.

    Raises:
        InvalidArgument: not JSON, not UTF-8, nested too deeply, or a field given twice.
    """
    if not body.strip():
        raise InvalidArgument("the body is empty: send a JSON object", field="body", reason="MALFORMED_JSON")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or body[:2] in (b"{\x00", b"\x00{"):
        raise InvalidArgument(
            "the body must be UTF-8 without a byte order mark", field="body", reason="BAD_ENCODING"
        )
    _check_depth(body)
    try:
        value = jsontext.loads(body)
        _refuse_twice(body)
    except orjson.JSONDecodeError as error:
        encoding = any(word in str(error).lower() for word in ("utf-8", "surrogate"))
        reason = "BAD_ENCODING" if encoding else "MALFORMED_JSON"
        raise InvalidArgument(
            f"Invalid JSON payload received: {error}", field="body", reason=reason
        ) from None
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", field="body", reason="MALFORMED_JSON")
    return value


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before a parser sees it; brackets inside strings are left out."""
    if body.count(b"{") + body.count(b"[") <= DEPTH:
        return
    depth = 0
    for byte in re.finditer(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', body, re.DOTALL):
        mark = byte[0]
        if mark in (b"{", b"["):
            depth += 1
            if depth > DEPTH:
                raise InvalidArgument(f"the body nests deeper than {DEPTH}", field="body", reason="TOO_DEEP")
        elif mark in (b"}", b"]"):
            depth -= 1


def _refuse_twice(body: bytes) -> None:
    """Orjson lets the last of two equal keys win in silence; a second, slower reading tells them."""

    def pairs(found: list[tuple[str, Any]]) -> None:
        names = {name for name, _ in found}
        if len(names) != len(found):
            twice = next(name for at, (name, _) in enumerate(found) if name in {n for n, _ in found[:at]})
            raise InvalidArgument("this field is given twice", field=twice[:64], reason="DUPLICATE_KEY")

    json.loads(body, object_pairs_hook=pairs, parse_int=str, parse_float=str)
