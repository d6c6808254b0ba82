"""Power cuts under a working service: what it acknowledged is there afterwards (I3)."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from power import Volume, volume
from serving import MODEL, Served, await_final, serving

if TYPE_CHECKING:
    from pathlib import Path

CUTS = 10
REQUESTS = 40
SEED = 3


def body(number: int) -> dict[str, Any]:
    """Return the body of batch `number`."""
    texts = [
        {"request": {"content": {"parts": [{"text": f"batch {number} text {at}"}]}}} for at in range(REQUESTS)
    ]
    return {"batch": {"displayName": f"{number}", "inputConfig": {"requests": {"requests": texts}}}}


def content(number: int) -> bytes:
    """Return the bytes of file `number`."""
    line = json.dumps({"request": {"content": {"parts": [{"text": f"file {number}"}]}}})
    return f"{line}\n".encode() * (number % 7 + 1)


@dataclass
class Acknowledged:
    """What the service has confirmed, over all cuts."""

    batches: dict[str, int] = field(default_factory=dict)
    cancels: int = 0
    files: dict[str, int] = field(default_factory=dict)
    completed: dict[str, dict[str, Any]] = field(default_factory=dict)
    count: int = 0


class Load:
    """Submits, cancels, uploads and reads until the service breaks away under it."""

    def __init__(self, service: Served, known: Acknowledged) -> None:
        self.service, self.known = service, known
        self.enough = threading.Event()
        self.progress = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        """End the load."""
        self.enough.set()
        self._thread.join(60)

    def _run(self) -> None:
        with (
            contextlib.suppress(httpx2.TransportError),
            httpx2.Client(base_url=self.service.url, timeout=10) as web,
        ):
            while not self.enough.is_set():
                number = self.known.count = self.known.count + 1
                if not self._step(web, number):
                    return
                self.progress.release()

    def _step(self, web: httpx2.Client, number: int) -> bool:
        reply = web.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body(number))
        if reply.status_code != 200:
            assert reply.status_code == 503, reply.text
            return False
        name = reply.json()["name"]
        self.known.batches[name] = number
        if number % 5 == 0 and web.post(f"/v1/{name}:cancel").status_code == 200:
            self.known.cancels += 1
            self._look(web, name)
        if number % 3 == 0:
            headers = {"Content-Type": "application/jsonl"}
            stored = web.post("/upload/v1/files", content=content(number), headers=headers)
            if stored.status_code == 200:
                self.known.files[stored.json()["file"]["name"]] = number
        if number % 2 == 0:
            self._look(web, random.Random(number).choice(list(self.known.batches)))
        return True

    def _look(self, web: httpx2.Client, name: str) -> None:
        looked = web.get(f"/v1/{name}")
        if looked.status_code == 200 and looked.json().get("done"):
            self.known.completed[name] = looked.json()


def check(service: Served, known: Acknowledged) -> None:
    """Compare everything acknowledged so far with what is there."""
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        for name, number in known.batches.items():
            operation = await_final(web, name)
            assert operation["metadata"]["displayName"] == str(number)
            if name in known.completed:
                assert operation == known.completed[name]
            # A cancel that came after the last result changes nothing.
            states = {"BATCH_STATE_SUCCEEDED"} | ({"BATCH_STATE_CANCELLED"} if number % 5 == 0 else set())
            assert operation["metadata"]["state"] in states
            if operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED":
                assert operation["metadata"]["batchStats"]["successfulRequestCount"] == str(REQUESTS)
        for name, number in known.files.items():
            assert web.get(f"/v1/{name}").status_code == 200
            assert (service.data / name).read_bytes() == content(number)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_power_cuts(tmp_path: Path) -> None:
    """Submits, cancels, uploads and finished results, over ten cuts at random moments."""
    chance = random.Random(SEED)
    known = Acknowledged()
    with volume(tmp_path) as disk, serving(disk.root / "data", log=tmp_path / "log") as service:
        for _ in range(CUTS):
            load = Load(service, known)
            for _ in range(chance.randint(5, 60)):
                assert load.progress.acquire(timeout=60)
            cut(disk, service)
            load.join()
            service.start()
            check(service, known)
        assert service.stop() == 0
    print(  # noqa: T201  (the figures of I3)
        f"\ncuts {CUTS}, acknowledged: batches {len(known.batches)}, cancels {known.cancels}, "
        f"files {len(known.files)}, finished {len(known.completed)}; lost 0, corrupt 0"
    )
    assert len(known.completed) > 10


def cut(disk: Volume, service: Served) -> None:
    """Cut the power under the service, and bring the volume back."""
    disk.cut()
    service.kill()
    disk.remount()
