"""What the service answers in Google's wire protocol: operations, items, embeddings, models.

As the live service does: `done` is absent until the batch is final, zero counters are left out, 64-bit
numbers are strings, times have nine digits, and the output of an inline batch stands under `metadata.output`
and again under `response`. Items carry a code and a message only, for details crash Google's own client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from embatch.errors import Code
from embatch.states import State
from embatch.vectors import truncate
from embatch.wire.gemini.states import WORDS
from embatch.wire.gemini.write_errors import spelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.batch import Batch, BatchUsage

_TYPE: Final = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
_ENDS: Final = {
    State.CANCELLED: (Code.CANCELLED, "the batch was cancelled"),
    State.EXPIRED: (Code.DEADLINE_EXCEEDED, "the batch expired before it was finished"),
    State.FAILED: (Code.INVALID_ARGUMENT, "the batch failed"),
}


def timestamp(time: datetime) -> str:
    """Return a UTC time in RFC 3339 with nine digits."""
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond:06}000Z"


def batch_message(batch: Batch) -> dict[str, Any]:
    """Return a batch as EmbedContentBatch, without output."""
    stats = batch.batch_stats
    counts = {
        "requestCount": stats.request_count,
        "successfulRequestCount": stats.successful_request_count,
        "failedRequestCount": stats.failed_request_count,
        "pendingRequestCount": stats.pending_request_count,
        "uncommittedRequestCount": stats.uncommitted_request_count,
    }
    message: dict[str, Any] = {"model": batch.model, "name": batch.name, "state": WORDS[batch.state]}
    if batch.display_name is not None:
        message["displayName"] = batch.display_name
    if batch.alias_of is not None:
        message["aliasOf"] = batch.alias_of
    if batch.input_file is not None:
        message["inputConfig"] = {"fileName": batch.input_file}
    message["priority"] = str(batch.priority)
    message["batchStats"] = {name: str(count) for name, count in counts.items() if count}
    for name, time in (
        ("createTime", batch.create_time),
        ("updateTime", batch.update_time),
        ("endTime", batch.end_time),
    ):
        if time is not None:
            message[name] = timestamp(time)
    if batch.notes:
        message["notes"] = list(batch.notes)
    if usage := _usage(batch.usage):
        message["usage"] = usage
    if batch.responses_file is not None:
        message["output"] = {"responsesFile": batch.responses_file}
    return message


def _usage(usage: BatchUsage) -> dict[str, Any]:
    counts = {
        "tokenCount": usage.token_count,
        "uncommittedTokenCount": usage.uncommitted_token_count,
        "cachedRequestCount": usage.cached_request_count,
    }
    said: dict[str, Any] = {name: str(count) for name, count in counts.items() if count}
    if usage.cpu_seconds:
        said["cpuSeconds"] = usage.cpu_seconds
    if usage.interactive_cpu_seconds is not None:
        said["interactiveCpuSeconds"] = usage.interactive_cpu_seconds
    return said


def operation(batch: Batch, *, output: bool) -> dict[str, Any]:
    """Return a batch as an Operation; `output` keeps the name of its responses file."""
    metadata = {"@type": _TYPE, **batch_message(batch)}
    if not output:
        metadata.pop("output", None)
    message: dict[str, Any] = {"name": batch.name, "metadata": metadata}
    if batch.done:
        message["done"] = True
    if batch.state in _ENDS:
        code, words = _ENDS[batch.state]
        message["error"] = {"code": code.number, "message": batch.error or words}
    elif "output" in metadata:
        message["response"] = {"@type": f"{_TYPE}Output", **metadata["output"]}
    return message


def operation_with_items(batch: Batch, parts: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    """Yield the JSON of a final inline batch piece by piece, with all its items, twice as Google does.

    Encoded items are kept for the second time they are written: vectors as text, some 8 kB each.
    """
    head = orjson.dumps(operation(batch, output=False))
    marker = b'"metadata":{'
    at = head.index(marker) + len(marker)
    yield head[:at] + b'"output":{"inlinedResponses":{"inlinedResponses":['
    kept: list[bytes] = []
    for part in parts:
        piece = b",".join(items(part))
        if kept and piece:
            yield b","
        if piece:
            kept.append(piece)
            yield piece
    yield b"]}}," + head[at:-1]
    if batch.state is State.COMPLETED:
        yield (
            b',"response":{"@type":"'
            + f"{_TYPE}Output".encode()
            + b'","inlinedResponses":{"inlinedResponses":['
        )
        for number, piece in enumerate(kept):
            yield b"," + piece if number else piece
        yield b"]}}"
    yield b"}"


def rows(part: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], NDArray[np.float32] | None]]:
    """Yield each request's columns and its vector in the dimensions it asked for; `None` where it failed."""
    names = [name for name in part.schema.names if name != "embedding"]
    columns = {name: part.column(name).to_pylist() for name in names}
    embedding: Any = part.column("embedding")
    size = embedding.type.list_size
    # `values` of a sliced array keeps its offset; these come whole from files, and flatten drops null rows.
    vectors = np.asarray(embedding.values, np.float32).reshape(-1, size)
    for at in range(part.num_rows):
        row = {name: values[at] for name, values in columns.items()}
        if row["error_code"] is not None:
            yield row, None
        else:
            asked = row.get("dimensions")
            yield row, vectors[at] if asked is None else truncate(vectors[at], min(asked, size))


def items(part: pa.RecordBatch) -> Iterator[bytes]:
    """Yield inlined responses as JSON."""
    for row, vector in rows(part):
        item = _outcome(row, vector)
        text = orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY)
        yield (
            text if row["metadata"] is None else text[:-1] + b',"metadata":' + row["metadata"].encode() + b"}"
        )


def lines(part: pa.RecordBatch) -> Iterator[bytes]:
    """Yield the lines of a responses file."""
    for row, vector in rows(part):
        line = _outcome(row, vector)
        if row["key"] is not None:
            line = {"key": row["key"], **line}
        text = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)
        # Somebody's JSON may stand on several lines; within its texts there is no line end.
        metadata = (row["metadata"] or "").replace("\n", " ").replace("\r", " ").encode()
        tail = b',"metadata":' + metadata + b"}\n" if metadata else b"}\n"
        yield text[:-1] + tail


def _outcome(row: Mapping[str, Any], vector: NDArray[np.float32] | None) -> dict[str, Any]:
    if vector is None:
        return {"error": {"code": row["error_code"], "message": spelled(row["error_message"])}}
    return {
        "response": {
            "embedding": {"values": vector},
            "usageMetadata": {"promptTokenCount": row["tokens"]},
            "tokenCount": str(row["tokens"]),
        }
    }


def embeddings(part: pa.RecordBatch, *, single: bool) -> bytes:
    """Return the answer of `embedContent` or `batchEmbedContents` as JSON."""
    vectors = [{"values": vector} for _, vector in rows(part) if vector is not None]
    usage = {"promptTokenCount": sum(int(count or 0) for count in part.column("tokens").to_pylist())}
    message = {"embedding": vectors[0]} if single else {"embeddings": vectors}
    return orjson.dumps({**message, "usageMetadata": usage}, option=orjson.OPT_SERIALIZE_NUMPY)


def reference(part: pa.RecordBatch, tokens: int, cpu_seconds: float, engine: Mapping[str, object]) -> bytes:
    """Return the answer of `embedReference` as JSON; a request without a vector has an empty embedding."""
    message = {
        "embeddings": [{} if vector is None else {"values": vector} for _, vector in rows(part)],
        "tokenCount": str(tokens),
        "cpuSeconds": cpu_seconds,
        "dimensions": part.schema.field("embedding").type.list_size,
        "engine": engine,
    }
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def model_message(name: str, dimensions: int | None, max_tokens: int | None, engine: str) -> dict[str, Any]:
    """Return a served model as Model."""
    size = f"{dimensions} dimensions" if dimensions else "dimensions known once loaded"
    return {
        "name": f"models/{name}",
        "baseModelId": name,
        "version": "1",
        "displayName": name.rpartition("/")[2],
        "description": f"{size}, engine {engine}",
        "inputTokenLimit": max_tokens or 0,
        "outputTokenLimit": 1,
        "supportedGenerationMethods": ["embedContent", "batchEmbedContents", "asyncBatchEmbedContent"],
    }


def engine_message(
    name: str, identity: str, precision: str, max_tokens: int, files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the engine that reference vectors stand against."""
    return {
        "name": name,
        "identity": identity,
        "precision": precision,
        "maxTokens": max_tokens,
        "files": dict(files),
    }


def page(name: str, messages: Iterable[dict[str, Any]], next_page_token: str | None = None) -> dict[str, Any]:
    """Return one page of a list: `operations`, `models` or `files`."""
    following = {} if next_page_token is None else {"nextPageToken": next_page_token}
    return {name: list(messages), **following}


def counted(tokens: int) -> dict[str, Any]:
    """Return the answer of `countTokens`."""
    return {"totalTokens": tokens}


def published(vectors: int) -> dict[str, Any]:
    """Return the answer to the end of a run: how many vectors are new."""
    return {"newVectorCount": str(vectors)}
