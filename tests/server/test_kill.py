"""Kill -9 of service and engines at random moments: every accepted request ends exactly once (I1, I2, I4).

Batches of 200 requests are submitted while the whole process group is killed again and again; a poller looks
all the while. At the end the results are compared with those of a service nobody disturbed. By default there
are fifteen batches and five kills, the last of them while the service starts; the long form has fifty and
twenty.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from serving import MODEL, Served, await_final, serving

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = 200
SEED = 20
FINAL = {f"BATCH_STATE_{state}" for state in ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")}


def body(number: int) -> dict[str, Any]:
    """Return batch `number`: texts of uneven length, among them some that cannot be embedded."""
    chance = random.Random(number)
    words = ["river", "stone", "lamp", "orchard", "signal", "copper", "winter", "ladder"]
    requests = []
    for index in range(REQUESTS):
        text = " ".join(chance.choices(words, k=chance.randint(5, 60))) + f" {number}.{index}"
        requests.append(
            {
                "request": {"content": {"parts": [{"text": "" if index % 50 == 7 else text}]}},
                "metadata": {"at": [number, index]},
            }
        )
    return {"batch": {"displayName": f"{number}", "inputConfig": {"requests": {"requests": requests}}}}


def submit(service: Served, number: int) -> str:
    """Submit a batch, again and again under one key until it is acknowledged; return its name."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            reply = httpx2.post(
                f"{service.url}/v1/models/{MODEL}:asyncBatchEmbedContent",
                json=body(number),
                headers={"Idempotency-Key": f"kill-{number}"},
                timeout=60,
            )
            if reply.status_code == 200:
                return str(reply.json()["name"])
            assert reply.status_code == 503, reply.text
        time.sleep(0.05)  # a service that is gone gives no signal
    raise AssertionError(f"batch {number} was not accepted")


@dataclass
class Poller:
    """Reads the list of batches over and over, across restarts, and checks every answer."""

    service: Served
    polls: int = 0
    faults: list[str] = field(default_factory=list)
    processing: int = 0
    """Batches that were being worked in the last answer."""
    pending: dict[str, int] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Poll about twenty times a second until told to stop."""
        while not self.stop.wait(0.05):
            with contextlib.suppress(httpx2.TransportError):
                reply = httpx2.get(f"{self.service.url}/v1/batches", params={"pageSize": 1000}, timeout=60)
                if reply.status_code == 200:
                    self.look(reply.json().get("operations", []))

    def look(self, operations: list[dict[str, Any]]) -> None:
        """Check one answer against all before."""
        self.polls += 1
        self.processing = sum(
            operation["metadata"]["state"] == "BATCH_STATE_RUNNING" for operation in operations
        )
        for operation in operations:
            name, metadata = operation["name"], operation["metadata"]
            stats = defaultdict(int, {key: int(value) for key, value in metadata["batchStats"].items()})
            parts = [stats[f"{part}RequestCount"] for part in ("successful", "failed", "pending")]
            if sum(parts) != stats["requestCount"] or stats["requestCount"] != REQUESTS:
                self.faults.append(f"{name}: counts do not add up: {dict(stats)}")
            if parts[2] > self.pending.setdefault(name, REQUESTS):
                self.faults.append(f"{name}: pending grew to {parts[2]}")
            self.pending[name] = parts[2]
            frozen = {"state": metadata["state"], "stats": parts}
            if name in self.ended and self.ended[name] != frozen:
                self.faults.append(f"{name}: changed after its end")
            if metadata["state"] in FINAL:
                self.ended[name] = frozen


def results(web: httpx2.Client, name: str) -> list[dict[str, Any]]:
    """Return what a completed batch gives back."""
    operation = await_final(web, name)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    items: list[dict[str, Any]] = operation["response"]["inlinedResponses"]["inlinedResponses"]
    return items


def undisturbed(data: Path, batches: int) -> list[list[dict[str, Any]]]:
    """Return the results of all batches from a service that nobody kills."""
    with serving(data) as service, httpx2.Client(base_url=service.url, timeout=60) as web:
        names = [submit(service, number) for number in range(batches)]
        return [results(web, name) for name in names]


@pytest.mark.parametrize(("batches", "times"), [(15, 5), pytest.param(50, 20, marks=pytest.mark.long)])
def test_killed_again_and_again_every_request_ends_once(tmp_path: Path, batches: int, times: int) -> None:
    """No request lost, doubled or changed, whatever was running when the group died."""
    chance = random.Random(SEED)
    expected = undisturbed(tmp_path / "calm", batches)
    names: dict[int, str] = {}
    kills = while_processing = 0
    with serving(tmp_path / "data", "--engine-option", "delay=0.02") as service:
        poller = Poller(service)
        watching = threading.Thread(target=poller.run)
        watching.start()

        def submit_all(numbers: range) -> None:
            for number in numbers:
                names[number] = submit(service, number)

        submitters = [threading.Thread(target=submit_all, args=(range(half, batches, 2),)) for half in (0, 1)]
        for thread in submitters:
            thread.start()
        while kills < times:
            # Most kills hit a working service, some one that is just starting.
            starting = kills % 5 == 4
            if not starting:
                seen = poller.polls
                deadline = time.monotonic() + 60
                while poller.polls < seen + 2 or not poller.processing:
                    assert time.monotonic() < deadline, "nothing is being worked"
                    time.sleep(0.01)  # the poller looks, and this waits for what it sees
            time.sleep(chance.uniform(0.0, 0.8))  # any moment is what is wanted
            while_processing += (not starting) and poller.processing > 0
            service.kill()
            kills += 1
            if kills % 5 == 4:
                service.launch()
            else:
                service.start()
        if service.process is not None and service.process.poll() is None:
            service.await_ready()
        else:
            service.start()
        for thread in submitters:
            thread.join(600)
        with httpx2.Client(base_url=service.url, timeout=60) as web:
            found = [results(web, names[number]) for number in range(batches)]
            listed = web.get("/v1/batches", params={"pageSize": 1000}).json()["operations"]
        poller.stop.set()
        watching.join(60)
        assert service.stop() == 0

    requests = batches * REQUESTS
    lost = sum(REQUESTS - len(items) for items in found)
    same = sum(
        one == other
        for items, calm in zip(found, expected, strict=True)
        for one, other in zip(items, calm, strict=True)
    )
    print(  # noqa: T201  (the figures of I1, I2 and I4)
        f"\naccepted {requests}, lost {lost}, identical {same}, batches {len(listed)}, kills {kills}, "
        f"while processing {while_processing}, polls {poller.polls}, violations {len(poller.faults)}"
    )
    assert lost == 0
    assert same == requests
    assert sorted(operation["name"] for operation in listed) == sorted(names.values())
    assert poller.faults == []
    assert poller.polls > 2 * times
    assert while_processing >= times * 3 // 4
