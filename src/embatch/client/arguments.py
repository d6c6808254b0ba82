"""What a caller may give, checked by type before anything is sent: an error names the argument."""

from __future__ import annotations

import operator
from numbers import Real
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from embatch.batch import TaskType
from embatch.errors import InvalidArgument
from embatch.jsontext import encodable

if TYPE_CHECKING:
    from typing import NoReturn

INT64: Final = range(-(1 << 63), 1 << 63)
INT32_ABOVE_0: Final = range(1, 1 << 31)


def refuse(name: str, must: str, value: object) -> NoReturn:
    """Refuse an argument; what it is said to be is its type and never its content."""
    raise InvalidArgument(f"{name} must be {must}, not {kind(value)}", field=name)


def kind(value: object) -> str:
    """Return in a word or two what somebody gave."""
    word = type(value).__name__
    return word if value is None else f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def text(name: str, value: object) -> str:
    """Return a text of whole characters. Raises InvalidArgument naming the argument."""
    if not isinstance(value, str):
        refuse(name, "a text", value)
    if not encodable(value):
        raise InvalidArgument(f"{name} holds a lone surrogate: give whole characters", field=name)
    return value


def optional_text(name: str, value: object) -> str | None:
    """Return a text, or `None` for what was not given. Raises InvalidArgument naming the argument."""
    return None if value is None else text(name, value)


def key(name: str, value: str | None) -> str | None:
    """Return a key without the blanks around it that a file or a variable may have. Raises InvalidArgument.

    A header carries it: characters that none can hold are refused, and no message shows a key.
    """
    found = None if value is None else value.strip()
    if found and not (found.isascii() and found.isprintable()):
        raise InvalidArgument(f"{name} holds characters that no key has", field=name)
    return found


def web_address(value: str) -> str | None:
    """Return an address of HTTP without the slash at its end, `None` for what no call can go to."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:  # brackets that do not close, or a port that is none
        return None
    clear = value.isprintable() and " " not in parts.netloc
    web = parts.scheme in ("http", "https") and parts.hostname and port != 0 and clear
    return value.rstrip("/") if web and not parts.query and not parts.fragment else None


def name_of_model(value: object) -> str | None:
    """Return the name of a model, `None` for the default one. Raises InvalidArgument."""
    if value is not None and not text("model", value).removeprefix("models/").strip():
        raise InvalidArgument("model must be a name, or left out for the default one", field="model")
    return None if value is None else str(value)


def whole(name: str, value: Any, numbers: range) -> int:
    """Return a whole number of a range, numpy's too. Raises InvalidArgument naming the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        refuse(name, "a whole number", value)
    if isinstance(value, bool):
        refuse(name, "a whole number", value)
    if number not in numbers:
        bound = f"{numbers.start} or more" if number < numbers.start else f"at most {numbers.stop - 1}"
        raise InvalidArgument(f"{name} must be {bound}", field=name)
    return number


def optional_whole(name: str, value: object, numbers: range) -> int | None:
    """Return a whole number of a range, or `None` for what was not given. Raises InvalidArgument."""
    return None if value is None else whole(name, value, numbers)


def seconds(name: str, value: object) -> float | None:
    """Return seconds, 0 or more, perhaps infinite; `None` for what was not given. Raises InvalidArgument."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(name, "a number of seconds", value)
    if not (number := float(value)) >= 0:  # NaN fails here too
        raise InvalidArgument(f"{name} must be 0 seconds or more", field=name)
    return number


def flag(name: str, value: object) -> bool:
    """Return a flag. Raises InvalidArgument naming the argument."""
    if not isinstance(value, bool):
        refuse(name, "True or False", value)
    return value


def task_type(value: object, name: str = "task_type") -> TaskType | None:
    """Return the task type of a word in any case, `None` for none. Raises InvalidArgument."""
    if value is None:
        return None
    if not isinstance(value, str):
        refuse(name, "a TaskType or its name", value)
    try:
        return TaskType(value.upper())
    except ValueError:
        raise InvalidArgument(f"{name} must be one of {', '.join(TaskType)}", field=name) from None
