"""Cloud Storage's JSON protocol, as far as staging needs it: objects listed, read, uploaded, deleted.

    POST uploadType=resumable → an address that is its own credential → PUT chunks at their ranges

After a broken connection a PUT without bytes tells how much arrived.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from embatch import jsontext
from embatch.errors import Internal
from embatch.wire.google import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESS: Final = "https://storage.googleapis.com"
CHUNK_BYTES: Final = 8 << 20
"""Bytes of one chunk of an upload."""
GRANULE: Final = 256 << 10
"""What is kept of a chunk is a multiple of so many bytes; what is sent twice is left out by the service."""
INCOMPLETE: Final = 308
"""Status of an upload that goes on."""
EXISTS: Final = 412
"""Status where an object is there already that was not to be."""
GONE: Final = (404, 410)
"""Statuses of an upload that is no longer known."""
ADDRESS_HEADER: Final = "location"

PREFIX: Final = "prefix"
PAGE_TOKEN: Final = "pageToken"  # noqa: S105  (no secret)
MEDIA: Final = {"alt": "media"}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a bucket."""

    name: str
    size: int
    md5: bytes | None
    """`None` where the service does not say."""
    generation: str | None
    """Which content of that name; `None` where the service does not say."""


def bucket_and_name(uri: str) -> tuple[str, str]:
    """Return bucket and name of `gs://bucket/name`. Raises `Internal` for anything else."""
    match = re.fullmatch(r"gs://([^/]+)/?(.*)", uri, re.DOTALL)
    if match is None:
        raise Internal("the service names a place that is none in Cloud Storage")
    return match[1], match[2]


def objects_path(bucket: str) -> str:
    """Return the path of all objects of a bucket."""
    return f"/storage/v1/b/{quote(bucket, safe='')}/o"


def object_path(bucket: str, name: str) -> str:
    """Return the path of one."""
    return f"{objects_path(bucket)}/{quote(name, safe='')}"


def upload_path(bucket: str) -> str:
    """Return the path at which an upload begins."""
    return f"/upload{objects_path(bucket)}"


def upload_query(name: str) -> dict[str, str]:
    """Return what begins the upload of an object that is not there yet."""
    return {"uploadType": "resumable", "name": name, "ifGenerationMatch": "0"}


def upload_headers(size: int, mime_type: str) -> dict[str, str]:
    """Return the headers that announce an object."""
    return {
        "Content-Type": "application/json; charset=UTF-8",
        "X-Upload-Content-Type": mime_type,
        "X-Upload-Content-Length": str(size),
    }


def upload_body(name: str, mime_type: str, md5: bytes) -> bytes:
    """Return what an object shall be; the service refuses what arrives with another digest."""
    digest = base64.b64encode(md5).decode()
    return jsontext.encode({"name": name, "contentType": mime_type, "md5Hash": digest})


def chunk_headers(offset: int, length: int, size: int) -> dict[str, str]:
    """Return the headers of so many bytes at an offset, of so many in all."""
    return {"Content-Range": f"bytes {offset}-{offset + length - 1}/{size}"}


def query_headers(size: int) -> dict[str, str]:
    """Return the headers that ask how much has arrived."""
    return {"Content-Range": f"bytes */{size}"}


def range_headers(offset: int, end: int) -> dict[str, str]:
    """Return the headers that ask for the bytes from an offset to before an end."""
    return {"Range": f"bytes={offset}-{end - 1}"}


def arrived(headers: Mapping[str, str]) -> int:
    """Return the bytes of an upload that need not be sent again; header names in lower case."""
    match = re.fullmatch(r"bytes=0-([0-9]{1,18})", headers.get("range", ""))
    kept = 0 if match is None else int(match[1]) + 1
    return kept - kept % GRANULE


def media_query(stored: StoredObject) -> dict[str, str]:
    """Return the query that reads an object as it was when it was listed."""
    return MEDIA if stored.generation is None else {**MEDIA, "generation": stored.generation}


def parse_object(body: bytes) -> StoredObject:
    """Return what is said of one object."""
    return _object(fields.whole_object(body))


def parse_objects(body: bytes) -> tuple[list[StoredObject], str | None]:
    """Return a page of a list, and the token of the next one."""
    said = fields.whole_object(body)
    return [_object(one) for one in fields.items(said.get("items"))], fields.text(said.get("nextPageToken"))


def _object(said: Any) -> StoredObject:
    said = fields.mapping(said)
    name = fields.text(said.get("name"))
    if name is None:
        raise Internal("Cloud Storage's answer names no object")
    try:
        digest = base64.b64decode(fields.text(said.get("md5Hash")) or "", validate=True) or None
    except ValueError:
        digest = None
    generation = said.get("generation")
    return StoredObject(
        name, fields.count(said.get("size")), digest, None if generation is None else str(generation)
    )
