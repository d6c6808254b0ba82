"""What the client sends: Google's messages as JSON, and requests as lines of JSONL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Final

from embatch import jsontext
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Request


def create_body(model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
    """Return the body of an inline submit."""
    rows = [
        {
            "request": _embed(None, one),
            **({} if one.metadata is None else {"metadata": dict(one.metadata)}),
            **({} if one.key is None else {"key": one.key}),
        }
        for one in requests
    ]
    return jsontext.encode({"batch": _batch(model, display_name, priority, {"requests": {"requests": rows}})})


def create_from_file_body(model: str, display_name: str, priority: int, file: str) -> bytes:
    """Return the body of a submit whose requests are in an uploaded file."""
    return jsontext.encode({"batch": _batch(model, display_name, priority, {"fileName": file})})


def _batch(model: str, display_name: str, priority: int, source: dict[str, Any]) -> dict[str, Any]:
    batch: dict[str, Any] = {"model": model, "displayName": display_name, "inputConfig": source}
    return {**batch, "priority": str(priority)} if priority else batch


def update_body(display_name: str | None, priority: int | None) -> tuple[str, bytes]:
    """Return field mask and body of an update; what is `None` is left alone."""
    changes: dict[str, Any] = {}
    if display_name is not None:
        changes["displayName"] = display_name
    if priority is not None:
        changes["priority"] = str(priority)
    return ",".join(changes), jsontext.encode(changes)


def embed_body(model: str, request: Request) -> bytes:
    """Return the body that embeds one text now."""
    return jsontext.encode(_embed(model, request))


def embed_many_body(model: str, requests: Sequence[Request]) -> bytes:
    """Return the body that embeds a few texts now."""
    return jsontext.encode({"requests": [_embed(model, one) for one in requests]})


def count_body(model: str, texts: Sequence[str]) -> bytes:  # noqa: ARG001  (Google's has the model in its path)
    """Return the body that counts tokens."""
    return jsontext.encode(
        {"contents": [{"parts": [{"text": jsontext.encodable_or_none(text)}]} for text in texts]}
    )


def _embed(model: str | None, request: Request) -> dict[str, Any]:
    said: dict[str, Any] = {"content": {"parts": [{"text": jsontext.encodable_or_none(request.text)}]}}
    if model is not None:
        said["model"] = model
    if request.task_type is not None:
        said["taskType"] = request.task_type.value
    if request.title is not None:
        said["title"] = request.title
    if request.output_dimensionality is not None:
        said["outputDimensionality"] = request.output_dimensionality
    return said


def refuse_unsayable(request: Request, place: str) -> None:
    """Refuse what JSON cannot say beside the text; a text that it cannot say will fail alone.

    Raises:
        InvalidArgument: naming the field below `place`.
    """
    for name, text in (("key", request.key), ("title", request.title)):
        if isinstance(text, str) and not jsontext.encodable(text):
            raise InvalidArgument(
                f"{place}.{name} holds a lone surrogate: give whole characters", field=f"{place}.{name}"
            )
    if request.metadata is None:
        return
    try:
        if isinstance(request.metadata, Mapping):
            jsontext.dumps(dict(request.metadata))
            return
    except ValueError:
        pass
    raise InvalidArgument(
        f"{place}.metadata must be a JSON object of whole characters, at most {jsontext.DEPTH} levels deep",
        field=f"{place}.metadata",
    )


LINES: Final = "application/jsonl"


class LineWriter:
    """Writes requests as lines of JSONL, as Google's batch files have them."""

    mime_type: ClassVar[str] = LINES

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests; their metadata has no place here."""
        self._file.writelines(
            jsontext.encode({**({} if one.key is None else {"key": one.key}), "request": _embed(None, one)})
            + b"\n"
            for one in requests
        )

    def finish(self) -> None:
        """Complete the file, which stays open."""
        self._file.flush()
