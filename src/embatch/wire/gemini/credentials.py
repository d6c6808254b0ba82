"""How a request shows who sends it: by a key in a header, or by the address of an upload that was begun."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from embatch.wire.gemini import routes

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER: Final = routes.API_KEY
BEARER: Final = "Authorization: Bearer"
QUERY: Final = "?key="
"""Google takes a key there too."""
_IN_QUERY: Final = frozenset({"key", "access_token", "oauth_token"})
_UPLOADS: Final = frozenset(path.encode() for path in routes.UPLOAD.patterns())
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43,64}")
"""The form of what the service puts into the address of an upload: 256 random bits."""


def shown_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key in a request's headers, empty for none; Google's header counts before the other one.

    Args:
        headers: names in lower case.
    """
    bearer = b""
    for name, value in headers:
        if name == HEADER.encode() and value:
            return value
        scheme, _, key = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer" and not bearer:
            bearer = key.strip()
    return bearer


def has_key_in_address(target: bytes) -> bool:
    """Whether a key stands where it is not to stand: addresses end up in logs."""
    return any(name in _IN_QUERY for name, _ in _parameters(target))


def is_upload_step(method: bytes, target: bytes) -> bool:
    """Whether this is sent to the address of an upload: Google's client sends no key with the chunks."""
    if method.decode("latin-1") not in routes.UPLOAD.methods or target.partition(b"?")[0] not in _UPLOADS:
        return False
    tokens = [value for name, value in _parameters(target) if name == routes.UPLOAD_ID]
    # With any other number of them it is not the address that was given out.
    return len(tokens) == 1 and _TOKEN.fullmatch(tokens[0]) is not None


def _parameters(target: bytes) -> list[tuple[str, str]]:
    """Return the parameters as the application reads them: who reads otherwise lets something else pass."""
    return parse_qsl(target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)
