"""What can be asked for in Google's protocol, and by which names: methods, paths, versions, headers, queries.

    POST  /v1  /models/org/name  :embedContent      method, version, resource, verb

A face serves each route under every version; a client asks for one by the name of its resource. What is ours
stands here too, where it is asked for beside Google's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSIONS: Final = ("v1", "v1beta", "v1alpha")
"""The same handlers serve all of them."""


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that can be asked for."""

    methods: tuple[str, ...]
    """The first is the one to ask by."""
    resource: str
    """Its pattern below the version: `{id}` stands for one word, `{model:path}` for several."""
    verb: str = ""
    """What follows the name of the resource."""
    before: tuple[str, ...] = ("",)
    """What may stand before the version; the first is what a client puts there."""

    @property
    def method(self) -> str:
        """The method to ask by."""
        return self.methods[0]

    def patterns(self) -> tuple[str, ...]:
        """Return the patterns of all its paths."""
        return tuple(
            f"{before}/{version}/{self.resource}{self.verb}" for version in VERSIONS for before in self.before
        )

    def path(self, version: str, name: str | None = None) -> str:
        """Return the path to ask at.

        Args:
            version: of the protocol.
            name: the resource's, as it stands in a path: `models/{model}`, `batches/{id}`, `files/{id}`;
                `None` where there is only one.
        """
        return f"{self.before[0]}/{version}/{name or self.resource}{self.verb}"


_GET, _POST, _PATCH, _DELETE = ("GET",), ("POST",), ("PATCH",), ("DELETE",)
_MODEL: Final = "models/{model:path}"
_BATCH: Final = "batches/{id}"
_FILE: Final = "files/{id}"

EMBED: Final = Route(_POST, _MODEL, ":embedContent")
EMBED_MANY: Final = Route(_POST, _MODEL, ":batchEmbedContents")
COUNT_TOKENS: Final = Route(_POST, _MODEL, ":countTokens")
CREATE_BATCH: Final = Route(_POST, _MODEL, ":asyncBatchEmbedContent")
LIST_MODELS: Final = Route(_GET, "models")
GET_MODEL: Final = Route(_GET, _MODEL)
LIST_BATCHES: Final = Route(_GET, "batches")
CANCEL_BATCH: Final = Route(_POST, _BATCH, ":cancel")
UPDATE_BATCH: Final = Route(_PATCH, _BATCH, ":updateEmbedContentBatch")
GET_BATCH: Final = Route(_GET, _BATCH)
DELETE_BATCH: Final = Route(_DELETE, _BATCH)
UPLOAD: Final = Route(("POST", "PUT"), "files", before=("/upload", "/resumable/upload"))
LIST_FILES: Final = Route(_GET, "files")
DOWNLOAD: Final = Route(_GET, _FILE, ":download", before=("", "/download"))
GET_FILE: Final = Route(_GET, _FILE)
DELETE_FILE: Final = Route(_DELETE, _FILE)

READ_EMBEDDINGS: Final = Route(_GET, _BATCH, "/embeddings")
"""Ours: the results of a batch as an Arrow stream."""
EMBED_REFERENCE: Final = Route(_POST, _MODEL, ":embedReference")
"""Ours: a few texts by the reference path."""
PUBLISH_RUN: Final = Route(_POST, "runs/{run}", ":publish")
"""Ours: the end of a run."""

TAKE_TEXTS: Final = (EMBED, EMBED_MANY, COUNT_TOKENS, CREATE_BATCH, EMBED_REFERENCE)
"""Routes whose bodies are texts; those of all others say a few words, but for files."""

API_KEY: Final = "x-goog-api-key"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""Ours."""
RUN: Final = "Embatch-Run"
"""Ours: the run that a batch belongs to."""

UPLOAD_PROTOCOL: Final = "X-Goog-Upload-Protocol"
UPLOAD_COMMAND: Final = "X-Goog-Upload-Command"
UPLOAD_OFFSET: Final = "X-Goog-Upload-Offset"
UPLOAD_LENGTH: Final = "X-Goog-Upload-Header-Content-Length"
UPLOAD_TYPE: Final = "X-Goog-Upload-Header-Content-Type"
UPLOAD_FILE_NAME: Final = "X-Goog-Upload-File-Name"
UPLOAD_ADDRESS: Final = "X-Goog-Upload-URL"
UPLOAD_STATUS: Final = "X-Goog-Upload-Status"
UPLOAD_RECEIVED: Final = "X-Goog-Upload-Size-Received"
UPLOAD_GRANULARITY: Final = "X-Goog-Upload-Chunk-Granularity"

PAGE_SIZE: Final = "pageSize"
PAGE_TOKEN: Final = "pageToken"  # noqa: S105  (no secret)
FILTER: Final = "filter"
UPDATE_MASK: Final = "updateMask"
ALT: Final = "alt"
MEDIA: Final = "media"
"""What `ALT` is for the bytes of a file."""
UPLOAD_ID: Final = "upload_id"
UPLOAD_PROTOCOLS: Final = ("upload_protocol", "uploadType")
"""Where the query may say what the header does."""
VIEW: Final = "view"
"""Ours."""
BASIC: Final = "BASIC"
"""What `VIEW` is for a batch without its output."""
DIMENSIONS: Final = "dimensions"
"""Ours, of `READ_EMBEDDINGS`."""
NUMBERS: Final = "numbers"
"""Ours, of `READ_EMBEDDINGS`."""
