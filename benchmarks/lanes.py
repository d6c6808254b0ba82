"""What a bulk batch costs the queries beside it, and what the queries cost the batch.

    .venv/bin/python benchmarks/lanes.py [--count 100000] [--rounds 3] [--seconds 30] [--json FILE]

Two services, one with bulk engines at the default niceness and one at niceness 0, on data folders of their
own. A round runs on each in turn: queries alone, then a batch of `--count` requests, and while it runs
windows of `--seconds` without and with `--rate` queries a second (10); then the batch is cancelled. A query
is one passage through `embedContent` over HTTP, asked at its planned moment whether or not the one before has
been answered, and its latency counts from that moment. The batch's rate is tokens a second over a window;
`lost` is what it falls by beside the queries, `own` the share of the machine's CPU time that the query
process took, `beyond` the difference. Rounds are interleaved: trust the ratios. A batch beyond the corpus's
20,000 passages has them again, too far apart to be merged. It has to outlast its windows: twice `--seconds`
and what loading takes, so give a larger `--count` to a fast machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import CORPUS, passages
from benchmarks.engines import machine
from benchmarks.served import Served, serving

from embatch.engine.machine import cores

if TYPE_CHECKING:
    from collections.abc import Sequence

NICE: Final = ("19", "0")
QUERIES: Final = 300


@dataclass
class Lane:
    """What was measured of one service, over all rounds."""

    idle: list[float] = field(default_factory=list)
    """Seconds of each query while nothing else ran."""
    loaded: list[float] = field(default_factory=list)
    """Seconds of each query while a batch ran."""
    alone: list[float] = field(default_factory=list)
    """Tokens a second of the batch in each window without queries."""
    beside: list[float] = field(default_factory=list)
    """Tokens a second of the batch in each window with queries."""
    own: list[float] = field(default_factory=list)
    """Share of the machine's CPU time that the query process took in each window with queries."""


class Service:
    """A running service and a client of it."""

    def __init__(self, served: Served) -> None:
        assert served.url is not None  # noqa: S101  (it listens on a port)
        self.served, self.url = served, served.url
        self._http = httpx2.Client(timeout=120.0)
        self._client = served.client()

    def query(self, text: str) -> None:
        """Ask for one embedding."""
        body = {"content": {"parts": [{"text": text}]}}
        self._http.post(f"{self.url}/v1/models/all-MiniLM-L6-v2:embedContent", json=body).raise_for_status()

    def begin(self, texts: Sequence[str]) -> str:
        """Hand over a batch; return its name once its first vectors are there."""
        name = self._client.async_batch_embed_contents(texts, display_name="lanes").name
        while not self.tokens(name):
            time.sleep(0.2)
        return name

    def tokens(self, name: str) -> int:
        """Return the tokens of a batch that are embedded, durable or not."""
        batch = self._client.get_batch_status(name)
        if batch.done:
            raise SystemExit(f"the batch is {batch.state} before its windows are over: give a larger --count")
        return batch.usage.token_count + batch.usage.uncommitted_token_count

    def rate(self, name: str, seconds: float) -> float:
        """Let a batch run for so long; return its tokens a second."""
        before, begun = self.tokens(name), time.monotonic()
        time.sleep(seconds)
        return (self.tokens(name) - before) / (time.monotonic() - begun)

    def end(self, name: str) -> None:
        """Cancel a batch and drop it."""
        self._client.cancel_batch(name)
        self._client.delete_batch(name)

    def query_cpu(self) -> float:
        """Return the CPU seconds of the query process so far: of two engines, the one started last."""
        engines = self.served.engine_seconds()
        if len(engines) != 2:
            raise SystemExit(f"the service has {len(engines)} engine processes, not two: which is which?")
        return engines[max(engines)]


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


def measure(count: int, rounds: int, rate: float, seconds: float) -> tuple[dict[str, Lane], list[str]]:
    """Return what was measured by niceness, and the engines."""
    found = list(dict.fromkeys(passages(min(count + QUERIES, CORPUS))))
    queries, texts = found[:QUERIES], list(itertools.islice(itertools.cycle(found[QUERIES:]), count))
    lanes = {nice: Lane() for nice in NICE}
    with ExitStack() as stack:
        a, b = (Service(stack.enter_context(serving(environ={"EMBATCH_BULK_NICE": nice}))) for nice in NICE)
        for service in (a, b):  # load both engines of each and compile their shapes
            name = service.begin(texts)
            for text in queries:
                service.query(text)
            service.end(name)
        for number in range(rounds):
            turns = list(zip(NICE, (a, b), strict=True))
            for nice, service in turns[:: 1 if number % 2 else -1]:
                round_of(service, lanes[nice], queries, texts, rate, seconds)
        return lanes, a.served.engines()


def round_of(
    service: Service, lane: Lane, queries: Sequence[str], texts: Sequence[str], rate: float, seconds: float
) -> None:
    """Measure one service once."""
    over = threading.Event()
    threading.Timer(seconds, over.set).start()
    lane.idle += ask(service, queries, rate, over)
    name = service.begin(texts)
    lane.alone.append(service.rate(name, seconds / 2))
    over, before, begun = threading.Event(), service.query_cpu(), time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(ask, service, queries, rate, over)
        lane.beside.append(service.rate(name, seconds))
        over.set()
        lane.loaded += asked.result()
    lane.own.append((service.query_cpu() - before) / (time.monotonic() - begun) / cores())
    lane.alone[-1] = (lane.alone[-1] + service.rate(name, seconds / 2)) / 2
    service.end(name)


def share(seconds: Sequence[float], of_hundred: int) -> float:
    """Return a percentile in milliseconds."""
    return 1000 * statistics.quantiles(seconds, n=100, method="inclusive")[of_hundred - 1]


def row(lane: Lane) -> dict[str, float]:
    """Return the figures of one service."""
    lost = [1 - beside / alone for alone, beside in zip(lane.alone, lane.beside, strict=True)]
    beyond = [all_ - own for all_, own in zip(lost, lane.own, strict=True)]
    return {
        "queries": len(lane.loaded),
        "idle_p50_ms": share(lane.idle, 50),
        "idle_p99_ms": share(lane.idle, 99),
        "loaded_p50_ms": share(lane.loaded, 50),
        "loaded_p99_ms": share(lane.loaded, 99),
        "p99_ratio": share(lane.loaded, 99) / share(lane.idle, 99),
        "alone_tokens_per_second": statistics.median(lane.alone),
        "beside_tokens_per_second": statistics.median(lane.beside),
        "lost": statistics.median(lost),
        "own": statistics.median(lane.own),
        "beyond": statistics.median(beyond),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Measure queries and a batch on the same cores.")
    parser.add_argument("--count", type=int, default=100_000, help="requests of the batch (100000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=10.0, help="queries a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a window")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    lanes, engines = measure(chosen.count, chosen.rounds, chosen.rate, chosen.seconds)
    figures: dict[str, Any] = {"machine": machine(), "engines": engines}
    print(f"bulk and query engine: {'; '.join(engines)}")
    print(f"{'bulk nice':>9}{'idle p50':>10}{'p99':>7}{'loaded p50':>12}{'p99':>7}{'ratio':>7}", end="")
    print(f"{'batch tok/s':>13}{'with queries':>14}{'lost':>7}{'own':>7}{'beyond':>8}")
    for nice, lane in lanes.items():
        one = figures[nice] = row(lane)
        print(
            f"{nice:>9}{one['idle_p50_ms']:>10.1f}{one['idle_p99_ms']:>7.1f}{one['loaded_p50_ms']:>12.1f}"
            f"{one['loaded_p99_ms']:>7.1f}{one['p99_ratio']:>7.2f}{one['alone_tokens_per_second']:>13.0f}"
            f"{one['beside_tokens_per_second']:>14.0f}{one['lost']:>7.1%}{one['own']:>7.1%}{one['beyond']:>8.1%}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
