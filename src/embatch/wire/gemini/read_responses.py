"""What a service answers, read by the client: tolerant of what it does not know, strict about what it needs.

Google's live service leaves out zeros, `done` and whole lists, sends counters as strings and the output
twice; embatch adds fields of its own. All of that reads as the same values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch import jsontext
from embatch.batch import Batch, BatchStats, BatchUsage, Model, Page
from embatch.errors import Code, Internal, Reason, RequestError, printable
from embatch.states import State
from embatch.vectors import ContentEmbedding
from embatch.wire.gemini.states import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.vectors import Vectors

_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """The outcome of one request, as a list or file of results has it: exactly one of values and error."""

    key: str | None
    metadata: Mapping[str, Any] | None
    values: Vectors | None = field(repr=False)
    error: RequestError | None
    tokens: int | None
    """`None` where the service does not say."""


def parse_operation(body: bytes) -> Batch:
    """Return the batch of an operation: the answer to a submit or a status call."""
    return _operation(_object(body))


def parse_batch(body: bytes) -> Batch:
    """Return the batch of a bare description: the answer to an update."""
    return _batch(_object(body), {})


def parse_batches(body: bytes) -> Page[Batch]:
    """Return a page of batches; `{}` is an empty one."""
    said = _object(body)
    return Page(
        tuple(_operation(one) for one in _list(said.get("operations"))), _text(said.get("nextPageToken"))
    )


def parse_models(body: bytes) -> Page[Model]:
    """Return a page of models."""
    said = _object(body)
    models = tuple(
        Model(
            _named(one, "models/"),
            _text(one.get("displayName")) or "",
            _text(one.get("description")) or "",
            _count(one.get("inputTokenLimit")) or None,
        )
        for one in _list(said.get("models"))
    )
    return Page(models, _text(said.get("nextPageToken")))


def _operation(said: Any) -> Batch:
    if not isinstance(said, dict):
        raise Internal("the service's answer is not a batch")
    metadata = said.get("metadata")
    if not isinstance(metadata, dict):
        raise Internal("the service's answer is not a batch")
    return _batch({"name": said.get("name"), **metadata}, said)


def _batch(said: dict[str, Any], operation: Mapping[str, Any]) -> Batch:
    error = operation.get("error")
    state = _state(said.get("state"), done=operation.get("done") is True, failed=isinstance(error, dict))
    output = said.get("output") or operation.get("response") or {}
    source = said.get("inputConfig")
    return Batch(
        name=_named(said, "batches/"),
        model=_text(said.get("model")) or "",
        state=state,
        display_name=_text(said.get("displayName")),
        priority=_count(said.get("priority")),
        create_time=_time(said.get("createTime")),
        update_time=_time(said.get("updateTime")),
        end_time=_time(said.get("endTime")),
        batch_stats=_stats(said.get("batchStats"), final=state.final),
        input_file=_text(source.get("fileName")) if isinstance(source, dict) else None,
        responses_file=_text(output.get("responsesFile")) if isinstance(output, dict) else None,
        error=_request_error(error).message if isinstance(error, dict) else None,
        notes=tuple(note for note in _list(said.get("notes")) if isinstance(note, str)),
        usage=_usage(said.get("usage")),
        alias_of=_text(said.get("aliasOf")),
    )


def _usage(said: object) -> BatchUsage:
    counts = said if isinstance(said, dict) else {}
    return BatchUsage(
        _count(counts.get("tokenCount")),
        _count(counts.get("uncommittedTokenCount")),
        _count(counts.get("cachedRequestCount")),
        _seconds(counts.get("cpuSeconds")) or 0.0,
        _seconds(counts.get("interactiveCpuSeconds")),
    )


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _state(word: object, *, done: bool, failed: bool) -> State:
    known = state_of(_text(word))
    if known is not None and (known.final or not done):
        return known
    if done:
        return State.FAILED if failed else State.COMPLETED
    if word is None:
        return State.PENDING
    raise Internal("the service names a state that this client does not know: is there a newer one?")


def _stats(said: object, *, final: bool) -> BatchStats:
    counts = said if isinstance(said, dict) else {}
    total, good = _count(counts.get("requestCount")), _count(counts.get("successfulRequestCount"))
    failed = _count(counts.get("failedRequestCount"))
    # A zero is left out; but of a running batch so is, at times, what still waits.
    rest = 0 if final else max(0, total - good - failed)
    pending = _count(counts["pendingRequestCount"]) if "pendingRequestCount" in counts else rest
    return BatchStats(total, good, failed, pending, _count(counts.get("uncommittedRequestCount")))


def parse_items(body: bytes) -> list[ResponseRow] | None:
    """Return the inlined results of an operation in the order they came; `None` where there are none."""
    said = _object(body)
    metadata = said.get("metadata")
    for output in (
        (metadata or {}).get("output") if isinstance(metadata, dict) else None,
        said.get("response"),
    ):
        if not isinstance(output, dict):
            continue
        for name in ("inlinedResponses", "inlinedEmbedContentResponses"):
            inner = output.get(name)
            items = inner.get("inlinedResponses") if isinstance(inner, dict) else inner
            if isinstance(items, list):
                return [_found(item) for item in items]
    return None


def parse_line(line: bytes) -> ResponseRow:
    """Return the result on one line of a responses file; a damaged line is an error without a key."""
    try:
        said = jsontext.loads(line)
    except ValueError:  # also an integer of more digits than Python reads
        said = None
    if not isinstance(said, dict):
        return ResponseRow(
            None, None, None, RequestError(Code.DATA_LOSS, Reason.BAD_LINE, "its result is damaged"), None
        )
    return _found(said)


def _found(said: Any) -> ResponseRow:
    if not isinstance(said, dict):
        raise Internal("the service's results hold something that is no result")
    key = said.get("key", said.get("custom_id"))
    metadata = said.get("metadata")
    response = said.get("response")
    response = response if isinstance(response, dict) else {}
    # A line that failed says `error` or `status`, depending on which of Google's pages one reads.
    fault = said.get("error") or said.get("status")
    values = _values(response.get("embedding"))
    # A status with code 0 beside an embedding says that all is well.
    error = None
    if isinstance(fault, dict) and (values is None or _count(fault.get("code")) != 0):
        error = _request_error(fault)
    if values is None and error is None:
        error = RequestError(Code.INTERNAL, None, "the service gave neither an embedding nor an error for it")
    usage = response.get("usageMetadata")
    tokens = usage.get("promptTokenCount") if isinstance(usage, dict) else response.get("tokenCount")
    return ResponseRow(
        key if isinstance(key, str) else None,
        metadata if isinstance(metadata, dict) else None,
        None if error is not None else values,
        error,
        None if tokens is None else _count(tokens),
    )


def _request_error(said: Mapping[str, Any]) -> RequestError:
    code = Code.of_number(_count(said.get("code")))
    message = printable(_text(said.get("message")) or f"the service said {code.name} and no more")
    reasons = [one.get("reason") for one in _list(said.get("details")) if isinstance(one, dict)]
    reason = next((Reason(word) for word in map(_text, reasons) if word in Reason.__members__), None)
    return RequestError(code, reason, message)


def parse_embedding(body: bytes) -> ContentEmbedding:
    """Return the embedding of one text."""
    values = _values(_object(body).get("embedding"))
    if values is None:
        raise Internal("the service answered without an embedding")
    return ContentEmbedding(values)


def parse_embeddings(body: bytes) -> list[ContentEmbedding]:
    """Return the embeddings of several texts, in their order."""
    found = [_values(one) for one in _list(_object(body).get("embeddings"))]
    if any(values is None for values in found):
        raise Internal("the service answered without an embedding")
    return [ContentEmbedding(values) for values in found if values is not None]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference path of a service gave."""

    embeddings: list[ContentEmbedding | None]
    """In the order of the texts; `None` where one has none."""
    tokens: int
    cpu_seconds: float
    """What the engine spent on them, one text at a time."""
    engine: dict[str, Any]
    """The engine that these vectors stand against: name, identity, precision, maxTokens, files."""
    dimensions: int | None = None
    """The model's native number; `None` where the service does not say."""


def parse_reference(body: bytes) -> Reference:
    """Return the answer of `embedReference`."""
    said = _object(body)
    values = [_values(one) for one in _list(said.get("embeddings"))]
    engine = said.get("engine")
    return Reference(
        [None if one is None else ContentEmbedding(one) for one in values],
        _count(said.get("tokenCount")),
        _seconds(said.get("cpuSeconds")) or 0.0,
        engine if isinstance(engine, dict) else {},
        _count(said.get("dimensions")) or None,
    )


def parse_count(body: bytes) -> int:
    """Return the tokens that `countTokens` counted."""
    return _count(_object(body).get("totalTokens"))


def parse_published(body: bytes) -> int:
    """Return how many vectors the end of a run added to the cache."""
    return _count(_object(body).get("newVectorCount"))


def parse_file_name(body: bytes) -> str:
    """Return the name of the file that an upload made."""
    return _named(_object(body).get("file"), "files/")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a service says of a file that it has."""

    size: int | None
    """Bytes; `None` where it does not say."""
    ready: bool
    """Whether a batch can read it."""
    failed: bool
    """Whether it never will be ready."""


def parse_file(body: bytes) -> StoredFile:
    """Return what is said of a file."""
    said = _object(body)
    state = _text(said.get("state"))
    size = said.get("sizeBytes")
    return StoredFile(None if size is None else _count(size), state in (None, "ACTIVE"), state == "FAILED")


def _values(said: object) -> Vectors | None:
    values = said.get("values") if isinstance(said, dict) else None
    if not isinstance(values, list) or not values:
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, np.float32)
    except (TypeError, ValueError, OverflowError):
        return None
    # None reads as NaN, and what float32 cannot hold as infinity: neither is an embedding.
    return array if array.ndim == 1 and np.isfinite(array).all() else None


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = jsontext.loads(body)
    except ValueError:  # also an integer of more digits than Python reads
        said = None
    if not isinstance(said, dict):
        raise Internal(
            "the service's answer is not a JSON object: is this the address of an embatch service?"
        )
    return said


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _text(said: object) -> str | None:
    return said if isinstance(said, str) and said else None


def _named(said: object, prefix: str) -> str:
    name = _text(said.get("name")) if isinstance(said, dict) else None
    if name is None or not name.startswith(prefix):
        raise Internal(f"the service's answer names no {prefix}…")
    return name


def _count(said: object) -> int:
    """Return an int64, which stands in JSON as a string, or as a number, or not at all."""
    if isinstance(said, bool):
        return 0
    try:
        number = int(said)  # type: ignore[call-overload]  # what is no number is caught
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if number in _INT64 else 0


def _time(said: object) -> datetime | None:
    """Return a time of RFC 3339 in UTC; digits beyond microseconds are cut."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", _text(said) or "")
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(match[1] + match[3]).astimezone(UTC)
    except (ValueError, OverflowError):  # the first and last hours of all time are none in UTC
        return None
    return whole + timedelta(microseconds=int((match[2] or ".")[1:7].ljust(6, "0")))
