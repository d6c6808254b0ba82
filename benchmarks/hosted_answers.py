"""A Gemini that answers at once: every batch is done when it is created, and vectors are one of 64.

    .venv/bin/python benchmarks/hosted_answers.py --dim 128

Writes one line of JSON, its address, and ends with its standard input. Only what a run over files asks is
there, in the shapes of the live service; how it misbehaves is the matter of the stand-in of the tests. A row
takes it some microseconds, so that what is measured is the client.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

TIME: Final = "2099-01-01T00:00:00.000000000Z"


class Answers(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    vectors: ClassVar[list[bytes]]
    uploads: ClassVar[dict[str, str]] = {}
    batches: ClassVar[dict[str, dict[str, Any]]] = {}
    counts: ClassVar[Counter[str]] = Counter()

    def log_message(self, *said: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List, show a batch, or send results."""
        path = self.path.partition("?")[0]
        if path == "/counts":
            self._say(dict(self.counts))
        elif ":download" in path:
            self._count("download")
            self._send_results(path.rpartition("/")[2].partition(":")[0].removeprefix("batch-"))
        elif path.endswith("/batches"):
            self._count("list")
            self._say({})
        elif "/batches/" in path:
            self._count("status")
            self._say(self.batches[path.rpartition("/")[2]])
        else:
            self._say({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "not there"}}, 403)

    def do_DELETE(self) -> None:
        """Forget."""
        self._count("delete")
        self._say({})

    def do_POST(self) -> None:
        """Begin an upload, take a part of one, or create a batch."""
        size = int(self.headers.get("Content-Length", 0))
        if self.path.startswith("/part/"):
            self._take(self.path.rpartition("/")[2], size)
            return
        said = json.loads(self.rfile.read(size) or b"{}")
        if self.path.startswith("/upload/"):
            self._count("upload.start")
            name = said["file"].get("name", f"files/f{len(self.uploads)}")
            self.uploads[str(len(self.uploads))] = name
            url = f"http://{self.headers['Host']}/part/{len(self.uploads) - 1}"
            self._say({}, 200, {"X-Goog-Upload-URL": url, "X-Goog-Upload-Status": "active"})
        else:
            self._create(said["batch"])

    def _take(self, number: str, size: int) -> None:
        self._count("upload.chunk")
        name = self.uploads[number]
        with (self.folder / name.rpartition("/")[2]).open("ab") as file:
            while size > 0:
                data = self.rfile.read(min(size, 1 << 20))
                file.write(data)
                size -= len(data)
        final = "finalize" in self.headers.get("X-Goog-Upload-Command", "")
        shown = {"file": {"name": name, "state": "ACTIVE"}} if final else {}
        self._say(shown, 200, {"X-Goog-Upload-Status": "final" if final else "active"})

    def _create(self, batch: dict[str, Any]) -> None:
        self._count("create")
        config = batch["inputConfig"]
        name = config.get("fileName") or config["file_name"]
        made = f"b{len(self.batches)}"
        source = self.folder / name.rpartition("/")[2]
        with source.open("rb") as lines, (self.folder / f"results-{made}").open("wb") as results:
            count = 0
            for line in lines:
                key = line[8 : line.index(b'"', 8)]
                vector = self.vectors[count % len(self.vectors)]
                results.write(
                    b'{"key":"'
                    + key
                    + b'","response":{"embedding":{"values":['
                    + vector
                    + b']},"usageMetadata":{"promptTokenCount":9}}}\n'
                )
                count += 1
        source.unlink()
        output = {"responsesFile": f"files/batch-{made}"}
        self.batches[made] = {
            "name": f"batches/{made}",
            "metadata": {
                "model": "models/gemini-embedding-001",
                "displayName": batch.get("displayName", ""),
                "state": "BATCH_STATE_SUCCEEDED",
                **dict.fromkeys(("createTime", "updateTime", "endTime"), TIME),
                "batchStats": {"requestCount": str(count), "successfulRequestCount": str(count)},
                "inputConfig": {"fileName": name},
                "output": output,
            },
            "done": True,
            "response": output,
        }
        self._say(self.batches[made])

    def _send_results(self, made: str) -> None:
        path = self.folder / f"results-{made}"
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Content-Type", "application/jsonl")
        self.end_headers()
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                self.wfile.write(data)
        path.unlink()

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    def _say(self, said: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=128)
    dimensions = parser.parse_args().dim
    draw = random.Random(7)
    Answers.vectors = [
        ",".join(f"{draw.gauss(0, 0.02):.8f}" for _ in range(dimensions)).encode() for _ in range(64)
    ]
    with tempfile.TemporaryDirectory() as folder:
        Answers.folder = Path(folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}), flush=True)
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
