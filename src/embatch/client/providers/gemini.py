"""Google's own Gemini API. It promises no order for large batches: each request is tagged, to be found by."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from embatch.client import arguments, readers
from embatch.client.calls import OUTPUT_BYTES, SLOW, Exchange, work
from embatch.client.fingerprint import PREFIX, in_name, unmarked
from embatch.client.providers.gemini_protocol import GeminiProtocol
from embatch.client.providers.late_results import awaited
from embatch.client.providers.prompts import prompted
from embatch.client.providers.provider import Capabilities, Target
from embatch.client.upload import send_file
from embatch.errors import EmbatchError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from embatch.states import State
from embatch.vectors import ContentEmbedding, unit
from embatch.wire.gemini import read_responses, routes
from embatch.wire.gemini.write_requests import LineWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.batch import Batch, Request
    from embatch.client.calls import Flow, Sender
    from embatch.client.providers.provider import RequestWriter
    from embatch.client.results import BatchResult
    from embatch.client.upload import FileUpload
    from embatch.wire.google.rows import ResponseRow

GEMINI_URL: Final = "https://generativelanguage.googleapis.com"
TIER_TOKENS: Final = {"1": 500_000, "2": 5_000_000, "3": 10_000_000}
"""Tokens that all batches of a project may have in flight, by its tier."""
GEMINI_MODEL: Final = "gemini-embedding-001"
_VERSION: Final = re.compile(r"[a-z0-9]{1,32}")
_CALLER: Final = 7
"""Frames from here to whoever makes a client, to whom a warning belongs."""


class TaggedLines(LineWriter):
    """Lines of JSONL whose keys carry the index."""

    def __init__(self, file: BinaryIO, model: str | None) -> None:
        super().__init__(file)
        self._model, self._written = model, 0

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests. Raises InvalidArgument for one with metadata, which these files cannot carry."""
        requests = prompted(self._model, requests)
        super().write([readers.tagged_line(one, self._written + at) for at, one in enumerate(requests)])
        self._written += len(requests)


@dataclass(frozen=True, slots=True)
class Gemini(GeminiProtocol):
    """Google's service; results come inlined in the batch, or in a file of responses."""

    def as_sent(self, model: str | None, request: Request) -> Request:
        """Write task and title into the text for a model that reads nothing else."""
        (asked,) = prompted(model, [request])
        return asked

    def writer(self, file: BinaryIO, model: str | None) -> RequestWriter:
        """Write lines of JSONL, as Google's batch files are."""
        return TaggedLines(file, model)

    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Write the requests as JSON, tagged."""
        requests = prompted(model, requests)
        tagged = [readers.tagged_inline(one, index) for index, one in enumerate(requests)]
        return GeminiProtocol.inline_body(self, model, display_name, priority, tagged)

    def embed(self, model: str, request: Request) -> Exchange[ContentEmbedding]:
        """Embed one text, at length 1."""
        exchange = GeminiProtocol.embed(self, model, self.as_sent(model, request))
        return replace(exchange, read=lambda body: _unit(exchange.read(body)))

    def embed_many(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        """Embed a few texts, each at length 1."""
        exchange = GeminiProtocol.embed_many(self, model, prompted(model, requests))
        return replace(exchange, read=lambda body: [*map(_unit, exchange.read(body))])

    def status(self, name: str) -> Exchange[Batch]:
        """Ask for the operation, with all its output once it is finished."""
        # A finished inline batch answers every poll with all its embeddings.
        call = replace(self.call(routes.GET_BATCH, name), most=OUTPUT_BYTES)
        return Exchange(call, self.read_batch)

    def shown(self, batch: Batch) -> Batch:
        """Take the mark off the display name."""
        display_name, mark = unmarked(batch.display_name or "")
        return batch if mark is None else replace(batch, display_name=display_name, fingerprint=mark)

    def upload(self, sender: Sender, upload: FileUpload) -> Flow[str]:
        """Upload under the name of the fingerprint, if there is one, or find the file that has it."""
        names = () if upload.fingerprint is None else (f"files/{PREFIX}{upload.fingerprint}",)
        try:
            return (yield from send_file(sender, replace(upload, names=names), self.version))
        except NotFound as error:
            if self.version == GEMINI.version:
                raise
            raise NotFound(
                f"{error.message}; {self.version} of the API may have no files: unset {VERSION}, or submit "
                f"{self.capabilities.inline_requests:,} texts at a time",
                field=VERSION,
            ) from None

    def clean_up(self, sender: Sender, batch: Batch) -> Flow[None]:
        """Delete its input and its results where its mark says that it is ours; others go after 48 hours."""
        if batch.fingerprint is None and in_name(batch.input_file) is None:
            return
        for file in filter(None, (batch.input_file, batch.responses_file)):
            with suppress(EmbatchError):  # of results the name can be longer than a file's may be
                yield from sender.send(self.call(routes.DELETE_FILE, file))

    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read inlined responses or responses file. Either can appear later than the state says."""
        rows = yield from awaited(sender, batch, partial(self._rows, sender, batch))
        return (yield from work(partial(readers.from_rows, batch, rows, dimensions)))

    def _rows(self, sender: Sender, batch: Batch, after: float) -> Flow[list[ResponseRow] | None]:
        """Read what there is of results now; `None`: nothing, or a file that is named but not there."""
        call = replace(self.status(batch.name).call, patience=SLOW, after=after)
        body = (yield from sender.send(call)).body
        file = read_responses.parse_operation(body).responses_file
        if file is None:
            return (yield from work(partial(read_responses.parse_items, body)))
        lines = readers.ResponseLines(batch.batch_stats.request_count)
        download = self.call(routes.DOWNLOAD, file, {routes.ALT: routes.MEDIA})
        try:
            yield from sender.send(replace(download, patience=SLOW, sink=lines))
        except (NotFound, PermissionDenied):
            if batch.state is not State.COMPLETED:
                raise
            return None
        return (yield from work(lines.rows))


def _unit(embedding: ContentEmbedding) -> ContentEmbedding:
    return ContentEmbedding(unit(embedding.values))


GEMINI: Final = Gemini(
    "gemini",
    Capabilities(
        # Every poll of a finished inline batch carries all results, twice: above this a file is lighter.
        inline_requests=1_000,
        inline_bytes=19 << 20,  # "under 20 MB", the envelope included
        interactive_requests=100,  # more is refused
        interactive_calls=4,
        priorities=True,
        batches_in_flight=90,  # of 100, so that there is room for others
        tokens_in_flight=TIER_TOKENS["1"],
        file_bytes=2 << 30,
    ),
    model=GEMINI_MODEL,
    version="v1beta",  # Google's v1 has batches but neither files nor uploads
)


TIER: Final = "EMBATCH_GEMINI_TIER"
KEYS: Final = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
BASE_URL: Final = "GOOGLE_GEMINI_BASE_URL"
VERSION: Final = "GOOGLE_GENAI_API_VERSION"


def target(key: str | None, environ: Mapping[str, str]) -> Target:
    """Return the target `gemini`, by the variables that google-genai takes.

    Args:
        key: the caller's; `None` takes GOOGLE_API_KEY, else GEMINI_API_KEY, with a warning where both are
            set and differ.
        environ: GOOGLE_GEMINI_BASE_URL is another address, GOOGLE_GENAI_API_VERSION another version of the
            API than v1beta (`beta` means v1beta), EMBATCH_GEMINI_TIER the tier of the project, by default 1.

    Raises:
        Unauthenticated: there is no key.
        InvalidArgument: a variable holds what cannot be.
    """
    found = key or _key(environ)
    if not found:
        raise Unauthenticated(
            "the gemini target needs a key: set GOOGLE_API_KEY or GEMINI_API_KEY, or pass api_key=",
            field="api_key",
        )
    url = arguments.web_address(environ.get(BASE_URL, "").strip() or GEMINI_URL)
    if url is None:
        raise InvalidArgument(f"{BASE_URL} must be an address such as {GEMINI_URL}", field=BASE_URL)
    version = environ.get(VERSION, "").strip() or GEMINI.version
    if not _VERSION.fullmatch(version):
        raise InvalidArgument(f"{VERSION} must be a version such as {GEMINI.version}", field=VERSION)
    named = GEMINI.version if version == "beta" else version
    tier = environ.get(TIER, "").strip() or "1"
    if tier not in TIER_TOKENS:
        raise InvalidArgument(f"{TIER} must be 1, 2 or 3", field=TIER)
    can = replace(GEMINI.capabilities, tokens_in_flight=TIER_TOKENS[tier])
    return Target(url, replace(GEMINI, version=named, capabilities=can), key=found)


def _key(environ: Mapping[str, str]) -> str | None:
    keys = [key for name in KEYS if (key := arguments.key(name, environ.get(name)))]
    if len(set(keys)) > 1:
        warnings.warn(
            f"{KEYS[0]} and {KEYS[1]} are set and differ: {KEYS[0]} is used; unset one, or pass api_key=",
            stacklevel=_CALLER,
        )
    return keys[0] if keys else None
