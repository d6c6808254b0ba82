"""A Gemini in memory that answers in the shapes captured from the live service (wire anchors, 1.4 to 1.6).

`done` is absent until the end, zero counters are left out, inline results come twice under the doubled key,
large results come out of order, a failed line says `error` or `status`. Vectors tell the text: see `vector`.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HOST = "generativelanguage.googleapis.com"
UPLOADS = "upload.example"
TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
KEY = "the-key"
GRANULE = 256 * 1024


def vector(text: str, dimensions: int = 4) -> list[float]:
    """Return numbers of length 1 that float32 holds exactly and that tell the text."""
    said = [float(len(text)), float(sum(map(ord, text)) % 4096), *([0.25] * (dimensions - 2))]
    length = math.hypot(*said)
    return [struct.unpack("f", struct.pack("f", number / length))[0] for number in said]


@dataclass
class Job:
    """One batch."""

    batch: dict[str, Any]
    requests: list[dict[str, Any]]
    file: bool
    polls: int = 0


@dataclass
class FakeGemini:
    """The service; an instance is the handler of a `MockTransport`."""

    polls_to_finish: int = 2
    status_lines: bool = False
    """Say `status` instead of `error` in failed lines."""
    shuffle: Callable[[list[Any]], list[Any]] = lambda rows: rows[::-1]
    end: str = "SUCCEEDED"
    operation_error: dict[str, Any] | None = None
    late_output: int = 0
    """Polls for which a finished batch has no output yet."""
    late_files: int = 0
    """Downloads of results that are refused as if there were none."""
    results_in: str = "both"
    """Where results stand: `metadata`, `response` or `both`."""
    faults: list[Callable[[httpx2.Request], httpx2.Response | None]] = field(default_factory=list)
    """Asked in turn before a request is handled; the first that answers or raises is used up."""
    scale: float = 1.0
    """Length of vectors that were asked for with fewer dimensions."""
    jobs: dict[str, Job] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sessions: dict[str, bytearray] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    """The names that uploads were begun under, by session."""
    file_states: dict[str, list[str]] = field(default_factory=dict)
    """States that a file tells before it is ACTIVE, by its name."""
    seen: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.seen.append(request)
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                self.faults.remove(fault)
                return answer
        if request.url.host == UPLOADS:
            assert "x-goog-api-key" not in request.headers, "the key leaves for another host"
            return self._chunk(request)
        assert request.url.host == HOST
        if request.headers.get("x-goog-api-key") != KEY:
            return problem(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        return self._route(request)

    def _route(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        match re.split("[/:]", path.removeprefix("/v1beta/")):
            case ["", "upload", "v1beta", "files"]:
                return self._start(request)
            case ["models", model, verb]:
                return self._embed(f"models/{model}", verb, orjson.loads(request.content))
            case ["files", file, "download"]:
                return self._download(request.url.params["alt"], f"files/{file}")
            case ["files", file]:
                return self._file(request.method, f"files/{file}")
            case ["batches"]:
                return self._list(request)
            case ["batches", batch, *verb]:
                return self._job(request, f"batches/{batch}", *verb)
            case _:
                raise AssertionError(f"Google has no {request.method} {path}")

    def _start(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["x-goog-upload-protocol"] == "resumable"
        assert request.headers["x-goog-upload-command"] == "start"
        assert request.headers["x-goog-upload-header-content-type"]
        token = f"session-{len(self.sessions)}"
        if name := orjson.loads(request.content)["file"].get("name"):
            assert re.fullmatch("files/[a-z0-9][a-z0-9-]{0,38}[a-z0-9]", name)
            if name in self.files or name in self.named.values():
                return problem(409, "ALREADY_EXISTS", "Requested entity already exists")
            self.named[token] = name
        self.sessions[token] = bytearray()
        url = f"https://{UPLOADS}/put?upload_id={token}"
        return httpx2.Response(200, headers={"X-Goog-Upload-URL": url, "X-Goog-Upload-Status": "active"})

    def _chunk(self, request: httpx2.Request) -> httpx2.Response:
        session = self.sessions[request.url.params["upload_id"]]
        command = request.headers["x-goog-upload-command"]
        received = {"X-Goog-Upload-Status": "active", "X-Goog-Upload-Size-Received": str(len(session))}
        if command == "query":
            return httpx2.Response(200, headers=received)
        if int(request.headers["x-goog-upload-offset"]) != len(session):
            return problem(400, "INVALID_ARGUMENT", "wrong offset")
        session += request.content
        if command == "upload":
            assert len(request.content) % GRANULE == 0
            return httpx2.Response(200, headers={"X-Goog-Upload-Status": "active"})
        assert command == "upload, finalize"
        name = self.named.get(request.url.params["upload_id"], f"files/in-{len(self.files)}")
        self.files[name] = bytes(session)
        file = {"name": name, "sizeBytes": str(len(session)), "state": "ACTIVE", "source": "UPLOADED"}
        return httpx2.Response(200, headers={"X-Goog-Upload-Status": "final"}, json={"file": file})

    def _download(self, alt: str, name: str) -> httpx2.Response:
        assert alt == "media"
        if self.late_files > 0:
            self.late_files -= 1
            return problem(403, "PERMISSION_DENIED", "... or it may not exist.")
        return httpx2.Response(200, content=self.files[name])

    def _file(self, method: str, name: str) -> httpx2.Response:
        if len(name) > len("files/") + 40:
            return problem(400, "INVALID_ARGUMENT", "the name of a file has at most 40 characters")
        if name not in self.files:
            return problem(403, "PERMISSION_DENIED", f"You do not have permission to access the File {name}")
        if method == "DELETE":
            del self.files[name]
            return httpx2.Response(200, json={})
        state = next(iter(self.file_states.get(name, ["ACTIVE"])))
        self.file_states[name] = self.file_states.get(name, [])[1:] or ["ACTIVE"]
        said = {"name": name, "sizeBytes": str(len(self.files[name])), "state": state}
        return httpx2.Response(200, json=said)

    def _embed(self, model: str, verb: str, body: dict[str, Any]) -> httpx2.Response:
        if model not in ("models/gemini-embedding-001", "models/gemini-embedding-2"):
            return problem(404, "NOT_FOUND", f"{model} is not found for API version v1beta")
        if verb == "embedContent":
            return httpx2.Response(200, json={"embedding": {"values": embedded(body, self.scale)}})
        if verb == "batchEmbedContents":
            if len(body["requests"]) > 100:
                return problem(400, "INVALID_ARGUMENT", "at most 100 requests can be in one batch")
            found = [{"values": embedded(one, self.scale)} for one in body["requests"]]
            return httpx2.Response(200, json={"embeddings": found})
        assert verb == "asyncBatchEmbedContent"
        return self._create(model, body["batch"])

    def _create(self, model: str, batch: dict[str, Any]) -> httpx2.Response:
        source = batch["inputConfig"]
        if "fileName" in source:
            lines = self.files[source["fileName"]].splitlines()
            requests = [orjson.loads(line) for line in lines]
            assert all(line.keys() <= {"key", "request"} for line in requests), "Google's lines have no more"
        else:
            requests = source["requests"]["requests"]
            assert all(one.keys() <= {"request", "metadata"} for one in requests)
        name = f"batches/{len(self.jobs):036d}"
        self.jobs[name] = Job(
            {
                "@type": TYPE,
                "model": model,
                "displayName": batch["displayName"],
                **({"inputConfig": {"fileName": source["fileName"]}} if "fileName" in source else {}),
                "createTime": "2026-06-01T10:00:00.123456789Z",
                "updateTime": "2026-06-01T10:00:00.123456789Z",
                "name": name,
                **({"priority": str(batch["priority"])} if "priority" in batch else {}),
            },
            requests,
            "fileName" in source,
        )
        return httpx2.Response(200, json=self._operation(name))

    def _job(self, request: httpx2.Request, name: str, verb: str = "") -> httpx2.Response:
        if name not in self.jobs:
            return problem(404, "NOT_FOUND", "Requested entity was not found.")
        if verb == "cancel":
            self.jobs[name].polls = self.polls_to_finish
            self.end, self.operation_error = "CANCELLED", {"code": 13, "message": "Batch was cancelled."}
            return httpx2.Response(200, json={})
        if verb == "updateEmbedContentBatch":
            body, batch = orjson.loads(request.content), self.jobs[name].batch
            for field_ in request.url.params["updateMask"].split(","):
                batch[field_] = str(body[field_]) if field_ == "priority" else body[field_]
            return httpx2.Response(200, json={k: v for k, v in batch.items() if k != "@type"})
        if request.method == "DELETE":
            del self.jobs[name]
            return httpx2.Response(200, json={})
        assert "view" not in request.url.params, "Google knows no view"
        self.jobs[name].polls += 1
        return httpx2.Response(200, json=self._operation(name))

    def _list(self, request: httpx2.Request) -> httpx2.Response:
        size, first = int(request.url.params.get("pageSize", 50)), int(request.url.params.get("pageToken", 0))
        names = [*self.jobs][::-1][first : first + size]
        entries = [self._operation(name, output=False) for name in names]
        more = {"nextPageToken": str(first + size)} if first + size < len(self.jobs) else {}
        return httpx2.Response(200, json={**({"operations": entries} if entries else {}), **more})

    def _operation(self, name: str, *, output: bool = True) -> dict[str, Any]:
        job = self.jobs[name]
        count = str(len(job.requests))
        if job.polls < self.polls_to_finish:
            state = "PENDING" if job.polls == 0 else "RUNNING"
            stats = {"requestCount": count, "pendingRequestCount": count}
            return {
                "name": name,
                "metadata": {**job.batch, "state": f"BATCH_STATE_{state}", "batchStats": stats},
            }
        rows = [self.row(one, job) for one in job.requests]
        failed = sum("response" not in row for row in rows)
        counts = {"successfulRequestCount": len(rows) - failed, "failedRequestCount": failed}
        stats = {"requestCount": count, **{k: str(v) for k, v in counts.items() if v}}
        metadata = {
            **job.batch,
            "state": f"BATCH_STATE_{self.end}",
            "batchStats": stats,
            "endTime": "2026-06-01T10:05:00.5Z",
        }
        operation = {"name": name, "metadata": metadata, "done": True}
        if self.operation_error is not None:
            return {**operation, "error": self.operation_error}
        if output and self.late_output > 0:
            self.late_output -= 1
        elif output:
            found = self._output(name, job, rows)
            empty: dict[str, Any] = {"inlinedResponses": {"inlinedResponses": []}}
            metadata["output"] = empty if self.results_in == "response" else found
            if self.results_in != "metadata":
                operation["response"] = {"@type": f"{TYPE}Output", **found}
        return operation

    def _output(self, name: str, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self.shuffle(rows)
        if not job.file:
            return {"inlinedResponses": {"inlinedResponses": rows}}
        file = f"files/batch-{name.removeprefix('batches/')}"
        self.files[file] = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        return {"responsesFile": file}

    def row(self, one: dict[str, Any], job: Job) -> dict[str, Any]:
        """Return what a job answers to a request; tests may put another in its place."""
        echo: dict[str, Any] = {name: one[name] for name in ("key", "metadata") if name in one}
        text = one["request"]["content"]["parts"][0]["text"]
        if not text.strip():
            word = "status" if self.status_lines and job.file else "error"
            return {**echo, word: {"code": 3, "message": "content is empty"}}
        response: dict[str, Any] = {"embedding": {"values": embedded(one["request"], self.scale)}}
        if job.file:
            response["usageMetadata"] = {"promptTokenCount": len(text.split())}
        else:
            response["tokenCount"] = str(len(text.split()))
        return {**echo, "response": response}


def embedded(request: dict[str, Any], scale: float = 1.0) -> list[float]:
    """Return the values for one EmbedContentRequest; fewer dimensions come at any length."""
    values = vector(request["content"]["parts"][0]["text"], request.get("outputDimensionality", 4))
    return [scale * one for one in values] if "outputDimensionality" in request else values


def problem(status: int, word: str, message: str, details: Iterable[object] = ()) -> httpx2.Response:
    """Return Google's envelope."""
    error = {"code": status, "message": message, "status": word, "details": list(details)}
    return httpx2.Response(status, json={"error": error})
