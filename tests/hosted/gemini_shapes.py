"""What the Gemini stand-in writes: models, results, and the marks in its lists."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hosted.replies import Refused
from hosted.requests_in import a_list, fields, read_lines, read_request
from hosted.vectors import EMBEDDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hosted.jobs import Job
    from hosted.results import Result, Row

MODELS = {name: one for name, one in EMBEDDERS.items() if not one.legacy}


def rows_of(rows: list[Row] | Path, model: str) -> Iterator[Row]:
    """Yield the rows of a batch, from memory or from its file."""
    if isinstance(rows, Path):
        yield from read_lines(rows, model.removeprefix("models/"))
    else:
        yield from rows


def inline_rows(said: object, model: str) -> Iterator[Row]:
    """Yield the rows of inline requests."""
    requests = a_list(
        fields(said, {"requests"}, "batch.input_config.requests").get("requests", []), "requests"
    )
    for at, one in enumerate(requests):
        where = f"batch.input_config.requests.requests[{at}]"
        item = fields(one, {"request", "metadata"}, where)
        echo = {"metadata": item["metadata"]} if "metadata" in item else {}
        yield read_request(item.get("request"), model, echo, f"{where}.request")


def _error(result: Result) -> dict[str, Any]:
    return {"code": result.code, **({"message": result.message} if result.message else {})}


def item(result: Result) -> dict[str, Any]:
    """Write an inline result."""
    if result.values is None:
        return {**result.row.echo, "error": _error(result)}
    response = {"embedding": {"values": result.values}, "tokenCount": str(result.tokens)}
    return {**result.row.echo, "response": response}


def line(result: Result, word: str) -> dict[str, Any]:
    """Write a line of a results file."""
    if result.values is None:
        return {**result.row.echo, word: _error(result)}
    usage = {"usageMetadata": {"promptTokenCount": result.tokens}}
    return {**result.row.echo, "response": {"embedding": {"values": result.values}, **usage}}


def results_file(job: Job) -> str:
    """Name the results file of a batch."""
    return f"files/batch-{job.name.removeprefix('batches/')}"


def shown_model(name: str) -> dict[str, Any]:
    """Write a Model."""
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "description": "Obtain a distributed representation of a text.",
        "inputTokenLimit": MODELS[name].tokens,
        "outputTokenLimit": 1,
        "supportedGenerationMethods": [
            "embedContent",
            "countTextTokens",
            "countTokens",
            "asyncBatchEmbedContent",
        ],
    }


def batch_id(seed: int, ordinal: int) -> str:
    """Return the id of a batch: 36 lower-case letters and digits."""
    digits = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(
        digits[one % 36] for one in hashlib.blake2b(f"{seed}|{ordinal}".encode(), digest_size=36).digest()
    )


def page_token(ordinal: int) -> str:
    """Write a page token: what comes before the batch."""
    return base64.urlsafe_b64encode(f"before:{ordinal}".encode()).decode()


def read_page_token(token: str) -> int | None:
    """Read a page token; nothing is the first page."""
    if not token:
        return None
    try:
        word, _, ordinal = base64.urlsafe_b64decode(token).decode().partition(":")
        number = int(ordinal)
    except ValueError as error:
        raise Refused(400, "Invalid page token.") from error
    if word != "before":
        raise Refused(400, "Invalid page token.")
    return number
