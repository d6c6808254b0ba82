"""An embatch service: Gemini's protocol, and Arrow both ways, idempotency keys, runs, a reference path."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import quote

from embatch.client import readers
from embatch.client.calls import SLOW, Call, Exchange, work
from embatch.client.providers.gemini_protocol import JSON, GeminiProtocol, model_path
from embatch.client.providers.provider import Capabilities
from embatch.errors import EmbatchError, NotFound, printable
from embatch.settings import Settings
from embatch.wire import private
from embatch.wire.arrow.write_requests import StreamWriter
from embatch.wire.gemini import read_responses, routes, write_requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.batch import Batch, Request
    from embatch.client.calls import Flow, Sender
    from embatch.client.providers.provider import RequestWriter, Target
    from embatch.client.results import BatchResult

_NAMED: Final = 200
"""Most characters of a model's name in an error."""


@dataclass(frozen=True, slots=True)
class Embatch(GeminiProtocol):
    """The local service, or one by its address or socket."""

    def writer(self, file: BinaryIO, model: str | None) -> RequestWriter:  # noqa: ARG002  (what others need)
        """Write an Arrow stream, which the service reads ten times as fast as JSONL."""
        return StreamWriter(file)

    def create_headers(self, idempotency_key: str | None, run: str | None) -> Mapping[str, str]:
        """Name the submit and its run."""
        headers = {routes.IDEMPOTENCY_KEY: idempotency_key, routes.RUN: run}
        return {name: value for name, value in headers.items() if value is not None}

    def status(self, name: str) -> Exchange[Batch]:
        """Ask for the operation without its output."""
        # Without the view a finished inline batch answers every poll with all its embeddings.
        return Exchange(
            self.call(routes.GET_BATCH, name, {routes.VIEW: routes.BASIC}), read_responses.parse_operation
        )

    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read the Arrow stream, whose rows come in order."""
        query = {} if dimensions is None else {routes.DIMENSIONS: str(dimensions)}
        buffer = readers.Buffer(batch.batch_stats.request_count)
        call = self.call(routes.READ_EMBEDDINGS, batch.name, query)
        yield from sender.send(replace(call, patience=SLOW, sink=buffer))
        return (yield from work(lambda: readers.from_arrow(batch, buffer.content)))

    def embed_reference(self, model: str, requests: Sequence[Request]) -> Exchange[read_responses.Reference]:
        """Embed a few texts by the reference path."""
        body = write_requests.embed_many_body(model_path(model), requests)
        return self.at_once(routes.EMBED_REFERENCE, model, body, read_responses.parse_reference)

    def publish(self, run: str) -> Exchange[int]:
        """Add what a run computed to the cache."""
        call = self.call(routes.PUBLISH_RUN, f"runs/{quote(run, safe='')}")
        return Exchange(replace(call, patience=SLOW), read_responses.parse_published)

    def serve(self, model: private.WantedModel) -> Exchange[private.ModelAnswer]:
        """Ask on the private service's own socket."""
        call = Call("POST", private.MODELS, headers=JSON, body=private.write_wanted(model))
        return Exchange(call, private.read_answer)

    def not_served(self, sender: Sender, target: Target, model: str, error: NotFound) -> Flow[NotFound]:
        """Return what to type to have the model served."""
        name = printable(model, _NAMED)
        try:
            served = (yield from sender.ask(self.models(None, None))).items
        except EmbatchError:
            return error
        names = ", ".join(one.name.removeprefix("models/") for one in served)
        typed = shlex.quote(name)
        if target.data is not None:
            return NotFound(
                f"{name} is not served here: somebody runs `embatch serve` on the data folder "
                f"{printable(str(target.data), _NAMED)}. It has {names}, and what it was started with is all "
                f"that it serves: start it with `--model {typed}` too, or name another data folder (--data)",
                field="model",
                reason=error.reason,
            )
        first = served[0].name.removeprefix("models/") if served else "MODEL"
        return NotFound(
            f"{name} is not served here: {target.socket or target.url} has {names}. Whoever runs it "
            f"adds a model by `embatch serve --model {typed}`, and another name by `--alias {typed}={first}`",
            field="model",
            reason=error.reason,
        )


EMBATCH: Final = Embatch(
    "embatch",
    Capabilities(
        inline_bytes=Settings().inline_bytes,
        inline_requests=1_000,  # a file's Arrow costs a quarter of what JSON does
        interactive_requests=Settings().interactive_requests,
        idempotency_keys=True,
        content_names=True,
        any_text_in_files=True,
        priorities=True,
        run_cache=True,
        reference_path=True,
        native_results=True,
        cpu_accounting=True,
        any_model=True,
    ),
    version="v1",
)
