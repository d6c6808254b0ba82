"""A Gemini Developer API on 127.0.0.1 that behaves as badly as a test asks; imports nothing of what it tests.

    with GeminiStandIn(Behaviour(seed=7, faults=(Fault("create", calls=(1,), cut="handled"),))) as google:
        client = Client("gemini", api_key=google.key, base_url=google.url)  # any client: google-genai, curl
        ...                                    # batches go on by looks at them (`polls_to_end`), or:
        google.clock.advance(3600); google.finish(); google.release(); google.behave(reorder=False)
    assert google.creates == 1                 # the oracle of pay-once; see also `jobs`, `items`, `calls`

Batches and files live as long as the block, whatever becomes of the client. Routes, for `Fault` and `calls`:
`create status list cancel delete update`, `upload.start upload.chunk upload.query`, `embed embed_many`,
`file files file.delete download`, `count_tokens`, `model models`, `unknown`. Another process: see `serve`; a
mixture of misbehaviour by seed: `behaviour.wild`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from hosted import jobs
from hosted.batch_service import BatchService, served
from hosted.gemini_files import Files
from hosted.gemini_routes import check_query, route_of, version_and_name
from hosted.gemini_shapes import (
    MODELS,
    batch_id,
    inline_rows,
    item,
    line,
    page_token,
    read_page_token,
    results_file,
    rows_of,
    shown_model,
)
from hosted.jobs import Job
from hosted.moment import stamp
from hosted.replies import Refused, Reply, key_problem, say
from hosted.requests_in import a_list, fields, read_content, read_json, read_request
from hosted.vectors import tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hosted.behaviour import Behaviour
    from hosted.http_server import Ask
    from hosted.moment import Clock
    from hosted.results import Result, Row
    from hosted.vectors import Vectors

KEY = "AIzaStandInKeyOfNobody"
TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
INLINE_BYTES = 20 * 2**20
_BATCH = {"model", "displayName", "inputConfig", "priority", "webhookConfig"}
_FILES = ("upload", "file", "download")


class GeminiStandIn(BatchService):
    """The service; a context manager."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        clock: Clock | None = None,
        vectors: Vectors | None = None,
        keys: dict[str, str] | None = None,
    ) -> None:
        super().__init__(behaviour, clock, vectors)
        self.keys = keys or {KEY: "project"}
        """API keys and the projects that they belong to: batches and files are a project's."""
        self.key = next(iter(self.keys))
        self._folder = tempfile.TemporaryDirectory(prefix="gemini-stand-in-")
        self.files = Files(Path(self._folder.name), self.clock, lambda: self.behaviour)

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            super().__exit__(kind, *rest)
        finally:
            self._folder.cleanup()

    def addresses(self) -> dict[str, str]:
        """Return what a client has to know."""
        return {"url": self.url, "key": self.key}

    def counts(self) -> dict[str, Any]:
        """Return what was counted, for `/_control`."""
        return {**super().counts(), "uploads": self.files.uploads, "files": [*self.files.kept]}

    def route(self, ask: Ask) -> str:
        """Name the route of a request."""
        return route_of(ask)

    def answer(self, route: str, ask: Ask) -> Reply:
        """Answer a request."""
        if route in {"upload.chunk", "upload.query"}:
            return self.files.chunk(ask)
        account = self._account(ask)
        check_query(route, ask)
        version, name = version_and_name(ask)
        if version == "v1" and not self.behaviour.files_in_v1 and route.startswith(_FILES):
            raise Refused(404, f"Method not found: {ask.method} {ask.path}")
        body = b"" if route == "upload.start" else ask.body.read()
        with self.lock:
            if route.startswith(_FILES):
                return self._file(route, name.removesuffix(":download"), ask, account)
            if route in {"status", "cancel", "delete", "update"}:
                return self._batch(route, self.find(name.partition(":")[0], account), ask, body)
            if route == "list":
                return self._list(ask, account)
            if route in {"model", "models", "unknown"}:
                return self._models(route, name, ask)
            return self._embed(route, name.removeprefix("models/").rpartition(":")[0], body, account)

    def _account(self, ask: Ask) -> str:
        key = ask.headers.get("x-goog-api-key") or ask.query.get("key")
        if not key:
            raise Refused(
                403, "Method doesn't allow unregistered callers (callers without established identity)."
            )
        if key not in self.keys:
            raise key_problem()
        return self.keys[key]

    def _models(self, route: str, name: str, ask: Ask) -> Reply:
        if route == "unknown":
            raise Refused(404, f"Method not found: {ask.method} {ask.path}")
        if route == "models":
            return say({"models": [*map(shown_model, MODELS)]})
        self._model(name.removeprefix("models/"))
        return say(shown_model(name.removeprefix("models/")))

    def _model(self, name: str) -> str:
        if name not in MODELS:
            message = (
                f"models/{name} is not found for API version v1beta, or is not supported for embedContent."
            )
            raise Refused(404, message)
        return name

    def _file(self, route: str, name: str, ask: Ask, account: str) -> Reply:
        match route:
            case "upload.start":
                return self.files.start(ask, account)
            case "file":
                return self.files.look(name, ask, account)
            case "file.delete":
                return self.files.delete(name, account)
            case "files":
                return self.files.page(ask, account)
        if name in self.files.kept:
            self.files.find(name, account)
            raise Refused(400, "Only generated files can be downloaded.")
        job = next((job for job in self.jobs if results_file(job) == name and job.account == account), None)
        if job is None or job.state != "SUCCEEDED" or job.name in self.deleted or self._late_file():
            raise Refused(403, f"You do not have permission to access the File {name} or it may not exist.")
        return Reply(200, self._results(job), {"Content-Type": "application/octet-stream"})

    def _late_file(self) -> bool:
        return self.calls["download"] <= self.behaviour.late_files

    # Interactive calls.

    def _embed(self, route: str, named: str, body: bytes, account: str) -> Reply:
        model = self._model(named)
        if route == "create":
            return self._create(model, body, account)
        if route == "count_tokens":
            return self._count(body)
        said = read_json(body)
        if route == "embed":
            row = read_request(said, model, {}, "request")
            found, count = self.embed_now([row], model)
            return say({"embedding": {"values": found[0]}, "usageMetadata": {"promptTokenCount": count}})
        requests = a_list(fields(said, {"requests"}, "").get("requests", []), "requests")
        if not 1 <= len(requests) <= 100:
            message = "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"
            raise Refused(400, message if requests else "* BatchEmbedContentsRequest.requests: it is empty")
        for at, one in enumerate(requests):
            if not one.get("model"):
                raise Refused(400, f"* BatchEmbedContentsRequest.requests[{at}].model: model is required")
        rows = [read_request(one, model, {}, f"requests[{at}]") for at, one in enumerate(requests)]
        found, count = self.embed_now(rows, model)
        embeddings = [{"values": values} for values in found]
        return say({"embeddings": embeddings, "usageMetadata": {"promptTokenCount": count}})

    def _count(self, body: bytes) -> Reply:
        if not self.behaviour.count_tokens:
            raise Refused(404, "Method not found.")
        contents = a_list(fields(read_json(body), {"contents"}, "").get("contents", []), "contents")
        return say({"totalTokens": sum(len(tokens(read_content(one, "contents"))) for one in contents)})

    # Batches.

    def _create(self, model: str, body: bytes, account: str) -> Reply:
        if len(body) > INLINE_BYTES:
            raise Refused(400, f"Request payload size exceeds the limit: {INLINE_BYTES} bytes.")
        batch = fields(fields(read_json(body), {"batch"}, "").get("batch", {}), _BATCH, "batch")
        if batch.get("model") not in {None, "", f"models/{model}"}:
            raise Refused(400, "The model of the batch is not that of the address.")
        source = fields(batch.get("inputConfig") or {}, {"fileName", "requests"}, "batch.input_config")
        if len(source) != 1:
            raise Refused(400, "Exactly one of file_name and requests has to be set in input_config.")
        display_name = batch.get("displayName") or ""
        if len(display_name) > 512:
            raise Refused(400, "The display name is longer than 512 characters.")
        details_: dict[str, Any] = {"priority": str(int(batch["priority"]))} if batch.get("priority") else {}
        rows: list[Row] | Path
        if "fileName" in source:
            rows = self._input_file(source["fileName"], account)
            details_ = {**details_, "inputConfig": {"fileName": source["fileName"]}}
        else:
            rows = [*inline_rows(source["requests"], model)]
        problems, tokens_ = self.weigh(rows_of(rows, model), model)
        if not problems:
            raise Refused(400, "The batch has no requests.")
        self.admit(tokens_, account, self.behaviour.concurrent_batches)
        ordinal = len(self.jobs) + 1
        name = f"batches/{batch_id(self.behaviour.seed, ordinal)}"
        job = Job(
            ordinal,
            name,
            account,
            f"models/{model}",
            display_name,
            self.clock.now,
            tokens_,
            details_,
            rows,
            problems,
        )
        self.add(job)
        return say(self._operation(job, output=False))

    def _input_file(self, name: object, account: str) -> Path:
        file = self.files.find(str(name), account)
        if not self.files.ready(file):
            raise Refused(400, f"File {file.name} is not in an ACTIVE state.", word="FAILED_PRECONDITION")
        kept = (
            self.files.folder / f"input-{len(self.jobs) + 1}"
        )  # what a batch reads outlives the file's deletion
        if not kept.exists():
            kept.hardlink_to(file.path)
        return kept

    def _batch(self, route: str, job: Job, ask: Ask, body: bytes) -> Reply:
        if route == "cancel":
            jobs.cancel(job, self.behaviour, self.clock.now)
            self.cancelled.append(job.name)
            return say({})
        if route == "delete":
            if not job.final:
                raise Refused(
                    400, "A batch that has not ended cannot be deleted.", word="FAILED_PRECONDITION"
                )
            self.deleted.append(job.name)
            return say({})
        if route == "update":
            return self._update(job, ask, fields(read_json(body), {*_BATCH, "name"}, ""))
        jobs.look(job, self.behaviour, self.clock.now)
        return say(self._operation(job))

    def _update(self, job: Job, ask: Ask, said: dict[str, Any]) -> Reply:
        for field in ask.query.get("updateMask", "").split(","):
            match field:
                case "displayName" | "display_name":
                    job.display_name = said["displayName"]
                case "priority":
                    job.details["priority"] = str(int(said["priority"]))
                case _:
                    raise Refused(400, f"Invalid update mask: {field!r}")
        job.updated = self.clock.now
        metadata = self._operation(job, output=False)["metadata"]
        return say({name: value for name, value in metadata.items() if name != "@type"})

    def _list(self, ask: Ask, account: str) -> Reply:
        if ask.query.get("returnPartialSuccess", "false") != "false":
            raise Refused(501, "returnPartialSuccess is not implemented.")
        before = read_page_token(ask.query.get("pageToken", ""))
        page, more_follow = self.page(account, int(ask.query.get("pageSize") or 50), before)
        entries = [self._operation(job, output=False) for job in page]
        more = {"nextPageToken": page_token(page[-1].ordinal)} if more_follow else {}
        return say({**({"operations": entries} if entries else {}), **more})

    def _operation(self, job: Job, *, output: bool = True) -> dict[str, Any]:
        zeros = self.behaviour.zeros
        metadata = {
            "@type": TYPE,
            "model": job.model,
            **({"displayName": job.display_name} if job.display_name else {}),
            **job.details,
            "createTime": stamp(job.created),
            **({} if job.ended is None else {"endTime": stamp(job.ended)}),
            "updateTime": stamp(job.updated),
            "batchStats": self._stats(job, stale=not output and self.behaviour.stale_lists),
            "state": f"BATCH_STATE_{job.state}",
            "name": job.name,
        }
        operation: dict[str, Any] = {"name": job.name, "metadata": metadata}
        if not job.final:
            return {**operation, **({"done": False} if zeros else {})}
        operation["done"] = True
        if job.code:
            return {**operation, "error": {"code": job.code, "message": job.message}}
        if job.state != "SUCCEEDED" or not output:
            return operation
        if job.held < self.behaviour.late_results:
            job.held += 1
            return operation
        found = self._output(job)
        if self.behaviour.results_in in {"both", "metadata"}:
            metadata["output"] = found
        if self.behaviour.results_in in {"both", "response"}:
            operation["response"] = {"@type": f"{TYPE}Output", **found}
        return operation

    def _stats(self, job: Job, *, stale: bool) -> dict[str, str]:
        failed = pending = 0
        if not job.final or stale:
            pending = job.count
        elif job.state == "SUCCEEDED":
            done = served(job)
            failed = sum(job.problems[:done]) + job.count - done
        else:
            failed = job.count
        counts = {
            "requestCount": job.count,
            "successfulRequestCount": job.count - failed - pending,
            "failedRequestCount": failed,
            "pendingRequestCount": pending,
        }
        return {name: str(count) for name, count in counts.items() if count or self.behaviour.zeros}

    def _output(self, job: Job) -> dict[str, Any]:
        if "inputConfig" in job.details:
            return {"responsesFile": results_file(job)}
        if job.output is None:
            job.output = [*self._made(job)]
        items = [item(one) for one in job.output]
        return {"inlinedResponses": {"inlinedResponses": items}}

    def _results(self, job: Job) -> Path:
        """Write the results of a batch once."""
        if job.output is None:
            job.output = self.files.folder / f"output-{job.ordinal}"
            word = "status" if self.behaviour.status_lines else "error"
            with job.output.open("wb") as file:
                for one in self._made(job):
                    file.write(orjson.dumps(line(one, word), option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        assert isinstance(job.output, Path)
        return job.output

    def _made(self, job: Job) -> Iterator[Result]:
        model = job.model.removeprefix("models/")
        return self.made(job, rows_of(job.rows, model), model)
