"""What Vertex answers: jobs, lines of results in either family's form, and embeddings that come at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch import jsontext
from embatch.batch import Batch, BatchStats
from embatch.errors import Code, Internal, Reason, RequestError, printable
from embatch.vectors import ContentEmbedding
from embatch.wire.google import fields
from embatch.wire.google.rows import ResponseRow
from embatch.wire.vertex import routes
from embatch.wire.vertex.states import STATES
from embatch.wire.vertex.write_requests import INSTANCE, KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.states import State

_OF_HTTP: Final = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""Lines of results say HTTP's codes at times, where google.rpc's are meant."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Vertex describes it."""

    batch: Batch
    """Its display name is as it was sent, with whatever stands in it; its counts are the service's."""
    labels: Mapping[str, str]
    source: str | None
    """`gs://…` of its input; `None` where that is no single one."""
    output: str | None
    """`gs://…` of the folder of its results; `None` before there is one."""
    partial: bool
    """Whether requests may be missing from the results of a complete job."""


def parse_job(body: bytes) -> Job:
    """Return the job of an answer to a create or a status call."""
    return _job(fields.whole_object(body))


def parse_jobs(body: bytes) -> tuple[list[Job], str | None]:
    """Return a page of jobs, and the token of the next one."""
    said = fields.whole_object(body)
    jobs = [_job(one) for one in fields.items(said.get("batchPredictionJobs"))]
    return jobs, fields.text(said.get("nextPageToken"))


def _job(said: Any) -> Job:
    said = fields.mapping(said)
    name = fields.text(said.get("name")) or ""
    number = name.rpartition("/")[2]
    if "/batchPredictionJobs/" not in name or not number:
        raise Internal("the service's answer names no batch prediction job")
    meaning = STATES.get(fields.text(said.get("state")) or "JOB_STATE_PENDING")
    if meaning is None:
        raise Internal("the service names a state that this client does not know: is there a newer one?")
    error = fields.mapping(said.get("error"))
    failed = fields.request_error(error) if error else None
    uris = fields.items(fields.mapping(fields.mapping(said.get("inputConfig")).get("gcsSource")).get("uris"))
    source = fields.text(uris[0]) if len(uris) == 1 else None
    batch = Batch(
        name=f"batches/{number}",
        model=f"models/{routes.model_name(fields.text(said.get('model')) or '')}",
        state=meaning.state,
        display_name=fields.text(said.get("displayName")),
        priority=0,
        create_time=fields.time(said.get("createTime")),
        update_time=fields.time(said.get("updateTime")),
        end_time=fields.time(said.get("endTime")) if meaning.state.final else None,
        batch_stats=_stats(said.get("completionStats"), meaning.state),
        input_file=source,
        error=None if failed is None else failed.message,
        error_code=None if failed is None else failed.code,
        note=meaning.note,
    )
    labels = {k: v for k, v in fields.mapping(said.get("labels")).items() if isinstance(v, str)}
    output = fields.text(fields.mapping(said.get("outputInfo")).get("gcsOutputDirectory"))
    return Job(batch, labels, source, output, meaning.partial)


def _stats(said: object, state: State) -> BatchStats:
    """Return the counts; all 0 where the service gave none. Below 0, as it says for unknown, counts as 0."""
    counts = fields.mapping(said)
    good, failed, rest = (
        max(0, fields.count(counts.get(name)))
        for name in ("successfulCount", "failedCount", "incompleteCount")
    )
    if state.final:  # what was not reached has failed
        failed, rest = failed + rest, 0
    return BatchStats(good + failed + rest, good, failed, rest)


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One line of results."""

    row: ResponseRow
    """Its key is `None` in the older form."""
    instance: Mapping[str, Any] | None = None
    """What was asked, as the older form gives it back."""


def parse_line(line: bytes) -> ResultLine:
    """Return the result on one line, in either form; a damaged line is an error that nothing belongs to."""
    try:
        said = jsontext.loads(line)
    except ValueError:  # also an integer of more digits than Python reads
        said = None
    if not isinstance(said, dict):
        damaged = RequestError(Code.DATA_LOSS, Reason.BAD_LINE, "its result is damaged")
        return ResultLine(ResponseRow(None, None, None, damaged, None))
    instance = said.get(INSTANCE)
    response = fields.mapping(said.get("response"))
    values, tokens, truncated = fields.values(response.get("embedding")), response.get("tokenCount"), False
    if "usageMetadata" in response:
        tokens = fields.mapping(response["usageMetadata"]).get("promptTokenCount")
    if isinstance(said.get("predictions"), list) or isinstance(said.get("prediction"), dict):
        prediction = fields.mapping((fields.items(said.get("predictions")) or [said.get("prediction")])[0])
        values, tokens, truncated = _prediction(prediction)
    error = _fault(said, found=values is not None)
    if values is None and error is None:
        error = RequestError(Code.INTERNAL, None, "the service gave neither an embedding nor an error for it")
    row = ResponseRow(
        said[KEY] if isinstance(said.get(KEY), str) else None,
        None,
        None if error is not None else values,
        error,
        None if tokens is None else fields.count(tokens),
        truncated,
    )
    return ResultLine(row, instance if isinstance(instance, dict) else None)


def _prediction(said: Mapping[str, Any]) -> tuple[Any, object, bool]:
    """Return values, tokens, and whether the text was cut."""
    embeddings = fields.mapping(said.get("embeddings"))
    statistics = fields.mapping(embeddings.get("statistics"))
    tokens = statistics.get("token_count", statistics.get("tokenCount"))
    return fields.values(embeddings), tokens, statistics.get("truncated") is True


def _fault(said: Mapping[str, Any], *, found: bool) -> RequestError | None:
    """Return what a line says is wrong, in `error` or `status`: an object, JSON in a text, or words."""
    for name in ("error", "status"):
        fault = said.get(name)
        if isinstance(fault, str) and fault.strip():
            fault = _in_text(fault)
        if not isinstance(fault, dict) or not fault:
            continue
        inner = fault.get("error")
        fault = inner if isinstance(inner, dict) else fault
        number = fields.count(fault.get("code"))
        if found and number in (0, 200):  # all is well
            continue
        code = _OF_HTTP.get(number, Code.INTERNAL) if number >= 100 else Code.of_number(number)
        return fields.request_error({**fault, "code": code.number})
    return None


def _in_text(fault: str) -> dict[str, Any]:
    try:
        said = jsontext.loads(fault)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"code": Code.INTERNAL.number, "message": printable(fault)}


def parse_embedding(body: bytes) -> ContentEmbedding:
    """Return the embedding of one text."""
    return _embedding(fields.whole_object(body).get("embedding"))


def parse_embeddings(body: bytes) -> list[ContentEmbedding]:
    """Return the embeddings of several texts, in their order."""
    return [_embedding(one) for one in fields.items(fields.whole_object(body).get("embeddings"))]


def parse_predictions(body: bytes) -> list[ContentEmbedding]:
    """Return what the older path answers, in the order of its instances."""
    said = fields.items(fields.whole_object(body).get("predictions"))
    return [_embedding(fields.mapping(one).get("embeddings")) for one in said]


def _embedding(said: object) -> ContentEmbedding:
    values = fields.values(said)
    if values is None:
        raise Internal("the service answered without an embedding")
    return ContentEmbedding(values)


def parse_count(body: bytes) -> int:
    """Return the tokens that were counted."""
    return fields.count(fields.whole_object(body).get("totalTokens"))
