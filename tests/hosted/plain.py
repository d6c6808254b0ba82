"""A client of the stand-ins that knows HTTP and nothing else."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hosted.gemini import GeminiStandIn
    from hosted.vertex import VertexStandIn

MODEL = "gemini-embedding-001"


_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""There is none: reading the certificates of the machine for each client takes longer than the tests."""


def _client() -> httpx2.Client:
    return httpx2.Client(timeout=60, trust_env=False, verify=_NO_TLS)


@dataclass
class Plain:
    """Asks the Gemini stand-in."""

    google: GeminiStandIn

    def ask(self, method: str, path: str, said: object = None, **headers: str) -> httpx2.Response:
        """Ask below `/v1beta`; `_` in the names of headers stands for a hyphen."""
        body = b"" if said is None else said if isinstance(said, bytes) else json.dumps(said).encode()
        sent = {"x-goog-api-key": self.google.key, "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = path if path.startswith("http") else f"{self.google.url}/v1beta/{path}"
        with _client() as client:
            return client.request(method, url, content=body, headers=sent)

    def get(self, path: str) -> Any:
        """Return what a GET says; it has to succeed."""
        return good(self.ask("GET", path))

    def create(self, *texts: str, **batch: Any) -> str:
        """Create an inline batch of two dimensions with the keys 0, 1, …; return its name."""
        return str(
            good(self.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", inline(*texts, **batch)))["name"]
        )

    def create_from(self, content: bytes, name: str = "") -> str:
        """Upload a file and create a batch from it; return the name of the batch."""
        file = self.upload(content, name)
        source = {"batch": {"inputConfig": {"fileName": file["name"]}, "displayName": "from a file"}}
        return str(good(self.ask("POST", f"models/{MODEL}:asyncBatchEmbedContent", source))["name"])

    def start(self, size: int, name: str = "", mime: str = "jsonl") -> httpx2.Response:
        """Begin an upload."""
        about = {"file": {**({"name": name} if name else {}), "mime_type": mime, "size_bytes": size}}
        return self.ask(
            "POST",
            f"{self.google.url}/upload/v1beta/files",
            about,
            X_Goog_Upload_Protocol="resumable",
            X_Goog_Upload_Command="start",
            X_Goog_Upload_Header_Content_Length=str(size),
            X_Goog_Upload_Header_Content_Type=mime,
        )

    def chunk(
        self, url: str, content: bytes, offset: int, command: str = "upload, finalize"
    ) -> httpx2.Response:
        """Send bytes to an upload; no key goes with them."""
        headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
        with _client() as client:
            return client.post(url, content=content, headers=headers)

    def received(self, url: str) -> int:
        """Ask an upload how many bytes came."""
        return int(self.chunk(url, b"", 0, "query").headers["x-goog-upload-size-received"])

    def upload(self, content: bytes, name: str = "") -> Any:
        """Upload a file in one piece; return the File."""
        url = self.start(len(content), name).headers["x-goog-upload-url"]
        return good(self.chunk(url, content, 0))["file"]

    def ended(self, name: str, looks: int = 10) -> Any:
        """Look until a batch has ended and return the operation."""
        for _ in range(looks):
            if (operation := self.get(name)).get("done"):
                return operation
        raise AssertionError(f"{name} did not end")

    def lines(self, name: str) -> list[Any]:
        """Return the lines of a results file."""
        got = self.ask("GET", f"{name}:download?alt=media")
        assert got.status_code == 200, got.text
        return [json.loads(line) for line in got.content.splitlines()]


def good(reply: httpx2.Response) -> Any:
    """Return the JSON of a reply, which has to succeed."""
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(reply: httpx2.Response, status: int, word: str) -> Any:
    """Return the error of a reply, which has to be refused so."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["status"]) == (status, word)
    assert error["message"]
    return error


def request(text: str, dimensions: int = 2) -> dict[str, Any]:
    """Write an EmbedContentRequest."""
    return {"content": {"parts": [{"text": text}]}, "outputDimensionality": dimensions}


def inline(*texts: str, **batch: Any) -> dict[str, Any]:
    """Write an inline batch; the metadata of a request is its place."""
    requests = [{"request": request(text), "metadata": {"key": str(at)}} for at, text in enumerate(texts)]
    return {"batch": {"inputConfig": {"requests": {"requests": requests}}, "displayName": "inline", **batch}}


def jsonl(texts: Sequence[str], dimensions: int = 2) -> bytes:
    """Write an input file; the key of a line is its place."""
    lines = [{"key": str(at), "request": request(text, dimensions)} for at, text in enumerate(texts)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def items(operation: Any) -> list[Any]:
    """Return the inline results of an operation."""
    found: list[Any] = operation["response"]["inlinedResponses"]["inlinedResponses"]
    assert operation["metadata"]["output"]["inlinedResponses"]["inlinedResponses"] == found
    return found


@dataclass
class PlainVertex:
    """Asks the Vertex stand-in."""

    google: VertexStandIn
    location: str = "us-central1"

    def ask(self, method: str, path: str, said: object = None) -> httpx2.Response:
        """Ask below the location with a token that counts; an absolute address or path is asked as it is."""
        place = f"/v1/projects/{self.google.project}/locations/{self.location}/"
        url = self.google.url + (path if path.startswith("/") else place + path)
        token = self.google.tokens.issued[-1] if self.google.tokens.issued else self.google.tokens.issue()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        with _client() as client:
            return client.request(
                method, url, content=b"" if said is None else json.dumps(said), headers=headers
            )

    def model(self, verb: str, said: object, model: str = MODEL) -> httpx2.Response:
        """Ask a model."""
        return self.ask("POST", f"publishers/google/models/{model}:{verb}", said)

    def create(self, content: bytes, model: str = MODEL, **more: Any) -> Any:
        """Put an input file and create a job."""
        self.google.storage.write("in.jsonl", content)
        return good(self.ask("POST", "batchPredictionJobs", self.job("in.jsonl", model, **more)))

    def job(self, name: str, model: str = MODEL, **more: Any) -> dict[str, Any]:
        """Write a job."""
        bucket = self.google.bucket
        return {
            "displayName": "a job",
            "model": f"publishers/google/models/{model}",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [f"{bucket}/{name}"]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"{bucket}/out"},
            },
            **more,
        }

    def ended(self, name: str, looks: int = 10) -> Any:
        """Look until a job has ended."""
        for _ in range(looks):
            job = good(self.ask("GET", f"/v1/{name}"))
            if job["state"].removeprefix("JOB_STATE_") in {
                "SUCCEEDED",
                "FAILED",
                "CANCELLED",
                "PARTIALLY_SUCCEEDED",
            }:
                return job
        raise AssertionError(f"{name} did not end")

    def lines(self, job: Any) -> list[Any]:
        """Return the lines of all files of a job."""
        folder = job["outputInfo"]["gcsOutputDirectory"].removeprefix(f"{self.google.bucket}/")
        names = self.google.storage.names(f"{folder}/")
        assert names
        content = b"".join(self.google.storage.read(name) or b"" for name in names)
        return [json.loads(line) for line in content.splitlines()]
