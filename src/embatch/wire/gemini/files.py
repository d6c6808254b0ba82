"""How files are described on the wire: what a client says before the bytes, and what we say of a file."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch.batch import check_display_name
from embatch.errors import InvalidArgument
from embatch.wire.gemini.read_json import load
from embatch.wire.gemini.write_responses import timestamp

if TYPE_CHECKING:
    from fastapi import Request

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
_NAME: Final = re.compile(r"files/([a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?)")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")


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
    digits = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
        raise InvalidArgument("this must be a number of bytes", field="file.sizeBytes")
    return int(digits)


def _file_id(name: object) -> str | None:
    if name is None or name == "":
        return None
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None or found.group(1).startswith("batch-"):
        raise InvalidArgument(
            "a file's name is files/ and up to 40 lower-case letters, digits and dashes, neither beginning "
            "nor ending with a dash; names that begin with batch- are those of results",
            field="file.name",
        )
    return found.group(1)


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


def base_address(request: Request) -> str:
    """Return the address by which the client reached us: through a proxy, the one the proxy was called by.

    Anyone can send these headers, but only to get a wrong address back for themselves.
    """

    def forwarded(name: str) -> str:
        return request.headers.get(f"x-forwarded-{name}", "").partition(",")[0].strip()

    scheme = forwarded("proto").lower()
    host, prefix = forwarded("host"), forwarded("prefix")
    return "".join(
        (
            scheme if scheme in ("http", "https") else request.url.scheme,
            "://",
            host if _AUTHORITY.fullmatch(host) else request.headers.get("host", ""),
            prefix.rstrip("/") if _PREFIX.fullmatch(prefix) else "",
        )
    )


def resource(record: FileRecord, request: Request) -> dict[str, Any]:
    """Return a file as the wire has it; its addresses are those by which the client reaches us."""
    version = (
        request.url.path.lstrip("/").removeprefix("resumable/").removeprefix("upload/").partition("/")[0]
    )
    address = f"{base_address(request)}/{version}/files/{record.id}"
    said: dict[str, Any] = {
        "name": f"files/{record.id}",
        "mimeType": record.mime_type,
        "createTime": timestamp(record.create_time),
        "updateTime": timestamp(record.update_time),
        "uri": address,
        "state": "ACTIVE",
        "source": record.source,
    }
    if record.source == "GENERATED":
        # Results are put into words while they are read: size and digest are not known before.
        said["downloadUri"] = f"{address}:download?alt=media"
    else:
        said["sizeBytes"] = str(record.size)
        # Google puts the hex digits, not the bytes, into base64.
        said["sha256Hash"] = base64.b64encode(record.sha256.encode()).decode()
    if record.display_name is not None:
        said["displayName"] = record.display_name
    if record.expire_time is not None:
        said["expirationTime"] = timestamp(record.expire_time)
    return said
