"""Keys: what a line of their file says, and whether the head of a request shows one of them.

    # who     SHA-256 of the key
    alice     9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The file never holds a key, so neither does anything that is read from it. Whoever shows none is refused by
the head alone, whatever the path: what may be asked without is named here, and everything else, a route of
tomorrow too, wants a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from embatch.api.limits import bad
from embatch.errors import InvalidArgument
from embatch.wire.gemini.credentials import (
    BEARER,
    HEADER,
    QUERY,
    has_key_in_address,
    is_upload_step,
    shown_key,
)

if TYPE_CHECKING:
    import h11

    from embatch.api.limits import Refusal

FIELD: Final = "--api-keys"
PREFIX: Final = "embatch-"
"""How our keys begin, so that a scanner finds one that leaked and a person knows it for what it is."""
_SYMBOLS: Final = string.ascii_letters + string.digits
_LENGTH: Final = 43
"""Symbols after the prefix: 62^43 is more than 2^256."""
_KEY: Final = re.compile(rf"{PREFIX}[A-Za-z0-9]{{{_LENGTH}}}".encode())
_ID: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ID_FORM: Final = "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"
_LINE: Final = re.compile(rf"[ \t]*({_ID})[ \t]+([0-9A-Fa-f]{{64}})[ \t\r]*".encode())
_NOTHING: Final = re.compile(rb"[ \t\r]*(#.*)?", re.DOTALL)

_OPEN: Final = frozenset({b"/healthz", b"/readyz"})
"""Paths that answer everybody: monitors show no key. Without one `/readyz` gives no reasons."""

_NO_KEY: Final = bad(
    "NO_KEY",
    f"this service asks for a key: send yours in the header {HEADER} or as {BEARER} "
    "(in Python api_key=, on the command line the variable EMBATCH_API_KEY)",
    HTTPStatus.UNAUTHORIZED,
)
_WRONG_KEY: Final = bad(
    "WRONG_KEY",
    "the key is none of this service's: look whether it was copied whole, or ask for a new one",
    HTTPStatus.UNAUTHORIZED,
)
_KEY_IN_ADDRESS: Final = bad(
    "KEY_IN_ADDRESS",
    f"a key in an address ({QUERY}) ends up in logs and is not taken: send it in the header {HEADER}, "
    "and have this one replaced",
    HTTPStatus.UNAUTHORIZED,
)


def new_key() -> str:
    """Return a fresh key of 256 random bits in ASCII, which nobody else has."""
    return PREFIX + "".join(secrets.choice(_SYMBOLS) for _ in range(_LENGTH))


def line_of(key: str, name: str | None) -> tuple[str, str]:
    """Return a key's id and its line for the file, without line end.

    Args:
        key: in ASCII.
        name: the id; `None` makes one from the key's SHA-256.

    Raises:
        InvalidArgument: this can be no id.
    """
    digest = _digest(key.encode()).hex()
    found = f"key-{digest[:8]}" if name is None else name
    if re.fullmatch(_ID, found) is None:
        raise InvalidArgument(f"an id is {ID_FORM}", field="--id")
    return found, f"{found} {digest}"


def _digest(key: bytes) -> bytes:
    """Return what the file holds of a key. One of 256 random bits needs neither salt nor a slow hash."""
    return hashlib.sha256(key).digest()


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a service, by id and SHA-256; at least one."""

    digests: tuple[tuple[str, bytes], ...]

    def id_of(self, key: bytes) -> str | None:
        """Return the id of a key that was shown, `None` for none of ours.

        It is compared with all, whichever it is, so that the time taken tells nothing.
        """
        shown, found = _digest(key), None
        for name, digest in self.digests:
            if hmac.compare_digest(shown, digest):
                found = name
        return found


def read_keys(data: bytes, place: str) -> Keys:
    """Return the keys of a file.

    Args:
        data: its bytes.
        place: what messages call it.

    Raises:
        InvalidArgument: it holds no key, a line that is none, or an id or a SHA-256 twice; the message has
            the numbers of the lines and never what stands in them.
    """
    ids: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if _NOTHING.fullmatch(line):
            continue
        said = _LINE.fullmatch(line)
        if said is None:
            raise InvalidArgument(f"{place}, line {number}: {_why(line)}", field=FIELD)
        name, digest = said[1].decode(), bytes.fromhex(said[2].decode())
        for before, what in ((ids.get(name), "id"), (digests.get(digest), "SHA-256")):
            if before is not None:
                raise InvalidArgument(
                    f"{place}, line {number}: the {what} stands in line {before} too: remove one of the two",
                    field=FIELD,
                )
        ids[name] = digests[digest] = number
    if not ids:
        raise InvalidArgument(f"{place} holds no key: add one by embatch keys new >> FILE", field=FIELD)
    return Keys(tuple(zip(ids, digests, strict=True)))


def _why(line: bytes) -> str:
    if _KEY.search(line):
        return "a key itself stands here: put its SHA-256 in its place, and have the key replaced"
    return (
        f"a line is an id ({ID_FORM}), a blank and a SHA-256 (64 hex digits), as embatch keys new prints it"
    )


@dataclass(slots=True)
class Access:
    """The keys that count now, for all connections of a service. Lives in one event loop."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request to a service with keys, as far as its head tells."""

    key: str | None
    """Id of the key; `None` for a stranger."""
    refusal: Refusal | None = None
    """Why a stranger may not ask this; `None` for what everybody may."""


def judge_caller(head: h11.Request, keys: Keys) -> Caller:
    """Return who sends a request with this head, and whether he may."""
    shown = shown_key(head.headers)
    name = keys.id_of(shown) if shown else None
    if name is not None or _is_open(head):
        return Caller(name)
    if shown:
        return Caller(None, _WRONG_KEY)
    return Caller(None, _KEY_IN_ADDRESS if has_key_in_address(head.target) else _NO_KEY)


def _is_open(head: h11.Request) -> bool:
    if head.method in (b"GET", b"HEAD"):
        return head.target.partition(b"?")[0] in _OPEN
    return is_upload_step(head.method, head.target)
