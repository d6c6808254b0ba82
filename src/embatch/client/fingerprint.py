"""The mark by which a batch is found again where a submit has no idempotency key.

A fingerprint is 160 bits of SHA-256 over whatever makes a batch this one and no other, as 32 characters of
base32 in lower case. With `PREFIX` before it, it is the id of an input file, 40 characters as Gemini's allow;
it is a label's value on Vertex; and it stands behind `SEPARATOR` at the end of a display name. So a batch
whose create was answered to nobody is recognised in the list of batches by any one of the three.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from embatch.batch import DISPLAY_NAME

if TYPE_CHECKING:
    from hashlib import _Hash

PREFIX: Final = "embatch-"
"""How the name of an input file begins, before the fingerprint."""
SEPARATOR: Final = " · embatch:"
"""What stands between a display name and the fingerprint."""
_BYTES: Final = 20
_FORM: Final = "[a-z2-7]{32}"
NAME: Final = DISPLAY_NAME - len(SEPARATOR) - 32
"""Most characters of a display name that are left beside the mark."""
_MARKED: Final = re.compile(f"(.*){re.escape(SEPARATOR)}({_FORM})", re.DOTALL)
_NAMED: Final = re.compile(f"(?:^|/){PREFIX}({_FORM})(?![^./])")


def fingerprint(*parts: object) -> str:
    """Return the fingerprint of some values, 32 characters of `a-z2-7`.

    Equal values give the same in every process and version; others, or the same in another order or cut
    otherwise into lists or texts, give another.

    Args:
        parts: texts, bytes, numbers, truth values, `None`, and lists, other iterables and mappings of these;
            an iterable is read once, to its end. The order of a mapping's keys says nothing.

    Raises:
        TypeError: there is something else in them, or a set, which has no order.
    """
    digest = hashlib.sha256()
    _add(digest, parts)
    return base64.b32encode(digest.digest()[:_BYTES]).decode().lower()


def _add(digest: _Hash, value: object) -> None:
    """Hash a value with its kind and its end: no two values are the same bytes."""
    if isinstance(value, str):
        content = value.encode(errors="surrogatepass")
        digest.update(b"t%d:" % len(content))
        digest.update(content)
    elif value is None or isinstance(value, bool):
        digest.update({None: b"n", True: b"y", False: b"f"}[value])
    elif isinstance(value, int):
        digest.update(b"i%d:" % value)
    elif isinstance(value, float):
        digest.update(b"d" + struct.pack(">d", value))
    elif isinstance(value, bytes):
        digest.update(b"b%d:" % len(value))
        digest.update(value)
    elif isinstance(value, Mapping):
        digest.update(b"{")
        for name in sorted(value):
            _add(digest, name)
            _add(digest, value[name])
        digest.update(b"}")
    elif isinstance(value, Iterable) and not isinstance(value, AbstractSet):
        digest.update(b"[")
        for one in value:
            _add(digest, one)
        digest.update(b"]")
    else:
        raise TypeError(f"nothing of the kind {type(value).__name__} can be told from others for good")


def marked(display_name: str, fingerprint: str) -> str:
    """Return a display name with the mark behind it, 512 characters at most.

    A name that leaves it no room loses its end; the mark never does.
    """
    return f"{display_name[:NAME]}{SEPARATOR}{fingerprint}"


def unmarked(display_name: str) -> tuple[str, str | None]:
    """Return a display name without the mark, and the fingerprint; `None` where it has none."""
    found = _MARKED.fullmatch(display_name)
    return (display_name, None) if found is None else (found[1], found[2])


def in_name(file: str | None) -> str | None:
    """Return the fingerprint that an input file is named by; `None` for any other file, and for none.

    >>> in_name("files/embatch-" + "a2" * 16), in_name("gs://bucket/in/embatch-" + "a2" * 16 + ".jsonl")
    ('a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2', 'a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2')
    """
    found = None if file is None else _NAMED.search(file)
    return None if found is None else found[1]
