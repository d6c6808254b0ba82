"""Lines that Vertex reads and writes: with keys for Gemini models, with the instance for legacy ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from hosted.cloud_storage import lines
from hosted.replies import Refused
from hosted.requests_in import CONFIG, TASKS, fields, read_content, width_problem
from hosted.results import Row
from hosted.vectors import EMBEDDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hosted.results import Result


def read_rows(content: bytes, model: str) -> Iterator[Row]:
    """Yield the rows of an input file; a line that cannot be read is a row that fails."""
    read = _instance if EMBEDDERS[model].legacy else _keyed
    for number, line in enumerate(lines(content), 1):
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield Row({}, problem=f"Line {number} is not JSON: {error}")
            continue
        try:
            yield read(said, model)
        except Refused as refused:
            yield Row(said if isinstance(said, dict) else {}, problem=str(refused))


def _keyed(said: Any, model: str) -> Row:
    line = fields(said, {"key", "request"}, "line")
    if "key" not in line:
        raise Refused(400, "The line has no key.")
    request = fields(line.get("request"), {"content", "embedContentConfig", "model"}, "request")
    config = fields(request.get("embedContentConfig") or {}, CONFIG, "request.embed_content_config")
    return configured(said, read_content(request.get("content"), "request.content"), config, model)


def _instance(said: Any, model: str) -> Row:
    # What the service does not know it repeats.
    known = {"content", "taskType", "task_type", "title", "outputDimensionality", "output_dimensionality"}
    mine = {name: value for name, value in said.items() if name in known}
    instance = fields(mine, {"content", "taskType", "title", "outputDimensionality"}, "instance")
    if not isinstance(instance.get("content"), str):
        raise Refused(400, "The instance has no content.")
    return configured(said, instance["content"], instance, model)


def configured(echo: dict[str, Any], text: str, config: dict[str, Any], model: str) -> Row:
    """Return the row of a text and its options."""
    task, title, width = (
        config.get("taskType") or "",
        config.get("title") or "",
        config.get("outputDimensionality"),
    )
    if task and task not in TASKS:
        raise Refused(400, f"Invalid value at 'task_type' (TaskType), \"{task}\"")
    title = title if task == "RETRIEVAL_DOCUMENT" else ""
    return Row(echo, text, width or None, task, title, problem=width_problem(width, model))


def keyed_line(result: Result, *, echo_request: bool, error_lines: bool) -> dict[str, Any]:
    """Write a result of a Gemini model."""
    echo = result.row.echo
    head = {name: echo[name] for name in ("key", *(["request"] if echo_request else [])) if name in echo}
    if result.values is not None:
        usage = {"usageMetadata": {"promptTokenCount": result.tokens}}
        return {**head, "response": {"embedding": {"values": result.values}, **usage}, "status": ""}
    error = {"code": result.code, "message": result.message}
    return {**head, "error": error} if error_lines else {**head, "status": orjson.dumps(error).decode()}


def instance_line(result: Result) -> dict[str, Any]:
    """Write a result of a legacy model."""
    if result.values is None:
        error = orjson.dumps({"code": result.code, "message": result.message}).decode()
        return {"instance": result.row.echo, "predictions": [], "status": error}
    return {
        "instance": result.row.echo,
        "predictions": [prediction(result.values, result.tokens)],
        "status": "",
    }


def prediction(values: Any, count: int, *, truncated: bool = False) -> dict[str, Any]:
    """Write a prediction of a legacy model."""
    return {"embeddings": {"values": values, "statistics": {"token_count": count, "truncated": truncated}}}
