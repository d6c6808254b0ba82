"""A file of a million requests in bounded memory (I8): uploaded, planned, worked and read back."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx2
import pytest
from serving import MODEL, Served, await_final, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 1_000_000
LIMIT_MIB = 600
CHUNK = 8 << 20


def family(root: int) -> dict[int, str]:
    """Return the processes that descend from one, itself included, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    lines = {}
    for pid in found:
        with contextlib.suppress(OSError):
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return lines


def mebibytes(pid: int) -> float:
    """Return the proportional set size of a process: what it shares counts in part."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Gauge:
    """Samples the memory of a service and its engines."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak = 0.0
        self.parts: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.2):
            sizes = {pid: mebibytes(pid) for pid in family(self.root)}
            total = sum(sizes.values())
            if total > self.peak:
                self.peak = total
                self.parts = {"service": sizes[self.root], "engines": total - sizes[self.root]}


def lines() -> Iterator[bytes]:
    """Yield the input file, some 140 MB."""
    for number in range(REQUESTS):
        text = (
            f"passage {number} about nothing in particular, of a length that passages often have {number * 7}"
        )
        yield b'{"key":"k%d","request":{"content":{"parts":[{"text":"%s"}]}}}\n' % (number, text.encode())


def upload(web: httpx2.Client, source: Iterator[bytes]) -> str:
    """Upload a stream in chunks without ever holding it; return the file's name."""
    begun = web.post(
        "/upload/v1/files",
        json={"file": {"mimeType": "application/jsonl"}},
        headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
    )
    address, offset = begun.headers["x-goog-upload-url"], 0
    buffer = io.BytesIO()
    for line in source:
        buffer.write(line)
        if buffer.tell() >= CHUNK:
            send(web, address, offset, buffer.getvalue(), "upload")
            offset += buffer.tell()
            buffer = io.BytesIO()
    return str(send(web, address, offset, buffer.getvalue(), "upload, finalize").json()["file"]["name"])


def send(web: httpx2.Client, address: str, offset: int, content: bytes, command: str) -> httpx2.Response:
    """Send one chunk."""
    headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
    reply = web.post(address, content=content, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply


def one_batch(web: httpx2.Client) -> None:
    """Work a small batch, so that the engine is loaded."""
    request = {"request": {"content": {"parts": [{"text": "a"}]}}}
    reply = web.post(
        f"/v1/models/{MODEL}:asyncBatchEmbedContent",
        json={"batch": {"inputConfig": {"requests": {"requests": [request]}}}},
    )
    await_final(web, reply.json()["name"])


def engines(service: Served) -> float:
    """Return what the engine processes hold, in MiB."""
    assert service.process is not None
    return sum(
        mebibytes(pid) for pid, line in family(service.process.pid).items() if "embatch.engine.host" in line
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_requests_in_bounded_memory(tmp_path: Path) -> None:
    """Service and engines together stay under 600 MiB beyond what the loaded engine has by itself."""
    with serving(tmp_path / "data") as service, httpx2.Client(base_url=service.url, timeout=120) as web:
        assert service.process is not None
        one_batch(web)
        own = engines(service)
        assert own > 0
        with Gauge(service.process.pid) as gauge:
            began = time.monotonic()
            name = upload(web, lines())
            uploaded = time.monotonic()
            submitted = web.post(
                f"/v1/models/{MODEL}:asyncBatchEmbedContent",
                json={"batch": {"displayName": "million", "inputConfig": {"fileName": name}}},
            )
            operation = await_final(web, submitted.json()["name"], within=1200)
            ended = time.monotonic()
            stats = operation["metadata"]["batchStats"]
            assert stats["successfulRequestCount"] == str(REQUESTS)
            count = size = 0
            address = f"/v1/{operation['metadata']['output']['responsesFile']}:download?alt=media"
            with web.stream("GET", address) as download:
                assert download.status_code == 200
                for piece in download.iter_bytes():
                    count += piece.count(b"\n")
                    size += len(piece)
            read = time.monotonic()
        assert count == REQUESTS
        beyond = gauge.peak - own
        parts = ", ".join(f"{part} {mib:.0f}" for part, mib in gauge.parts.items())
        print(  # noqa: T201  (the figure of I8)
            f"\npeak {gauge.peak:.0f} MiB ({parts}), engine alone {own:.0f}, beyond it {beyond:.0f} of "
            f"{LIMIT_MIB}; upload {uploaded - began:.0f} s, batch {ended - uploaded:.0f} s, "
            f"download of {size / 1e6:.0f} MB {read - ended:.0f} s, cores {os.cpu_count()}"
        )
        assert beyond < LIMIT_MIB
        assert service.stop() == 0
