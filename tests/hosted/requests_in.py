"""Reads what Google's services read: both spellings of a field, and no field that they do not have."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson
from hosted.replies import Refused
from hosted.results import Row
from hosted.vectors import EMBEDDERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TASKS = {
    *(
        "TASK_TYPE_UNSPECIFIED",
        "RETRIEVAL_QUERY",
        "RETRIEVAL_DOCUMENT",
        "SEMANTIC_SIMILARITY",
        "CLASSIFICATION",
    ),
    *("CLUSTERING", "QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY"),
}
CONFIG = {
    *("taskType", "title", "outputDimensionality", "autoTruncate", "documentOcr", "audioTrackExtraction")
}
_REQUEST = {"model", "content", "taskType", "title", "outputDimensionality", "embedContentConfig"}


def read_json(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds; nothing is an empty one."""
    try:
        said = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"Invalid JSON payload received. {error}") from error
    return an_object(said, "")


def an_object(said: object, where: str) -> dict[str, Any]:
    """Return a value that has to be an object."""
    if not isinstance(said, dict):
        raise Refused(400, f"Invalid value at '{where}': an object is expected.")
    return said


def fields(said: object, known: set[str], where: str) -> dict[str, Any]:
    """Return the fields of an object in camel case; a field that is not known is refused."""
    read: dict[str, Any] = {}
    for name, value in an_object(said, where).items():
        camel = _camel(name)
        if camel not in known:
            at = f" at '{where}'" if where else ""
            raise Refused(
                400, f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
            )
        if camel in read:
            raise Refused(400, f"Invalid value at '{where}': field {camel} is set twice.")
        read[camel] = value
    return read


@lru_cache(maxsize=1024)
def _camel(name: str) -> str:
    return re.sub("_([a-z])", lambda found: found[1].upper(), name)


def a_list(said: object, where: str) -> list[Any]:
    """Return a value that has to be a list."""
    if not isinstance(said, list):
        raise Refused(400, f"Invalid value at '{where}': a list is expected.")
    return said


def read_content(said: object, where: str) -> str:
    """Return the text of a content: its parts become one text."""
    content = fields(said, {"parts", "role"}, where)
    texts = []
    for part in a_list(content.get("parts", []), f"{where}.parts"):
        text = fields(part, {"text", "inlineData", "fileData"}, f"{where}.parts").get("text")
        if not isinstance(text, str):
            raise Refused(400, f"Invalid value at '{where}.parts': this stand-in reads text only.")
        texts.append(text)
    return "\n".join(texts)


def read_request(said: object, model: str, echo: dict[str, Any], where: str) -> Row:
    """Return the row of an EmbedContentRequest; a number that is out of range is the row's own problem."""
    request = fields(said, _REQUEST, where)
    if (named := request.get("model")) not in {None, "", f"models/{model}"}:
        raise Refused(400, f"* {where}.model: unexpected model name format or another model: {named!r}")
    config = fields(request.get("embedContentConfig") or {}, CONFIG, f"{where}.embed_content_config")
    both = {**request, **config}
    task = both.get("taskType") or ""
    if task and task not in TASKS:
        raise Refused(400, f"Invalid value at '{where}.task_type' (TaskType), \"{task}\"")
    title = both.get("title") or ""
    text = read_content(request.get("content"), f"{where}.content")
    width = both.get("outputDimensionality")
    return Row(
        echo,
        text,
        width or None,
        "" if task == "TASK_TYPE_UNSPECIFIED" else task,
        title if task == "RETRIEVAL_DOCUMENT" else "",
        problem=width_problem(width, model),
    )


def width_problem(width: object, model: str) -> str:
    """Say what is wrong with an output dimensionality; nothing if it is right or absent."""
    if width is None or (type(width) is int and 1 <= width <= EMBEDDERS[model].native):
        return ""
    return f"output_dimensionality must be between 1 and {EMBEDDERS[model].native}."


def read_lines(path: Path, model: str) -> Iterator[Row]:
    """Yield the rows of a JSONL file of the Developer API; a line that cannot be read is a row that fails."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            echo: dict[str, Any] = {}
            try:
                said = fields(orjson.loads(line), {"key", "request", "metadata"}, "line")
                echo = {name: said[name] for name in ("key", "metadata") if name in said}
                yield read_request(said.get("request"), model, echo, "request")
            except orjson.JSONDecodeError as error:
                yield Row(echo, problem=f"Line {number} is not JSON: {error}")
            except Refused as refused:
                yield Row(echo, problem=str(refused))
