"""What a client and its private service say to each other over their socket, and to nobody else.

    POST /private/models   {"model" or "folder", "revision", "engine", "precision", "options"}
                       →   {"name"}, or while files are fetched {"fetched_bytes", "total_bytes"}: ask again

Who asks again with the same words hears of the same fetch, and is heard: a fetch that nobody asks about ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

MODELS: Final = "/private/models"
COLD: Final = "cold"
"""What a service is started with that shall load no model before one is needed."""


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model to be served. What is `None` is left to the service."""

    model: str | None = None
    """A Hub name, or one that is served already; `None`: the default model, or `folder`."""
    folder: str | None = None
    """Absolute path."""
    revision: str | None = None
    """Of a Hub name."""
    engine: str = "auto"
    precision: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What became of it so far."""

    name: str | None
    """By which requests name it; `None` while its files are fetched."""
    fetched_bytes: int = 0
    total_bytes: int | None = None
    """`None` as long as nobody knows."""


_NAMES: Final = tuple(one.name for one in fields(WantedModel))


def write_wanted(wanted: WantedModel) -> bytes:
    """Return the body of a call."""
    return orjson.dumps(asdict(wanted))


def read_wanted(body: bytes) -> WantedModel:
    """Return what a call asks for.

    Raises:
        InvalidArgument: it is none; `field` names the member.
    """
    said = _object(body)
    if said is None:
        raise InvalidArgument("the body is no JSON object", field="body")
    for name, value in said.items():
        if name not in _NAMES:
            raise InvalidArgument(f"there is no field {name[:40]!r}", field="body")
        if name == "options":
            if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
                raise InvalidArgument("options are texts by name", field="options")
        elif not (isinstance(value, str) or (value is None and name in ("model", "folder", "revision"))):
            raise InvalidArgument(f"{name} is a text", field=name)
        if isinstance(value, str) and "\0" in value:
            raise InvalidArgument(f"{name} holds a NUL", field=name)
    if said.get("model") is not None and said.get("folder") is not None:
        raise InvalidArgument("a model has a name or a folder", field="model")
    return WantedModel(**said)


def write_answer(answer: ModelAnswer) -> dict[str, Any]:
    """Return the message of an answer."""
    return asdict(answer)


def read_answer(body: bytes) -> ModelAnswer:
    """Return what an answer says. Raises Internal where it says nothing."""
    match _object(body):
        case {
            "name": str() | None as name,
            "fetched_bytes": int(fetched),
            "total_bytes": int() | None as total,
        }:
            return ModelAnswer(name, fetched, total)
    raise Internal("the service's answer about a model makes no sense")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None
