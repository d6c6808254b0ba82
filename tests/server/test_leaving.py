"""What those hear who wait while the service ends: that it ends, in the envelope, and when to come back."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from guarded_server import whole_answer
from serving import MODEL, Served, connect, serving

CONTENT = {"content": {"parts": [{"text": "a text"}]}}
ENTRY = {"model": f"models/{MODEL}", **CONTENT}
WAITING = {
    "embedContent": CONTENT,
    "batchEmbedContents": {"requests": [ENTRY]},
    "countTokens": {"contents": [CONTENT["content"]]},
    "embedReference": {"requests": [ENTRY]},
}


def told_to_come_back(status: int, headers: Any, body: bytes) -> None:
    """Check the answer of a service that ends."""
    assert status == 503, body
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert (error["code"], error["status"]) == (503, "UNAVAILABLE")
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    assert kinds["RetryInfo"]["retryDelay"] == "5.000s"
    assert kinds["BadRequest"]["fieldViolations"][0]["reason"] == "SHUTTING_DOWN"
    assert headers["retry-after"] == "5"


def test_calls_that_wait_when_the_service_ends_are_told_to_come_back(tmp_path: Path) -> None:
    """Whatever they wait for, an engine or the rest of their own body; the service is gone all the same."""
    with (
        serving(
            tmp_path / "data", "--engine-option", "delay=60", environ={"EMBATCH_DRAIN_SECONDS": "1"}
        ) as service,
        httpx2.Client(base_url=service.url, timeout=60) as web,
        ThreadPoolExecutor(len(WAITING)) as threads,
        connect(service.url) as upload,
        connect(service.url) as chunk,
    ):
        begun = web.post(
            "/upload/v1/files",
            json={"file": {"mimeType": "application/jsonl"}},
            headers={"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"},
        )
        address = begun.headers["x-goog-upload-url"].removeprefix(service.url)
        head = "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/jsonl\r\nContent-Length: 99\r\n"
        upload.sendall(f"POST /upload/v1/files {head}\r\nhalf".encode())
        step = "X-Goog-Upload-Command: upload, finalize\r\nX-Goog-Upload-Offset: 0\r\n"
        chunk.sendall(f"POST {address} {head}{step}\r\nhalf".encode())
        asked = {
            name: threads.submit(web.post, f"/v1/models/{MODEL}:{name}", json=body)
            for name, body in WAITING.items()
        }
        until_asked(service, web, len(asked) + 2)
        assert service.stop(within=30) == 0
        for name, answer in asked.items():
            if name == "countTokens" and answer.result().status_code == 200:
                continue  # the engine that counts may have been quick
            told_to_come_back(answer.result().status_code, answer.result().headers, answer.result().content)
        for stream in (upload, chunk):
            status, headers, body = whole_answer(stream)
            told_to_come_back(
                status, {name.decode(): value.decode() for name, value in headers.items()}, body
            )
        events = [str(event["event"]) for event in service.events()]
        assert not [event for event in events if "ASGI" in event or event == "bug"]


def until_asked(service: Served, web: httpx2.Client, count: int) -> None:
    """Return once so many others have come to the service, as the system's table of connections shows."""
    port = f":{int(service.url.rpartition(':')[2]):04X}"
    for _ in range(2000):
        web.get("/healthz")
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if sum(line[1].endswith(port) and line[3] == "01" for line in lines) > count:
            web.get("/healthz")
            return
    pytest.fail("they did not come")


def test_a_run_that_had_just_begun_goes_on_over_a_restart(tmp_path: Path) -> None:
    """Its first call waits for an engine when the service ends; the next service finishes it."""
    (tmp_path / "texts.jsonl").write_text(
        "".join(f'{{"id": {at}, "text": "text {at}"}}\n' for at in range(20))
    )
    environ = {"EMBATCH_DRAIN_SECONDS": "1"}
    with serving(tmp_path / "data", "--engine-option", "delay=30", environ=environ) as service:
        run = subprocess.Popen(
            [
                *(sys.executable, "-m", "embatch", "embed", str(tmp_path / "texts.jsonl")),
                *("--id", "id", "--text", "text", "-o", str(tmp_path / "out.jsonl"), "--to", service.url),
                *("--data", str(service.data)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with httpx2.Client(base_url=service.url, timeout=60) as web:
                until_asked(service, web, 1)
            port = service.url.rpartition(":")[2]
            assert service.stop(within=60) == 0
            service.flags = ("--port", port)
            service.start()
            said = run.communicate(timeout=120)
        finally:
            run.kill()
            run.wait()
    assert run.returncode == 0, said
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
