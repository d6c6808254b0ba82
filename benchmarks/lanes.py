"""What a bulk batch costs the queries beside it, and what the queries cost the batch.

    .venv/bin/python benchmarks/lanes.py [--count 2000] [--rounds 3] [--rate 10] [--json FILE]

Two services, one with bulk engines at the default niceness and one at niceness 0, on data folders of their
own. A round runs on each in turn: queries alone for as long as `--idle` says, a batch of `--count` passages
alone, and the same batch with `--rate` queries a second beside it. A query is one passage through
`embedContent` over HTTP, asked at its planned moment whether or not the one before has been answered, and its
latency counts from that moment. The batch's time is from acceptance to COMPLETED. `beyond` is what the batch
lost on top of the CPU seconds of the query process. Rounds are interleaved: trust the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from corpus import passages

from embatch import Client
from embatch.engine.machine import cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NICE: Final = ("19", "0")


@dataclass
class Lane:
    """What was measured of one service, over all rounds."""

    idle: list[float] = field(default_factory=list)
    """Seconds of each query while nothing else ran."""
    loaded: list[float] = field(default_factory=list)
    """Seconds of each query while a batch ran."""
    alone: list[float] = field(default_factory=list)
    """Seconds of each batch without queries."""
    beside: list[float] = field(default_factory=list)
    """Seconds of each batch with queries."""
    query_cpu: list[float] = field(default_factory=list)
    """CPU seconds of the query process in each batch with queries."""


class Service:
    """A running service and a client of it."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self._process = url, process
        self._http = httpx2.Client(timeout=120.0)

    def query(self, text: str) -> None:
        """Ask for one embedding."""
        body = {"content": {"parts": [{"text": text}]}}
        self._http.post(f"{self.url}/v1/models/all-MiniLM-L6-v2:embedContent", json=body).raise_for_status()

    def batch(self, texts: Sequence[str]) -> float:
        """Embed the texts as a batch; return the seconds from acceptance to COMPLETED."""
        with Client(self.url) as client:
            batch = client.async_batch_embed_contents(texts, display_name="lanes")
            batch = client.await_batch_completion(batch.name, poll_interval=0.5)
            assert batch.batch_stats.successful_request_count == len(texts), batch  # noqa: S101
            assert batch.create_time is not None and batch.end_time is not None  # noqa: S101, PT018
            client.delete_batch(batch.name)
            return (batch.end_time - batch.create_time).total_seconds()

    def query_cpu(self) -> float:
        """Return the CPU seconds of the query process, which started last, so far."""
        listed = Path(f"/proc/{self._process}/task").glob("*/children")
        newest = max(int(child) for one in listed for child in one.read_text().split())
        numbers = Path(f"/proc/{newest}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: str, nice: str) -> Iterator[Service]:
    """Run a service whose bulk engines have this niceness."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "embatch", "serve", "--data", f"{folder}/{nice}", "--port", str(port)]
    with subprocess.Popen(
        command, env={**os.environ, "EMBATCH_BULK_NICE": nice}, stderr=subprocess.DEVNULL
    ) as process:
        service = Service(f"http://127.0.0.1:{port}", process.pid)
        try:
            while not listens(port):
                time.sleep(0.1)
            yield service
        finally:
            process.terminate()


def listens(port: int) -> bool:
    """Return whether somebody answers on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def ask(service: Service, texts: Sequence[str], rate: float, over: threading.Event) -> list[float]:
    """Ask `rate` queries a second until told to stop; return the seconds of each from its planned moment."""
    begun = time.monotonic()
    seconds: list[float] = []

    def one(planned: float, text: str) -> None:
        service.query(text)
        seconds.append(time.monotonic() - planned)

    with ThreadPoolExecutor(64) as pool:
        for number, text in enumerate(itertools.cycle(texts)):
            planned = begun + number / rate
            if over.wait(max(0.0, planned - time.monotonic())):
                break
            pool.submit(one, planned, text)
    return seconds


def measure(count: int, rounds: int, rate: float, idle: float) -> dict[str, Lane]:
    """Return what was measured by niceness."""
    found = list(dict.fromkeys(one.text for one in passages(count + 300)))
    texts, queries = found[: count - 300], found[-300:]
    lanes = {nice: Lane() for nice in NICE}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(folder, NICE[0]) as a,
        serving(folder, NICE[1]) as b,
    ):
        for service in (a, b):  # load both engines of each and compile their shapes
            service.batch(texts)
            for text in queries:
                service.query(text)
        for number in range(rounds):
            turns = list(zip(NICE, (a, b), strict=True))
            for nice, service in turns[:: 1 if number % 2 else -1]:
                lane, over = lanes[nice], threading.Event()
                threading.Timer(idle, over.set).start()
                lane.idle += ask(service, queries, rate, over)
                lane.alone.append(service.batch(texts))
                over, before = threading.Event(), service.query_cpu()
                with ThreadPoolExecutor(1) as beside:
                    asked = beside.submit(ask, service, queries, rate, over)
                    lane.beside.append(service.batch(texts))
                    over.set()
                    lane.loaded += asked.result()
                lane.query_cpu.append(service.query_cpu() - before)
    return lanes


def share(seconds: Sequence[float], of_hundred: int) -> float:
    """Return a percentile in milliseconds."""
    return 1000 * statistics.quantiles(seconds, n=100, method="inclusive")[of_hundred - 1]


def row(lane: Lane) -> dict[str, float]:
    """Return the figures of one service."""
    alone, beside = statistics.median(lane.alone), statistics.median(lane.beside)
    own = statistics.median(lane.query_cpu) / cores()
    return {
        "idle_p50_ms": share(lane.idle, 50),
        "idle_p99_ms": share(lane.idle, 99),
        "loaded_p50_ms": share(lane.loaded, 50),
        "loaded_p99_ms": share(lane.loaded, 99),
        "p99_ratio": share(lane.loaded, 99) / share(lane.idle, 99),
        "batch_alone_s": alone,
        "batch_beside_s": beside,
        "lost": beside / alone - 1,
        "beyond": (beside - own) / alone - 1,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Measure queries and a batch on the same cores.")
    parser.add_argument("--count", type=int, default=2000, help="passages of the batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=10.0, help="queries a second")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of queries alone, each round")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures: dict[str, Any] = {}
    print(f"{'bulk nice':>9}{'idle p50':>10}{'p99':>7}{'loaded p50':>12}{'p99':>7}{'ratio':>7}", end="")
    print(f"{'batch s':>9}{'with queries':>14}{'lost':>7}{'beyond':>8}")
    for nice, lane in measure(chosen.count, chosen.rounds, chosen.rate, chosen.idle).items():
        one = figures[nice] = row(lane)
        print(
            f"{nice:>9}{one['idle_p50_ms']:>10.1f}{one['idle_p99_ms']:>7.1f}{one['loaded_p50_ms']:>12.1f}"
            f"{one['loaded_p99_ms']:>7.1f}{one['p99_ratio']:>7.2f}{one['batch_alone_s']:>9.1f}"
            f"{one['batch_beside_s']:>14.1f}{one['lost']:>7.1%}{one['beyond']:>8.1%}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
