"""What clients send in Google's wire protocol, read strictly: bodies into drafts and request rows.

Both spellings of every field are taken (proto3 JSON: `displayName` and `display_name`), never both at once.
An unknown field, a wrong type or a number out of range is refused with the path of the field as it was
spelled. What is wrong with the content of one request is not refused here: it makes a faulty row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

from embatch import jsontext
from embatch.errors import Code, InvalidArgument, Reason, RequestError
from embatch.shard import RequestRow
from embatch.wire.gemini.read_json import Body, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_INT32: Final = range(-(1 << 31), 1 << 31)
_INT64: Final = range(-(1 << 63), 1 << 63)
_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")

_REQUEST: Final = ("model", "content", "taskType", "title", "outputDimensionality", "embedContentConfig")
_CONFIG: Final = (
    "taskType",
    "title",
    "outputDimensionality",
    "autoTruncate",
    "mimeType",
    "documentOcr",
    "audioTrackExtraction",
)


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


class MessageFields:
    """The fields of one JSON object, read one by one under either spelling."""

    def __init__(self, value: object, path: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            raise InvalidArgument("this must be a JSON object", field=path or "body")
        self.path = path
        self._values: dict[str, Any] = {}
        spelled = _spellings(known)
        for name, content in value.items():
            proper = spelled.get(name)
            if proper is None:
                raise InvalidArgument(
                    f'Invalid JSON payload received. Unknown name "{name[:64]}": Cannot find field.',
                    field=self.at(name[:64]),
                    reason="UNKNOWN_FIELD",
                )
            if proper in self._values:
                raise InvalidArgument("both spellings of this field are given: send one", field=self.at(name))
            self._values[proper] = content

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """Return a field's value; `null` reads as absent."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """Return a string field."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "this must be a string")
        return value

    def integer(self, name: str, bits: range) -> int | None:
        """Return an integer field: a number, a whole float, or a string of digits (proto3 JSON)."""
        value = self.get(name)
        if value is None:
            return None
        if (isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value)) or (
            isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53
        ):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, "this must be a whole number")
        if value not in bits:
            self.refuse(name, f"this must be from {bits.start} to {bits.stop - 1}", "OUT_OF_RANGE")
        return int(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return a true-or-false field."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "this must be true or false")
        return bool(value)

    def refuse(self, name: str, message: str, reason: str | None = None) -> NoReturn:
        """Refuse a field."""
        raise InvalidArgument(message, field=self.at(name), reason=reason)


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
    top = MessageFields(read.value, "", ("batch",))
    known = ("model", "displayName", "inputConfig", "priority", "webhookConfig", "name")
    batch = MessageFields(top.get("batch"), "batch", known)
    named = batch.text("model")
    if named is not None and not same_model(named):
        batch.refuse("model", f"the batch's model is another than the path's, models/{model}")
    if batch.get("webhookConfig") is not None:
        batch.refuse("webhookConfig", "webhooks are not offered: poll the batch")
    config = MessageFields(batch.get("inputConfig"), "batch.inputConfig", ("requests", "fileName"))
    inline, file_name = config.get("requests"), config.text("fileName")
    if (inline is None) == (file_name is None):
        raise InvalidArgument("give either requests or fileName", field="batch.inputConfig")
    rows = None if inline is None else _inline(inline, read, same_model, most)
    return Created(batch.text("displayName"), batch.integer("priority", _INT64) or 0, rows, file_name)


def _inline(
    value: object, read: Body, same_model: Callable[[str], bool], most: int | None
) -> list[RequestRow]:
    path = "batch.inputConfig.requests.requests"
    given = MessageFields(value, "batch.inputConfig.requests", ("requests",)).get("requests")
    entries = read.elements(given, path)
    if entries is None:
        raise InvalidArgument("this must be a list of at least one request", field=path, reason="EMPTY_BATCH")
    rows = []
    for at, entry in enumerate(islice(entries, None if most is None else most + 1)):
        fields = MessageFields(entry, f"{path}[{at}]", ("request", "metadata", "key"))
        rows.append(
            request_row(
                fields.get("request"),
                fields.at("request"),
                same_model,
                key=fields.text("key"),
                metadata=_metadata(fields),
            )
        )
    return rows


def _metadata(fields: MessageFields) -> str | None:
    value = fields.get("metadata")
    if value is None:
        return None
    if not isinstance(value, dict):
        fields.refuse("metadata", "metadata must be a JSON object")
    try:
        return jsontext.dumps(value).decode()
    except ValueError:
        fields.refuse("metadata", f"metadata nests too deeply: at most {jsontext.DEPTH} levels")


def request_row(
    value: object,
    path: str,
    same_model: Callable[[str], bool],
    *,
    key: str | None = None,
    metadata: str | None = None,
) -> RequestRow:
    """Read one EmbedContentRequest; faulty content makes a faulty row. Raises InvalidArgument."""
    fields = MessageFields(value, path, _REQUEST)
    named = fields.text("model")
    if named is not None and not same_model(named):
        fields.refuse("model", "the request's model is another than the path's: one model a call")
    config = MessageFields(fields.get("embedContentConfig") or {}, fields.at("embedContentConfig"), _CONFIG)
    options = {}
    for name in ("taskType", "title", "outputDimensionality"):
        given = [source for source in (fields, config) if source.get(name) is not None]
        if len(given) == 2:
            fields.refuse(name, "given here and in embedContentConfig: send one")
        options[name] = given[0] if given else fields
    task_type = options["taskType"].text("taskType")
    text, fault = _content(fields.get("content"), fields.at("content"))
    return RequestRow(
        text,
        key=key,
        metadata=metadata,
        task_type=None if task_type in (None, "", "TASK_TYPE_UNSPECIFIED") else task_type,
        title=options["title"].text("title"),
        dimensions=options["outputDimensionality"].integer("outputDimensionality", _INT32),
        fault=fault,
        auto_truncate=config.boolean("autoTruncate", default=True),
    )


def _content(value: object, path: str) -> tuple[str | None, RequestError | None]:
    """Return the text of a Content; several parts are joined, as Google does for gemini-embedding-001."""
    parts = MessageFields(value if value is not None else {}, path, ("parts", "role")).get("parts")
    if not isinstance(parts, list) or not parts:
        return None, _fault(Reason.EMPTY_TEXT, "content has no parts: send {parts: [{text}]}")
    texts = []
    for at, part in enumerate(parts):
        known = ("text", "inlineData", "fileData", "thought", "thoughtSignature", "videoMetadata")
        fields = MessageFields(part, f"{path}.parts[{at}]", known)
        if fields.get("inlineData") is not None or fields.get("fileData") is not None:
            return None, _fault(
                Reason.UNSUPPORTED_PART, "only text can be embedded here: leave data parts out"
            )
        text = fields.get("text")
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
    return request_row(Body(body, 0, longest=text_bytes).value, "", same_model)


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
    given = MessageFields(read.value, "", ("requests",)).get("requests")
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
        rows.append(request_row(entry, f"requests[{at}]", same_model))
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
    contents = read.elements(MessageFields(read.value, "", ("contents",)).get("contents"), "contents")
    if contents is None:
        raise InvalidArgument("this must be a list of at least one content", field="contents")
    rows = []
    for at, content in enumerate(contents):
        if at == most:
            raise InvalidArgument(f"at most {most} contents a call: send them in several", field="contents")
        text, fault = _content(content, f"contents[{at}]")
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
    fields = MessageFields(value, "", ("displayName", "priority", "name", "model"))
    paths = {_camel(path.strip()) for path in (mask or "").split(",") if path.strip()}
    for path in paths - {"displayName", "priority"}:
        raise InvalidArgument(
            f"only displayName and priority can be changed, not {path[:64]}", field="updateMask"
        )
    named, priority = fields.text("displayName"), fields.integer("priority", _INT64)
    # A path of the mask whose field is absent resets the field, as proto masks do.
    if paths:
        named = (named or "") if "displayName" in paths else None
        priority = (priority or 0) if "priority" in paths else None
    return Update(named, priority)


def row_of_line(line: Mapping[str, Any], same_model: Callable[[str], bool]) -> RequestRow:
    """Read one line of an input file in any of its layouts. Raises InvalidArgument naming the field."""
    fields = MessageFields(dict(line), "", ("key", "customId", "request", "metadata"))
    key, custom = fields.get("key"), fields.get("customId")
    if key is not None and custom is not None and key != custom:
        fields.refuse("customId", "given beside another key: send one")
    key = custom if key is None else key
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if key is not None and not isinstance(key, str):
        fields.refuse("key", "the key must be a string")
    return request_row(fields.get("request"), "request", same_model, key=key, metadata=_metadata(fields))


@cache
def _spellings(known: tuple[str, ...]) -> dict[str, str]:
    """Return the proper name of each spelling."""
    return {spelling: name for name in known for spelling in (name, _CAPITAL.sub("_", name).lower())}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
