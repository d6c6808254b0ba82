"""A third provider, with a protocol that is nobody's: what a file beside `embatch` and `gemini` has to hold.

Its service keeps texts as lines, takes a bearer token, embeds while it is polled, and gives vectors in pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import httpx2
import numpy as np
import orjson

from embatch import Batch, BatchStats, ContentEmbedding, Internal, InvalidArgument, Model, NotFound, State
from embatch.batch import Page
from embatch.client import arguments
from embatch.client.calls import Call, Exchange
from embatch.client.providers.provider import Capabilities, Provider, Target
from embatch.client.results import ResultBuilder
from embatch.errors import Code, Reason, RequestError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embatch import BatchResult, EmbatchError, Request
    from embatch.client.calls import Flow, Reply, Sender
    from embatch.client.upload import FileUpload

HOST = "stand-in.example"
KEY = "the-token"
PAGE = 2
"""Vectors of one page."""
_STATES = {"waiting": State.PENDING, "done": State.COMPLETED, "stopped": State.CANCELLED}
_KINDS: dict[int, type[EmbatchError]] = {400: InvalidArgument, 404: NotFound, 503: Unavailable}


class Lines:
    """A text a line, the empty line for none."""

    mime_type: ClassVar[str] = "text/x-lines"

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, requests: Sequence[Request]) -> None:
        """Append texts."""
        self._file.write(b"".join((one.text or "").encode() + b"\n" for one in requests))

    def finish(self) -> None:
        """Complete the file."""
        self._file.flush()


@dataclass(frozen=True, slots=True)
class StandIn(Provider):
    """Speaks the stand-in's protocol."""

    def sign(self, key: str | None) -> Mapping[str, str]:
        """Bear the token."""
        return {"Authorization": f"Bearer {key}"}

    def read_error(self, reply: Reply) -> EmbatchError:
        """Read its one-word envelope."""
        return _KINDS.get(reply.status, Internal)(orjson.loads(reply.body)["oops"])

    def writer(self, file: BinaryIO, model: str | None) -> Lines:
        """Write lines."""
        return Lines(file)

    def upload(self, sender: Sender, upload: FileUpload) -> Flow[str]:
        """Put the file in one piece."""
        upload.file.seek(0)
        call = Call("PUT", "/blobs", headers={"Content-Type": upload.mime_type}, body=upload.file.read())
        return (yield from sender.ask(Exchange(call, lambda body: str(orjson.loads(body)["blob"]))))

    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Write texts in a list."""
        return orjson.dumps({"as": display_name, "texts": [one.text for one in requests]})

    def file_body(self, model: str, display_name: str, priority: int, file: str) -> bytes:
        """Name the blob."""
        return orjson.dumps({"as": display_name, "blob": file})

    def create(
        self, model: str, body: bytes, idempotency_key: str | None, run: str | None
    ) -> Exchange[Batch]:
        """Begin a job."""
        return Exchange(Call("POST", "/jobs", {"with": model}, body=body), _batch)

    def status(self, name: str) -> Exchange[Batch]:
        """Look at a job."""
        return Exchange(Call("GET", _job(name)), _batch)

    def batches(self, size: int | None, token: str | None) -> Exchange[Page[Batch]]:
        """List all jobs."""
        return Exchange(Call("GET", "/jobs"), lambda body: Page(tuple(map(_read, orjson.loads(body))), None))

    def update(self, name: str, display_name: str | None, priority: int | None) -> Exchange[Batch]:
        """Rename a job."""
        return Exchange(Call("PUT", _job(name), body=orjson.dumps(display_name)), _batch)

    def cancel(self, name: str) -> Call:
        """Stop a job."""
        return Call("POST", f"{_job(name)}/stop")

    def delete(self, name: str) -> Call:
        """Drop a job."""
        return Call("DELETE", _job(name))

    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read page after page."""
        rows: list[list[float] | None] = []
        while len(rows) < batch.batch_stats.request_count:
            call = Call("GET", f"{_job(batch.name)}/vectors", {"from": str(len(rows))})
            rows += yield from sender.ask(Exchange(call, orjson.loads))
        columns = ResultBuilder(len(rows), dimensions or 3)
        for at, row in enumerate(rows):
            if row is None:
                columns.errors[at] = RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "no text")
                continue
            columns.matrix[at], columns.widths[at] = row[:dimensions], len(row[:dimensions])
        return columns.result(batch)

    def models(self, size: int | None, token: str | None) -> Exchange[Page[Model]]:
        """List the one model."""
        return Exchange(Call("GET", "/models"), _models)

    def embed(self, model: str, request: Request) -> Exchange[ContentEmbedding]:
        """Embed one text."""
        exchange = self.embed_many(model, [request])
        return Exchange(exchange.call, lambda body: exchange.read(body)[0])

    def embed_many(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        """Embed a few texts."""
        body = orjson.dumps([one.text for one in requests])
        return Exchange(Call("POST", "/now", {"with": model}, body=body), _embeddings)

    def count_tokens(self, model: str, texts: Sequence[str]) -> Exchange[int]:
        """Count words."""
        return Exchange(Call("POST", "/words", body=orjson.dumps(list(texts))), int)


def _job(name: str) -> str:
    return f"/jobs/{name.removeprefix('batches/')}"


def _batch(body: bytes) -> Batch:
    return _read(orjson.loads(body))


def _read(job: Mapping[str, Any]) -> Batch:
    state, count = _STATES[job["state"]], job["count"]
    stats = BatchStats(count, *((count - job["bad"], job["bad"], 0) if state.final else (0, 0, count)))
    name, model = f"batches/{job['id']}", f"models/{job['with']}"
    return Batch(name, model, state, job["as"], 0, None, None, None, stats)


def _models(body: bytes) -> Page[Model]:
    return Page(tuple(Model(f"models/{one}", one, "", None) for one in orjson.loads(body)), None)


def _embeddings(body: bytes) -> list[ContentEmbedding]:
    return [ContentEmbedding(np.array(row, np.float32)) for row in orjson.loads(body)]


STAND_IN = StandIn(
    "stand-in",
    Capabilities(
        inline_bytes=1000,
        inline_requests=3,
        interactive_requests=2,
        counted_requests=2,
        poll_interval=lambda count: 0.001 * count,
        time_limit=lambda count: 70.0 if count > 100 else 60.0,
    ),
)


def target(key: str | None, environ: Mapping[str, str]) -> Target:
    """Return the target `stand-in`; its variable is STAND_IN_TOKEN."""
    return Target(f"https://{HOST}", STAND_IN, key=arguments.key("api_key", key or environ["STAND_IN_TOKEN"]))


def vector(text: str) -> list[float]:
    """Return numbers that tell the text."""
    return [float(len(text)), float(sum(map(ord, text)) % 4096), 1.0]


@dataclass
class StandInService:
    """The service; an instance is the handler of a `MockTransport`."""

    polls: int = 2
    faults: list[Callable[[httpx2.Request], httpx2.Response | None]] = field(default_factory=list)
    """Asked in turn before a request is handled; the first that answers or raises is used up."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    seen: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.seen.append(request)
        assert request.url.host == HOST
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert not {"x-goog-api-key", "idempotency-key", "embatch-run"} & request.headers.keys()
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                self.faults.remove(fault)
                return answer
        path = request.url.path.removeprefix("/").split("/")
        if path[0] == "jobs":
            return self._jobs(request, path[1:])
        said = orjson.loads(request.content) if request.method == "POST" else None
        return self._others(request, [request.method, *path], said)

    def _others(self, request: httpx2.Request, what: list[str], said: Any) -> httpx2.Response:
        match what:
            case ["PUT", "blobs"]:
                assert request.headers["content-type"] == "text/x-lines"
                self.blobs.append(request.content)
                return httpx2.Response(200, json={"blob": str(len(self.blobs) - 1)})
            case ["GET", "models"]:
                return httpx2.Response(200, json=["parrot"])
            case ["POST", "words"]:
                assert len(said) <= 2
                return httpx2.Response(200, json=sum(len(text.split()) for text in said))
            case ["POST", "now"] if request.url.params["with"] == "parrot":
                assert len(said) <= 2
                return httpx2.Response(200, json=[*map(vector, said)])
            case ["POST", "now"]:
                return httpx2.Response(404, json={"oops": "no such bird"})
            case _:
                raise AssertionError(f"nobody has {request.method} {request.url.path}")

    def _jobs(self, request: httpx2.Request, path: list[str]) -> httpx2.Response:
        if not path and request.method == "POST":
            return self._begin(request.url.params["with"], orjson.loads(request.content))
        if not path:
            return httpx2.Response(200, json=[*map(self._shown, self.jobs[::-1])])
        if int(path[0]) >= len(self.jobs):
            return httpx2.Response(404, json={"oops": "no such job"})
        return self._job(self.jobs[int(path[0])], request, path[1:])

    def _begin(self, model: str, said: dict[str, Any]) -> httpx2.Response:
        texts = said.get("texts") or self.blobs[int(said["blob"])].decode().splitlines()
        job = {"id": str(len(self.jobs)), "with": model, "as": said["as"], "texts": texts, "polls": 0}
        self.jobs.append({**job, "stopped": False})
        return httpx2.Response(200, json=self._shown(self.jobs[-1]))

    def _job(self, job: dict[str, Any], request: httpx2.Request, verb: list[str]) -> httpx2.Response:
        if verb == ["vectors"]:
            first = int(request.url.params["from"])
            page = job["texts"][first : first + PAGE]
            return httpx2.Response(200, json=[vector(text) if text else None for text in page])
        if verb == ["stop"]:
            job["stopped"] = True
        elif request.method == "PUT":
            job["as"] = orjson.loads(request.content)
        elif request.method == "GET":
            job["polls"] += 1
        return httpx2.Response(200, json=self._shown(job))

    def _shown(self, job: dict[str, Any]) -> dict[str, Any]:
        state = "stopped" if job["stopped"] else "done" if job["polls"] >= self.polls else "waiting"
        bad = sum(not text for text in job["texts"])
        shown = {name: job[name] for name in ("id", "with", "as")}
        return {**shown, "state": state, "count": len(job["texts"]), "bad": bad}
