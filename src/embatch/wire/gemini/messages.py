"""The messages that clients send in Google's protocol: which fields there are, and of what type.

Both spellings of every field are taken (proto3 JSON: `displayName` and `display_name`), never both at once,
and `null` reads as absent. What a text is worth is not judged here: the `text` of a part is any value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Required, TypeVar, cast

from pydantic import (
    AliasChoices,
    AliasGenerator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel, to_snake
from typing_extensions import TypedDict

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable


def _spellings(name: str) -> str | AliasChoices:
    camel = to_camel(name)
    return camel if camel == name else AliasChoices(camel, name)


def _whole(value: object) -> object:
    """Return the number that a whole float or a string of digits stands for (proto3 JSON)."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


def _digits(value: object) -> object:
    """Return a number as the text that it would be in JSON."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _list_or_none(value: object) -> object:
    return value if isinstance(value, list) else None


_EXACT: Final = ConfigDict(extra="forbid", alias_generator=AliasGenerator(validation_alias=_spellings))
_Text = StrictStr | None
_Int32 = Annotated[Annotated[StrictInt, Field(ge=-(1 << 31), lt=1 << 31)] | None, BeforeValidator(_whole)]
_Int64 = Annotated[Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)] | None, BeforeValidator(_whole)]


class Part(TypedDict, total=False):
    """A part of a content: one of text and data."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]  # pydantic's way to configure a TypedDict

    text: Any
    inline_data: Any
    file_data: Any
    thought: Any
    thought_signature: Any
    video_metadata: Any


class Content(TypedDict, total=False):
    """What is embedded as one."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    parts: Annotated[list[Part] | None, BeforeValidator(_list_or_none)]
    role: Any


class Config(TypedDict, total=False):
    """How a request shall be embedded, where it does not say so itself."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    task_type: _Text
    title: _Text
    output_dimensionality: _Int32
    auto_truncate: StrictBool | None
    mime_type: Any
    document_ocr: Any
    audio_track_extraction: Any


class Request(TypedDict, total=False):
    """`EmbedContentRequest`: one text to embed."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    model: _Text
    content: Content | None
    task_type: _Text
    title: _Text
    output_dimensionality: _Int32
    embed_content_config: Config | None


class InlinedRequest(TypedDict, total=False):
    """A request of a batch, with what comes back beside its embedding."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    request: Required[Request]
    metadata: dict[str, Any] | None
    key: _Text


class Line(TypedDict, total=False):
    """The same as a line of an input file; its key may be a number."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    request: Required[Request]
    metadata: dict[str, Any] | None
    key: Annotated[_Text, BeforeValidator(_digits)]
    custom_id: Annotated[_Text, BeforeValidator(_digits)]


class Requests(TypedDict, total=False):
    """The list of a batch or of an interactive call: what stands in it is read piece by piece."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    requests: Any


class InputConfig(TypedDict, total=False):
    """Where the requests of a batch are."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    requests: Requests | None
    file_name: _Text


class Batch(TypedDict, total=False):
    """What a submit says of a batch."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    model: _Text
    display_name: _Text
    input_config: Required[InputConfig]
    priority: _Int64
    webhook_config: Any
    name: Any


class Submit(TypedDict, total=False):
    """The body of `asyncBatchEmbedContent`."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    batch: Required[Batch]


class Contents(TypedDict, total=False):
    """The body of `countTokens`."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    contents: Any


class BatchUpdate(TypedDict, total=False):
    """The body of `updateEmbedContentBatch`."""

    __pydantic_config__ = _EXACT  # type: ignore[misc]

    display_name: _Text
    priority: _Int64
    name: Any
    model: Any


Message = TypeVar("Message")

_REFUSALS: Final = {
    "missing": "this must be a JSON object",
    "dict_type": "this must be a JSON object",
    "string_type": "this must be a string",
    "bool_type": "this must be true or false",
    "int_type": "this must be a whole number",
}


def reader(message: type[Message]) -> Callable[[object, str], Message]:
    """Return what reads a message: it takes parsed JSON and its path in the body, `""` for the body itself.

    It raises InvalidArgument, naming the field: what is unknown or given twice before anything else.
    """
    validate = TypeAdapter(message).validator.validate_python

    def read(value: object, path: str) -> Message:
        try:
            return cast("Message", validate(value))
        except ValidationError as error:
            raise _refusal(error, value, path) from None

    return read


def _refusal(error: ValidationError, value: object, path: str) -> InvalidArgument:
    found = error.errors(include_url=False, include_input=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    place = path
    for step in first["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step[:64]}" if place else step[:64]
    field, name = place or "body", str(first["loc"][-1])[:64] if first["loc"] else ""
    match first["type"]:
        case "extra_forbidden" if _spelled_twice(value, first["loc"]):
            return InvalidArgument("both spellings of this field are given: send one", field=field)
        case "extra_forbidden":
            return InvalidArgument(
                f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.',
                field=field,
                reason="UNKNOWN_FIELD",
            )
        case "less_than" | "greater_than_equal":
            bits = 32 if first["ctx"].get("lt", -first["ctx"].get("ge", 0)) == 1 << 31 else 64
            most = 1 << (bits - 1)
            return InvalidArgument(
                f"this must be from {-most} to {most - 1}", field=field, reason="OUT_OF_RANGE"
            )
        case "dict_type" if name == "metadata":
            return InvalidArgument("metadata must be a JSON object", field=field)
        case kind:
            return InvalidArgument(_REFUSALS.get(kind, "this is of another type"), field=field)


def _spelled_twice(value: Any, steps: tuple[int | str, ...]) -> bool:
    """Return whether a field stands beside itself in its other spelling."""
    *above, name = steps
    for step in above:
        value = value[step]
    return any(other != name and other in value for other in (to_camel(str(name)), to_snake(str(name))))
