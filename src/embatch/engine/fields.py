"""The JSON files of a model's folder: read whole or refused, and each member checked as it is taken.

Strangers write these files. Whatever stands in one, the error is one line that names file and member.
"""

from __future__ import annotations

import json
import math
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import InvalidArgument, NotFound
from embatch.jsontext import MESSAGE_DEPTH, too_deep

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST_BYTES: Final = 32 << 20
"""Of a file with settings; the largest ones list a vocabulary and have a few megabytes."""
_MOST: Final = (1 << 31) - 1
_BOM: Final = b"\xef\xbb\xbf"
_KINDS: Final = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
_SHOWN: Final = 40
_REMEDY: Final = "correct it, or get the model again"


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """The members of the object that a file holds. What is absent or null is `None`.

    Every method raises InvalidArgument where a member is something else than it has to be.
    """

    file: Path
    content: Mapping[str, Any]

    def whole(self, name: str, least: int = 1) -> int | None:
        """Return a whole number of at least `least`, and no more than 31 bits hold."""
        value = self.content.get(name)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= _MOST:
            raise self.wrong(name, f"a whole number from {least} to {_MOST:,}", value)
        return value

    def number(self, name: str) -> float | None:
        """Return a number above 0, however large; infinity is none."""
        value = self.content.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(name, "a number above 0", value)
        return float(min(value, 1e300))

    def text(self, name: str) -> str | None:
        """Return a text."""
        value = self.content.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.content.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def texts(self, name: str) -> Mapping[str, str]:
        """Return texts by name, an empty one where null stands."""
        value = self.content.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(one, str | None) for one in value.values()):
            raise self.wrong(name, "an object of texts", value)
        return {str(key): one or "" for key, one in value.items()}

    def wrong(self, name: str, wanted: str, value: object) -> InvalidArgument:
        """Return the error for a member that is not what it has to be."""
        shown = _KINDS.get(type(value)) or ascii(value)[:_SHOWN]
        return InvalidArgument(f"{self.file}: {name} must be {wanted}, not {shown}: {_REMEDY}", field="model")


def read_object(file: Path, *, needed: bool = False) -> ConfigFields:
    """Return the members of the object in a file; none where there is no file, unless it is `needed`.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it cannot be read, or holds something else.
    """
    content = read_json(file, {} if not needed else None)
    if not isinstance(content, dict):
        raise InvalidArgument(f"{file} does not hold a JSON object: {_REMEDY}", field="model")
    return ConfigFields(file, content)


def read_json(file: Path, default: object = None) -> object:
    """Return the value in a file; `default` where there is none, unless that is `None`. Raises as above."""
    try:
        content = read_bytes(file)
    except FileNotFoundError:
        if default is None:
            raise NotFound(
                f"{file.parent} is no model folder: it has no {file.name}", field="model"
            ) from None
        return default
    content = content.removeprefix(_BOM)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        # Configurations of some architectures hold numbers that JSON has not.
        odd = b"NaN" in content or b"Infinity" in content
        if odd and not too_deep(content, MESSAGE_DEPTH):
            with suppress(ValueError):
                return json.loads(content)
        raise InvalidArgument(
            f"{file} cannot be read as JSON (line {error.lineno}): {_REMEDY}", field="model"
        ) from None


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file that is one, through links too.

    Raises:
        FileNotFoundError: nothing has the name, not even a link.
        InvalidArgument: it is too large, no file, or cannot be read.
    """
    check_file(file, most)
    try:
        with file.open("rb") as opened:
            return opened.read(most)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}", field="model") from None


def check_file(file: Path, most: int) -> None:
    """Make sure that a name is a file's, of no more than `most` bytes. Raises as `read_bytes`."""
    try:
        about = file.stat()
    except FileNotFoundError:
        if not file.is_symlink():
            raise
        raise InvalidArgument(f"{file} is a link that leads nowhere", field="model") from None
    except (OSError, ValueError) as error:  # ValueError: no name of a file holds NUL
        why = error.strerror if isinstance(error, OSError) else "no file can have this name"
        raise InvalidArgument(f"{str(file)!a} cannot be read: {why}", field="model") from None
    if not stat.S_ISREG(about.st_mode):
        raise InvalidArgument(f"{file} is not a file", field="model")
    if about.st_size > most:
        raise InvalidArgument(
            f"{file} has {about.st_size:,} bytes, and no more than {most:,} are read: {_REMEDY}",
            field="model",
        )
