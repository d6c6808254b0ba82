"""What clients send in Google's wire protocol, read strictly: bodies into drafts and request rows.

Both spellings of every field are taken (proto3 JSON: `displayName` and `display_name`), never both at once.
An unknown field, a wrong type or a number out of range is refused with the path of the field as it was
spelled. What is wrong with the content of one request is not refused here: it makes a faulty row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pydantic.alias_generators import to_camel

from embatch import jsontext
from embatch.errors import Code, InvalidArgument, Reason, RequestError
from embatch.shard import RequestRow
from embatch.wire.gemini import messages
from embatch.wire.gemini.read_json import Body, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNSAID: Final = (None, "", "TASK_TYPE_UNSPECIFIED")

_submit, _update = messages.reader(messages.Submit), messages.reader(messages.BatchUpdate)
_requests, _contents = messages.reader(messages.Requests), messages.reader(messages.Contents)
_inlined, _line = messages.reader(messages.InlinedRequest), messages.reader(messages.Line)
_request, _content = messages.reader(messages.Request), messages.reader(messages.Content)


@dataclass(frozen=True, slots=True)
class Created:
    """A batch as `asyncBatchEmbedContent` asks for it."""

    display_name: str | None
    priority: int
    rows: list[RequestRow] | None
    """`None` for a batch from a file."""
    file_name: str | None


def _nothing() -> None:
    pass


def create(
    body: bytes | bytearray,
    model: str,
    same_model: Callable[[str], bool],
    *,
    most: int | None = None,
    text_bytes: int | None = None,
    pulse: Callable[[], None] = _nothing,
) -> Created:
    """Read the body of `asyncBatchEmbedContent`.

    Args:
        body: as it came.
        model: the model of the path.
        same_model: whether a request's own `model` is the batch's.
        most: of more requests, one more is returned; `None` returns all.
        text_bytes: what the longest good text has; of one that is longer in any spelling, only this much and
            a little more is said.
        pulse: called every now and then; what it raises ends the reading.

    Raises:
        InvalidArgument: naming the field.
    """
    read = Body(body, 5, pulse, text_bytes)
    batch = _submit(read.value, "")["batch"]
    named = batch.get("model")
    if named is not None and not same_model(named):
        raise InvalidArgument(
            f"the batch's model is another than the path's, models/{model}", field="batch.model"
        )
    if batch.get("webhook_config") is not None:
        raise InvalidArgument("webhooks are not offered: poll the batch", field="batch.webhookConfig")
    inline, file_name = batch["input_config"].get("requests"), batch["input_config"].get("file_name")
    if (inline is None) == (file_name is None):
        raise InvalidArgument("give either requests or fileName", field="batch.inputConfig")
    rows = None if inline is None else _inline(inline, read, same_model, most)
    return Created(batch.get("display_name"), batch.get("priority") or 0, rows, file_name)


def _inline(
    given: messages.Requests, read: Body, same_model: Callable[[str], bool], most: int | None
) -> list[RequestRow]:
    path = "batch.inputConfig.requests.requests"
    entries = read.elements(given.get("requests"), path)
    if entries is None:
        raise InvalidArgument("this must be a list of at least one request", field=path, reason="EMPTY_BATCH")
    rows = []
    for at, entry in enumerate(islice(entries, None if most is None else most + 1)):
        place = f"{path}[{at}]"
        inlined = _inlined(entry, place)
        metadata = _metadata(inlined.get("metadata"), place)
        rows.append(_row(inlined["request"], f"{place}.request", same_model, inlined.get("key"), metadata))
    return rows


def _metadata(value: dict[str, Any] | None, path: str) -> str | None:
    try:
        return None if value is None else jsontext.dumps(value).decode()
    except ValueError:
        raise InvalidArgument(
            f"metadata nests too deeply: at most {jsontext.DEPTH} levels", field=_below(path, "metadata")
        ) from None


def _row(
    request: messages.Request,
    path: str,
    same_model: Callable[[str], bool],
    key: str | None = None,
    metadata: str | None = None,
) -> RequestRow:
    """Return a request as a row; faulty content makes a faulty one. Raises InvalidArgument."""
    named = request.get("model")
    if named is not None and not same_model(named):
        raise InvalidArgument(
            "the request's model is another than the path's: one model a call", field=_below(path, "model")
        )
    config = request.get("embed_content_config") or {}
    for name, given in config.items():
        if given is not None and request.get(name) is not None:
            raise InvalidArgument(
                "given here and in embedContentConfig: send one", field=_below(path, to_camel(name))
            )
    task_type = request.get("task_type") or config.get("task_type")
    title, size = request.get("title"), request.get("output_dimensionality")
    text, fault = _text(request.get("content") or {})
    return RequestRow(
        text,
        key=key,
        metadata=metadata,
        task_type=None if task_type in _UNSAID else task_type,
        title=config.get("title") if title is None else title,
        dimensions=config.get("output_dimensionality") if size is None else size,
        fault=fault,
        auto_truncate=config.get("auto_truncate") is not False,
    )


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _text(content: messages.Content) -> tuple[str | None, RequestError | None]:
    """Return the text of a Content; several parts are joined, as Google does for gemini-embedding-001."""
    parts = content.get("parts")
    if not parts:
        return None, _fault(Reason.EMPTY_TEXT, "content has no parts: send {parts: [{text}]}")
    texts = []
    for part in parts:
        if part.get("inline_data") is not None or part.get("file_data") is not None:
            return None, _fault(
                Reason.UNSUPPORTED_PART, "only text can be embedded here: leave data parts out"
            )
        text = part.get("text")
        if not isinstance(text, str):
            return None, _fault(Reason.NOT_TEXT, "the text of a part must be a string")
        texts.append(text)
    return "".join(texts), None


def _fault(reason: Reason, message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, reason, message)


def embed(
    body: bytes | bytearray, same_model: Callable[[str], bool], text_bytes: int | None = None
) -> RequestRow:
    """Read the body of `embedContent`; `text_bytes` as of `create`.

    Raises:
        InvalidArgument: naming the field.
    """
    return _row(_request(Body(body, 0, longest=text_bytes).value, ""), "", same_model)


def embed_many(
    body: bytes | bytearray,
    same_model: Callable[[str], bool],
    most: int,
    *,
    least: int = 1,
    text_bytes: int | None = None,
    pulse: Callable[[], None] = _nothing,
) -> list[RequestRow]:
    """Read the body of `batchEmbedContents`; `text_bytes` and `pulse` as of `create`.

    Raises:
        InvalidArgument: naming the field.
    """
    read = Body(body, 2, pulse, text_bytes)
    given = _requests(read.value, "").get("requests")
    entries = read.elements(given, "requests")
    if entries is None and (least or given != []):
        raise InvalidArgument(
            "this must be a list of at least one request", field="requests", reason="EMPTY_BATCH"
        )
    rows = []
    for at, entry in enumerate(entries or ()):
        if at == most:
            raise InvalidArgument(
                f"* BatchEmbedContentsRequest.requests: at most {most} requests can be in one batch: "
                "submit more with asyncBatchEmbedContent",
                field="requests",
                reason="TOO_MANY_REQUESTS_IN_BATCH",
            )
        place = f"requests[{at}]"
        rows.append(_row(_request(entry, place), place, same_model))
    return rows


def count_tokens(
    body: bytes | bytearray, most: int, *, text_bytes: int | None = None, pulse: Callable[[], None] = _nothing
) -> list[RequestRow]:
    """Read the body of `countTokens`; roles and how contents are grouped mean nothing here.

    `text_bytes` and `pulse` as of `create`.

    Raises:
        InvalidArgument: naming the field.
    """
    read = Body(body, 2, pulse, text_bytes)
    contents = read.elements(_contents(read.value, "").get("contents"), "contents")
    if contents is None:
        raise InvalidArgument("this must be a list of at least one content", field="contents")
    rows = []
    for at, content in enumerate(contents):
        if at == most:
            raise InvalidArgument(f"at most {most} contents a call: send them in several", field="contents")
        text, fault = _text(_content({} if content is None else content, f"contents[{at}]"))
        rows.append(RequestRow(text, fault=fault))
    return rows


@dataclass(frozen=True, slots=True)
class Update:
    """What `updateEmbedContentBatch` changes; `None` leaves it."""

    display_name: str | None
    priority: int | None


def update(body: bytes | bytearray, mask: str | None) -> Update:
    """Read the body and mask of `updateEmbedContentBatch`; without a mask, what the body holds is changed.

    Raises:
        InvalidArgument: the mask names what cannot be changed, or a field is wrong.
    """
    value = load(body)
    if isinstance(value, dict) and set(value) == {"batch"}:
        value = value["batch"]
    said = _update(value, "")
    paths = {to_camel(path.strip()) for path in (mask or "").split(",") if path.strip()}
    for path in paths - {"displayName", "priority"}:
        raise InvalidArgument(
            f"only displayName and priority can be changed, not {path[:64]}", field="updateMask"
        )
    named, priority = said.get("display_name"), said.get("priority")
    # A path of the mask whose field is absent resets the field, as proto masks do.
    if paths:
        named = (named or "") if "displayName" in paths else None
        priority = (priority or 0) if "priority" in paths else None
    return Update(named, priority)


def row_of_line(line: Mapping[str, Any], same_model: Callable[[str], bool]) -> RequestRow:
    """Read one line of an input file in any of its layouts. Raises InvalidArgument naming the field."""
    said = _line(line, "")
    key, custom = said.get("key"), said.get("custom_id")
    if key is not None and custom is not None and key != custom:
        raise InvalidArgument("given beside another key: send one", field="customId")
    metadata = _metadata(said.get("metadata"), "")
    return _row(said["request"], "request", same_model, custom if key is None else key, metadata)
