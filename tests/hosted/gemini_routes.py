"""Which route of the Developer API a request takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hosted.replies import Refused

if TYPE_CHECKING:
    from hosted.http_server import Ask

_QUERIES = {
    *(
        "key",
        "alt",
        "fields",
        "prettyPrint",
        "quotaUser",
        "access_token",
        "oauth_token",
        "callback",
        "$.xgafv",
    ),
    *("uploadType", "upload_protocol", "upload_id"),
}
_PAGES = {"pageSize", "pageToken"}
_MORE_QUERIES = {
    "list": {*_PAGES, "filter", "returnPartialSuccess"},
    "files": _PAGES,
    "models": _PAGES,
    "update": {"updateMask"},
}
_FILE_VERBS = {
    ("GET", False, ""): "files",
    ("GET", True, ""): "file",
    ("GET", True, "download"): "download",
    ("DELETE", True, ""): "file.delete",
}
_BATCH_VERBS = {
    ("GET", False, ""): "list",
    ("GET", True, ""): "status",
    ("DELETE", True, ""): "delete",
    ("POST", True, "cancel"): "cancel",
    ("PATCH", True, "updateEmbedContentBatch"): "update",
}
_MODEL_VERBS = {
    ("GET", False, ""): "models",
    ("GET", True, ""): "model",
    ("POST", True, "embedContent"): "embed",
    ("POST", True, "batchEmbedContents"): "embed_many",
    ("POST", True, "asyncBatchEmbedContent"): "create",
    ("POST", True, "countTokens"): "count_tokens",
}


def route_of(ask: Ask) -> str:
    """Name the route of a request; `unknown` where the service has none."""
    name, method = version_and_name(ask)[1], ask.method
    if ask.path.startswith(("/upload/", "/resumable/upload/")):
        if "upload_id" not in ask.query:
            return "upload.start"
        return "upload.query" if ask.headers.get("x-goog-upload-command") == "query" else "upload.chunk"
    collection, _, rest = name.partition("/")
    verb = rest.rpartition(":")[2] if ":" in rest else ""
    match collection:
        case "files":
            return _FILE_VERBS.get((method, bool(rest), verb), "unknown")
        case "batches":
            return _BATCH_VERBS.get((method, bool(rest), verb), "unknown")
        case "models":
            return _MODEL_VERBS.get((method, bool(rest), verb), "unknown")
        case _:
            return "unknown"


def check_query(route: str, ask: Ask) -> None:
    """Refuse a query parameter that the method does not have."""
    if unknown := ask.query.keys() - _QUERIES - _MORE_QUERIES.get(route, set()):
        name = min(unknown)
        raise Refused(
            400, f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query parameter.'
        )


def version_and_name(ask: Ask) -> tuple[str, str]:
    """Return the version and what follows it; both are empty where there is no version."""
    found = re.fullmatch(r"/(?:download/|upload/|resumable/upload/)?(v1|v1beta|v1alpha)/(.*)", ask.path)
    return (found[1], found[2]) if found else ("", "")
