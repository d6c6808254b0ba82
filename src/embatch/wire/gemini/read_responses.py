"""What a service answers, read by the client: tolerant of what it does not know, strict about what it needs.

Google's live service leaves out zeros, `done` and whole lists, sends counters as strings and the output
twice; embatch adds fields of its own. All of that reads as the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embatch import jsontext
from embatch.batch import Batch, BatchStats, BatchUsage, Model, Page
from embatch.errors import Code, Internal, Reason, RequestError
from embatch.states import State
from embatch.vectors import ContentEmbedding
from embatch.wire.gemini.states import state_of
from embatch.wire.google import fields
from embatch.wire.google.rows import ResponseRow

if TYPE_CHECKING:
    from collections.abc import Mapping


def parse_operation(body: bytes) -> Batch:
    """Return the batch of an operation: the answer to a submit or a status call."""
    return _operation(fields.whole_object(body))


def parse_batch(body: bytes) -> Batch:
    """Return the batch of a bare description: the answer to an update."""
    return _batch(fields.whole_object(body), {})


def parse_batches(body: bytes) -> Page[Batch]:
    """Return a page of batches; `{}` is an empty one."""
    said = fields.whole_object(body)
    return Page(
        tuple(_operation(one) for one in fields.items(said.get("operations"))),
        fields.text(said.get("nextPageToken")),
    )


def parse_models(body: bytes) -> Page[Model]:
    """Return a page of models."""
    said = fields.whole_object(body)
    models = tuple(
        Model(
            _named(one, "models/"),
            fields.text(one.get("displayName")) or "",
            fields.text(one.get("description")) or "",
            fields.count(one.get("inputTokenLimit")) or None,
        )
        for one in fields.items(said.get("models"))
    )
    return Page(models, fields.text(said.get("nextPageToken")))


def _operation(said: Any) -> Batch:
    if not isinstance(said, dict):
        raise Internal("the service's answer is not a batch")
    metadata = said.get("metadata")
    if not isinstance(metadata, dict):
        raise Internal("the service's answer is not a batch")
    return _batch({"name": said.get("name"), **metadata}, said)


def _batch(said: dict[str, Any], operation: Mapping[str, Any]) -> Batch:
    error = operation.get("error")
    outputs = _outputs({**operation, "metadata": said})
    state = _state(said.get("state"), done=operation.get("done") is True, failed=isinstance(error, dict))
    source = said.get("inputConfig")
    return Batch(
        name=_named(said, "batches/"),
        model=fields.text(said.get("model")) or "",
        state=state,
        display_name=fields.text(said.get("displayName")),
        priority=fields.count(said.get("priority")),
        create_time=fields.time(said.get("createTime")),
        update_time=fields.time(said.get("updateTime")),
        end_time=fields.time(said.get("endTime")),
        batch_stats=_stats(said.get("batchStats"), final=state.final),
        input_file=fields.text(source.get("fileName")) if isinstance(source, dict) else None,
        responses_file=next(filter(None, (fields.text(one.get("responsesFile")) for one in outputs)), None),
        error=fields.request_error(error).message if isinstance(error, dict) else None,
        notes=tuple(note for note in fields.items(said.get("notes")) if isinstance(note, str)),
        usage=_usage(said.get("usage")),
        alias_of=fields.text(said.get("aliasOf")),
        error_code=fields.request_error(error).code if isinstance(error, dict) else None,
    )


def _usage(said: object) -> BatchUsage:
    counts = said if isinstance(said, dict) else {}
    return BatchUsage(
        fields.count(counts.get("tokenCount")),
        fields.count(counts.get("uncommittedTokenCount")),
        fields.count(counts.get("cachedRequestCount")),
        _seconds(counts.get("cpuSeconds")) or 0.0,
        _seconds(counts.get("interactiveCpuSeconds")),
    )


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _state(word: object, *, done: bool, failed: bool) -> State:
    known = state_of(fields.text(word))
    if known is not None and (known.final or not done):
        return known
    if done:
        return State.FAILED if failed else State.COMPLETED
    if word is None:
        return State.PENDING
    raise Internal("the service names a state that this client does not know: is there a newer one?")


def _stats(said: object, *, final: bool) -> BatchStats:
    counts = said if isinstance(said, dict) else {}
    total, good = fields.count(counts.get("requestCount")), fields.count(counts.get("successfulRequestCount"))
    failed = fields.count(counts.get("failedRequestCount"))
    # A zero is left out; but of a running batch so is, at times, what still waits.
    rest = 0 if final else max(0, total - good - failed)
    pending = fields.count(counts["pendingRequestCount"]) if "pendingRequestCount" in counts else rest
    return BatchStats(total, good, failed, pending, fields.count(counts.get("uncommittedRequestCount")))


def parse_items(body: bytes) -> list[ResponseRow] | None:
    """Return the inlined results of an operation in the order they came; `None` where there are none."""
    items: list[Any] | None = None
    for output in _outputs(fields.whole_object(body)):
        for name in ("inlinedResponses", "inlinedEmbedContentResponses"):
            inner = output.get(name)
            listed = inner.get("inlinedResponses") if isinstance(inner, dict) else inner
            # An empty list in one place does not hide the results in the other.
            items = items or (listed if isinstance(listed, list) else None)
    return None if items is None else [_found(item) for item in items]


def _outputs(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the places of an operation that hold results or name their file: two, alike as a rule."""
    metadata = said.get("metadata")
    places = (metadata.get("output") if isinstance(metadata, dict) else None, said.get("response"))
    return [place for place in places if isinstance(place, dict)]


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
    fault = {"message": fault} if isinstance(fault, str) and response == {} else fault
    values = fields.values(response.get("embedding"))
    # A status with code 0 beside an embedding says that all is well.
    error = None
    if isinstance(fault, dict) and (values is None or fields.count(fault.get("code")) != 0):
        error = fields.request_error(fault)
    if values is None and error is None:
        error = RequestError(Code.INTERNAL, None, "the service gave neither an embedding nor an error for it")
    usage = response.get("usageMetadata")
    tokens = usage.get("promptTokenCount") if isinstance(usage, dict) else response.get("tokenCount")
    return ResponseRow(
        key if isinstance(key, str) else None,
        metadata if isinstance(metadata, dict) else None,
        None if error is not None else values,
        error,
        None if tokens is None else fields.count(tokens),
    )


def parse_embedding(body: bytes) -> ContentEmbedding:
    """Return the embedding of one text."""
    values = fields.values(fields.whole_object(body).get("embedding"))
    if values is None:
        raise Internal("the service answered without an embedding")
    return ContentEmbedding(values)


def parse_embeddings(body: bytes) -> list[ContentEmbedding]:
    """Return the embeddings of several texts, in their order."""
    found = [fields.values(one) for one in fields.items(fields.whole_object(body).get("embeddings"))]
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
    said = fields.whole_object(body)
    values = [fields.values(one) for one in fields.items(said.get("embeddings"))]
    engine = said.get("engine")
    return Reference(
        [None if one is None else ContentEmbedding(one) for one in values],
        fields.count(said.get("tokenCount")),
        _seconds(said.get("cpuSeconds")) or 0.0,
        engine if isinstance(engine, dict) else {},
        fields.count(said.get("dimensions")) or None,
    )


def parse_count(body: bytes) -> int:
    """Return the tokens that `countTokens` counted."""
    return fields.count(fields.whole_object(body).get("totalTokens"))


def parse_published(body: bytes) -> int:
    """Return how many vectors the end of a run added to the cache."""
    return fields.count(fields.whole_object(body).get("newVectorCount"))


def parse_file_name(body: bytes) -> str:
    """Return the name of the file that an upload made."""
    return _named(fields.whole_object(body).get("file"), "files/")


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
    said = fields.whole_object(body)
    state = fields.text(said.get("state"))
    size = said.get("sizeBytes")
    return StoredFile(
        None if size is None else fields.count(size), state in (None, "ACTIVE"), state == "FAILED"
    )


def _named(said: object, prefix: str) -> str:
    name = fields.text(said.get("name")) if isinstance(said, dict) else None
    if name is None or not name.startswith(prefix):
        raise Internal(f"the service's answer names no {prefix}…")
    return name
