"""How files are described on the wire: what a client says before the bytes, and what we say of a file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch.batch import check_display_name, check_file_id
from embatch.errors import InvalidArgument
from embatch.wire.gemini import routes
from embatch.wire.gemini.read_json import load
from embatch.wire.gemini.read_queries import byte_count
from embatch.wire.gemini.write_responses import timestamp

if TYPE_CHECKING:
    from embatch.batch import FileRecord

MIME_TYPES: Final = frozenset(
    {
        "jsonl",
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-ndjson",
        "application/json",
        "text/jsonl",
        "text/plain",
        "application/octet-stream",
        "application/vnd.apache.arrow.stream",
    }
)
"""What an input file may call itself: JSONL under the names it goes by, and our Arrow stream."""
_FIELDS: Final = frozenset(
    {"name", "displayName", "display_name", "mimeType", "mime_type", "sizeBytes", "size_bytes"}
)


@dataclass(frozen=True, slots=True)
class Announced:
    """What a client says about a file before its bytes."""

    file_id: str | None
    display_name: str | None
    mime_type: str
    size: int | None
    """`None` until the last chunk tells."""


def announced(body: bytes, *, mime_type: str | None = None, size: int | None = None) -> Announced:
    """Read a file's description; what the headers say of its type and size comes first.

    Raises:
        InvalidArgument: it is not {"file": {...}}, or a field in it cannot be.
    """
    said = load(body).get("file") if body else {}
    if not isinstance(said, dict):
        raise InvalidArgument('the description of an upload is {"file": {…}}', field="file")
    for field in said.keys() - _FIELDS:
        raise InvalidArgument("unknown field in the description of a file", field=f"file.{field[:64]}")
    if size is None:
        size = _size(said.get("sizeBytes", said.get("size_bytes")))
    return Announced(
        _file_id(said.get("name")),
        display_name(said.get("displayName", said.get("display_name"))),
        _mime_type(mime_type or said.get("mimeType", said.get("mime_type"))),
        size,
    )


def _size(value: object) -> int | None:
    if value is None:
        return None
    # int64 travels as a string in JSON; Google's client sends a number all the same.
    said = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    return byte_count(said, "file.sizeBytes")


def _file_id(name: object) -> str | None:
    if name is None or name == "":
        return None
    prefix, _, id_ = name.partition("/") if isinstance(name, str) else ("", "", "")
    check_file_id(id_ if prefix == "files" else "", "file.name")
    return id_


def display_name(value: object) -> str | None:
    """Return a display name; `None` for none or an empty one. Raises InvalidArgument."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidArgument("a display name is a text", field="file.displayName")
    check_display_name(value, "file.displayName")
    return value


def _mime_type(value: object) -> str:
    kind = value.partition(";")[0].strip().lower() if isinstance(value, str) else ""
    if kind not in MIME_TYPES:
        raise InvalidArgument(
            "Unsupported MIME type: send application/jsonl or application/vnd.apache.arrow.stream",
            field="file.mimeType",
        )
    return kind


def resource(record: FileRecord, address: str) -> dict[str, Any]:
    """Return a file as the wire has it; `address` is the service's for whoever reads it, with the version."""
    place = f"{address}/files/{record.id}"
    said: dict[str, Any] = {
        "name": f"files/{record.id}",
        "mimeType": record.mime_type,
        "createTime": timestamp(record.create_time),
        "updateTime": timestamp(record.update_time),
        "uri": place,
        "state": "ACTIVE",
        "source": record.source,
    }
    if record.source == "GENERATED":
        # Results are put into words while they are read: size and digest are not known before.
        said["downloadUri"] = f"{place}{routes.DOWNLOAD.verb}?{routes.ALT}={routes.MEDIA}"
    else:
        said["sizeBytes"] = str(record.size)
        # Google puts the hex digits, not the bytes, into base64.
        said["sha256Hash"] = base64.b64encode(record.sha256.encode()).decode()
    if record.display_name is not None:
        said["displayName"] = record.display_name
    if record.expire_time is not None:
        said["expirationTime"] = timestamp(record.expire_time)
    return said
