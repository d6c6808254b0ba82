"""Google's own Gemini API. It promises no order for large batches: each request is tagged, to be found by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from embatch.client import arguments, readers
from embatch.client.calls import OUTPUT_BYTES, SLOW, Exchange, work
from embatch.client.fingerprint import PREFIX, unmarked
from embatch.client.providers.gemini_protocol import GeminiProtocol
from embatch.client.providers.provider import Capabilities, Target
from embatch.client.upload import send_file
from embatch.errors import Unauthenticated, Unavailable
from embatch.wire.gemini import read_responses, routes
from embatch.wire.gemini.write_requests import LineWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.batch import Batch, Request
    from embatch.client.calls import Call, Flow, Sender
    from embatch.client.providers.provider import RequestWriter
    from embatch.client.results import BatchResult
    from embatch.client.upload import FileUpload

GEMINI_URL: Final = "https://generativelanguage.googleapis.com"
GEMINI_MODEL: Final = "gemini-embedding-001"


class TaggedLines(LineWriter):
    """Lines of JSONL whose keys carry the index."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._written = 0

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests. Raises InvalidArgument for one with metadata, which these files cannot carry."""
        super().write([readers.tagged_line(one, self._written + at) for at, one in enumerate(requests)])
        self._written += len(requests)


@dataclass(frozen=True, slots=True)
class Gemini(GeminiProtocol):
    """Google's service; results come inlined in the batch, or in a file of responses."""

    def writer(self, file: BinaryIO, model: str | None) -> RequestWriter:  # noqa: ARG002
        """Write lines of JSONL, as Google's batch files are."""
        return TaggedLines(file)

    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Write the requests as JSON, tagged."""
        tagged = [readers.tagged_inline(one, index) for index, one in enumerate(requests)]
        return GeminiProtocol.inline_body(self, model, display_name, priority, tagged)

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
        return (yield from send_file(sender, replace(upload, names=names), self.version))

    def delete_input(self, file: str) -> Call | None:
        """Delete an uploaded file, which would go by itself after two days."""
        return self.call(routes.DELETE_FILE, file)

    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read inlined responses or responses file. Either can appear later than the state says."""
        failures = 0
        call = replace(self.status(batch.name).call, patience=SLOW)
        while True:
            body = (yield from sender.send(call)).body
            file = read_responses.parse_operation(body).responses_file
            if file is not None:
                lines = readers.ResponseLines(batch.batch_stats.request_count)
                download = self.call(routes.DOWNLOAD, file, {routes.ALT: routes.MEDIA})
                yield from sender.send(replace(download, patience=SLOW, sink=lines))
                return (yield from work(partial(readers.from_lines, batch, lines, dimensions)))
            result = yield from work(partial(readers.from_operation, batch, body, dimensions))
            if result is not None:
                return result
            failures += 1
            delay = sender.poll.delay(failures, sender.outside.chance())
            if delay is None:
                raise Unavailable(
                    f"{batch.name} is {batch.state}, but its results are not there yet: come back later"
                )
            call = replace(call, after=delay)


GEMINI: Final = Gemini(
    "gemini",
    Capabilities(
        # Every poll of a finished inline batch carries all results, twice: above this a file is lighter.
        inline_requests=1_000,
        inline_bytes=19 << 20,  # "under 20 MB", the envelope included
        interactive_requests=100,  # more is refused
        batches_in_flight=90,  # of 100, which are not the run's alone
        tokens_in_flight=500_000,  # what the lowest tier may have enqueued
        file_bytes=2 << 30,
        priorities=True,
    ),
    model=GEMINI_MODEL,
    version="v1beta",  # Google's v1 has batches but neither files nor uploads
)


def target(key: str | None, environ: Mapping[str, str]) -> Target:
    """Return the target `gemini`; without a key GOOGLE_API_KEY is taken, else GEMINI_API_KEY.

    Raises:
        Unauthenticated: there is none.
    """
    found = key or arguments.key("api_key", environ.get("GOOGLE_API_KEY") or environ.get("GEMINI_API_KEY"))
    if not found:
        raise Unauthenticated(
            "the gemini target needs a key: set GOOGLE_API_KEY or GEMINI_API_KEY, or pass api_key=",
            field="api_key",
        )
    return Target(GEMINI_URL, GEMINI, key=found)
