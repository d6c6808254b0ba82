"""What the service costs around the engine: the hashing engine computes next to nothing, the rest is ours.

    .venv/bin/python benchmarks/control.py [--part submit|small|pollers|reads] [--rows 1000000] [--quick]
                                           [--json FILE]

`submit` takes batches from the call that submits them to their embeddings in an array, through `Client`, over
the local target's socket and over HTTP in turn: texts go as an Arrow stream (up to 1,000 inline, as JSON),
results come as one. `accept` is the submit, `work` what passes until COMPLETED, `read` the rest; CPU seconds
are per million rows, of the client, the service's own process and its engine process; database bytes are what
its pages grew by. `small` submits many batches of ten from 16 threads, a client each. `pollers` is one batch
alone and beside a process in which many clients poll it, patient (every 2 seconds) and impatient (again at
once). `reads` reads one batch again and again, without and with decoding. Client and service share the cores:
a rate is of both together. `--quick` shows that all of it works and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.polling import percentiles, poll, poller
from benchmarks.served import Served, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch import Batch, Client

MODEL: Final = "hashing"
SMALL_ROWS: Final = 10
THREADS: Final = 16
PATIENT_SECONDS: Final = 2.0
"""What the client waits between two polls of a small batch."""
INLINE_ROWS: Final = 1_000
"""What the client sends inline."""
REPEATED_ROWS: Final = 100_000
"""Batches of `submit` that are larger are measured once, not every round."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rows: int
    """Of the largest batch of `submit`."""
    rounds: int
    small: int
    """Batches of `small`."""
    pollers: int
    polled_rows: int
    """Of the batch that is polled."""
    read_rows: int
    """Of the batch that is read."""
    text_bytes: int
    dimensions: int

    @property
    def flags(self) -> list[str]:
        """What the service is started with."""
        engine = ["--engine", "hashing", "--engine-option", f"dimensions={self.dimensions}"]
        return ["--model", MODEL, *engine]

    @property
    def steps(self) -> list[int]:
        """Return the sizes of the batches of `submit`, smallest first: the powers of ten from 1,000 on."""
        powers = (10**power for power in range(3, 10) if 10**power < self.rows)
        return [*powers, self.rows]


def texts(count: int, size: int, label: str) -> list[str]:
    """Return distinct ASCII texts of this many bytes, or of what their number and label need."""
    filler = "the quick brown fox jumps over the lazy dog " * (size // 44 + 1)
    return [f"{label} {number} {filler}"[: max(size, len(label) + 9)] for number in range(count)]


def finish(client: Client, batch: Batch, rows: int) -> Batch:
    """Wait until a batch is COMPLETED without a failed request, and return it."""
    pause = max(0.01, min(0.05, rows / 400_000))
    batch = client.await_batch_completion(batch.name, poll_interval=pause)
    if batch.batch_stats.successful_request_count != rows:
        raise RuntimeError(f"not all of {rows} requests succeeded: {batch}")
    return batch


# submit


def one_batch(served: Served, client: Client, given: list[str]) -> dict[str, float]:
    """Take texts from the submit to their array; return what passed and what it cost."""
    before, own, stored = served.spent(), time.process_time(), served.database_bytes()
    begun = time.perf_counter()
    batch = client.async_batch_embed_contents(given, display_name="control")
    accepted = time.perf_counter()
    batch = finish(client, batch, len(given))
    worked = time.perf_counter()
    found = client.get_batch_embeddings(batch).to_numpy()
    ended = time.perf_counter()
    if len(found) != len(given):
        raise RuntimeError(f"{len(found)} rows came back of {len(given)}")
    spent, millions = served.spent() - before, len(given) / 1e6
    row = {
        "rows": len(given),
        "rows_per_second": len(given) / (ended - begun),
        "accept_seconds": accepted - begun,
        "work_seconds": worked - accepted,
        "read_seconds": ended - worked,
        "client_cpu_per_million": (time.process_time() - own) / millions,
        "service_cpu_per_million": spent.service / millions,
        "engine_cpu_per_million": spent.engines / millions,
        "database_bytes_per_row": (served.database_bytes() - stored) / len(given),
    }
    client.delete_batch(batch.name)
    return row


def submit(sizes: Sizes) -> dict[str, Any]:
    """Return the repeats of every size, by target, and the database's bytes a row of the largest."""
    found: dict[str, list[dict[str, float]]] = {"local": [], "http": []}
    with serving(sizes.flags, private=True) as local, serving(sizes.flags) as http:
        turns = [("local", local, local.client()), ("http", http, http.client())]
        for _, served, client in turns:  # the engine loads, and the first connection is made
            one_batch(served, client, texts(100, sizes.text_bytes, "warm"))
        for number in range(sizes.rounds):
            for rows in sizes.steps:
                if number and rows > REPEATED_ROWS:
                    continue
                given = texts(rows, sizes.text_bytes, f"{number}")
                for target, served, client in turns[:: 1 if number % 2 else -1]:
                    found[target].append(one_batch(served, client, given))
        for _, _, client in turns:
            client.close()
    return {"targets": found}


def print_submit(found: dict[str, Any]) -> None:
    """Print medians by target and size."""
    print(f"{'submit':8}{'rows':>9}{'rows/s':>9}{'least to most':>18}", end="")
    print(
        f"{'accept s':>10}{'work s':>8}{'read s':>8}{'CPU s/M: client':>17}{'service':>9}{'engine':>8}",
        end="",
    )
    print(f"{'database B/row':>16}")
    for target, repeats in found["targets"].items():
        for rows in sorted({one["rows"] for one in repeats}):
            those = [one for one in repeats if one["rows"] == rows]
            middle = {name: statistics.median(one[name] for one in those) for name in those[0]}
            rates = [one["rows_per_second"] for one in those]
            print(
                f"{target:8}{rows:>9}{middle['rows_per_second']:>9.0f}"
                f"{f'{min(rates):.0f} to {max(rates):.0f}':>18}{middle['accept_seconds']:>10.2f}"
                f"{middle['work_seconds']:>8.2f}{middle['read_seconds']:>8.2f}"
                f"{middle['client_cpu_per_million']:>17.1f}{middle['service_cpu_per_million']:>9.1f}"
                f"{middle['engine_cpu_per_million']:>8.1f}{middle['database_bytes_per_row']:>16.2f}"
            )


# small


def small(sizes: Sizes) -> dict[str, Any]:
    """Return how fast many small batches are accepted and done, and how long a submit takes."""
    with serving(sizes.flags) as served, ThreadPoolExecutor(THREADS) as pool:
        clients = [served.client() for _ in range(THREADS)]
        for client in clients:
            client.async_batch_embed_contents(["warm"], display_name="warm", model=MODEL)

        def work(client: Client, share: range) -> tuple[list[float], Batch]:
            seconds = []
            for number in share:
                given = texts(SMALL_ROWS, sizes.text_bytes, f"{number}-")
                begun = time.perf_counter()
                last = client.async_batch_embed_contents(given, display_name=f"small {number}", model=MODEL)
                seconds.append(time.perf_counter() - begun)
            return seconds, last

        before, begun = served.spent(), time.perf_counter()
        shares = [range(thread, sizes.small, THREADS) for thread in range(THREADS)]
        told = list(pool.map(work, clients, shares))
        waited = [one for seconds, _ in told for one in seconds]
        accepted = time.perf_counter() - begun
        # Batches take turns by age. A list of them all costs the service something: not before the last ends.
        for client, (_, last) in zip(clients, told, strict=True):
            client.await_batch_completion(last.name, poll_interval=0.1, timeout=600.0)
        while _active(clients[0]):
            time.sleep(0.05)
        ended = time.perf_counter() - begun
        spent = served.spent() - before
        states = [
            batch.batch_stats.successful_request_count for batch in clients[0].list_batches(page_size=1000)
        ]
        if sum(states) != sizes.small * SMALL_ROWS + THREADS:
            raise RuntimeError(f"{sum(states)} requests succeeded of {sizes.small * SMALL_ROWS + THREADS}")
        for client in clients:
            client.close()
    return {
        "batches": sizes.small,
        "accepted_per_second": sizes.small / accepted,
        "batches_per_second": sizes.small / ended,
        "rows_per_second": sizes.small * SMALL_ROWS / ended,
        "service_cpu_ms_per_batch": 1000 * spent.service / sizes.small,
        "engine_cpu_ms_per_batch": 1000 * spent.engines / sizes.small,
        **{f"submit_{name}": value for name, value in percentiles(waited).items()},
    }


def _active(client: Client) -> int:
    """Return how many batches are not final."""
    return sum(not batch.done for batch in client.list_batches(page_size=1000))


# pollers


def polled(sizes: Sizes) -> dict[str, Any]:
    """Return rows a second of a batch left alone, polled patiently, and impatiently; round by round."""
    rounds: dict[str, list[dict[str, Any]]] = {"alone": [], "patient": [], "impatient": []}
    pauses = {"alone": None, "patient": PATIENT_SECONDS, "impatient": 0.0}
    with serving(sizes.flags) as served, served.client() as client, poller() as beside:
        one_batch(served, client, texts(100, sizes.text_bytes, "warm"))
        for number in range(sizes.rounds):
            given = texts(sizes.polled_rows, sizes.text_bytes, f"{number}")
            for name in sorted(pauses, reverse=bool(number % 2)):
                pause = pauses[name]
                before, begun = served.spent(), time.perf_counter()
                batch = client.async_batch_embed_contents(given, display_name=name)
                polling = (
                    None
                    if pause is None
                    else beside.submit(poll, str(served.url), batch.name, sizes.pollers, pause)
                )
                batch = client.await_batch_completion(batch.name, poll_interval=0.25)
                row: dict[str, Any] = {
                    "rows_per_second": len(given) / (time.perf_counter() - begun),
                    "service_cpu_seconds": (served.spent() - before).service,
                }
                rounds[name].append(row | (polling.result() if polling else {}))
                client.delete_batch(batch.name)
    return {"pollers": sizes.pollers, "rows": sizes.polled_rows, "rounds": rounds}


def print_polled(found: dict[str, Any]) -> None:
    """Print medians over rounds."""
    alone = [one["rows_per_second"] for one in found["rounds"]["alone"]]
    print(f"pollers: {found['pollers']} on a batch of {found['rows']} rows")
    print(f"  {'':10}{'rows/s':>9}{'share of alone':>16}{'polls/s':>9}{'p50 ms':>8}{'p99 ms':>8}", end="")
    print(f"{'poller CPU ms a poll':>24}")
    for name, rounds in found["rounds"].items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        shares = [one["rows_per_second"] / other for one, other in zip(rounds, alone, strict=True)]
        line = f"  {name:10}{middle['rows_per_second']:>9.0f}{statistics.median(shares):>16.2f}"
        if "polls" in middle:
            line += f"{middle['polls_per_second']:>9.0f}{middle['p50_ms']:>8.1f}{middle['p99_ms']:>8.1f}"
            line += f"{middle['poller_cpu_ms']:>24.2f}"
        print(line)


# reads


def reads(sizes: Sizes) -> dict[str, Any]:
    """Return seconds and bytes of every way to read results, round by round."""
    with serving(sizes.flags) as served, served.client() as client, httpx2.Client(timeout=600.0) as http:
        lot = texts(sizes.read_rows, sizes.text_bytes, "read")
        large = finish(client, client.async_batch_embed_contents(lot, display_name="large"), len(lot))
        few = lot[:INLINE_ROWS]
        inline = finish(client, client.async_batch_embed_contents(few, display_name="inline"), len(few))

        def fetch(path: str) -> Callable[[], int]:
            def run() -> int:
                with http.stream("GET", f"{served.url}{path}") as answer:
                    answer.raise_for_status()
                    return sum(len(piece) for piece in answer.iter_bytes())

            return run

        def array() -> int:
            return int(client.get_batch_embeddings(large).to_numpy().nbytes)

        ways: dict[str, tuple[int, Callable[[], int]]] = {
            "Arrow": (len(lot), fetch(f"/v1/{large.name}/embeddings")),
            "Arrow to an array": (len(lot), array),
            "inlined responses": (len(few), fetch(f"/v1beta/{inline.name}")),
        }
        if large.responses_file is not None:  # a batch that was sent inline has none
            path = f"/v1beta/{large.responses_file}:download?alt=media"
            ways["JSONL"] = (len(lot), fetch(path))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(sizes.rounds):
            for name, (rows, read) in ways.items():
                before, begun = served.spent(), time.perf_counter()
                size, seconds = read(), time.perf_counter() - begun
                cpu = (served.spent() - before).total
                found[name].append({"rows": rows, "seconds": seconds, "bytes": size, "service_cpu": cpu})
    return found


def print_reads(found: dict[str, Any]) -> None:
    """Print medians over rounds."""
    print(f"{'reads':20}{'rows':>8}{'rows/s':>10}{'MB/s':>7}{'bytes/row':>11}{'service CPU s/M rows':>22}")
    for name, rounds in found.items():
        one = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(
            f"{name:20}{one['rows']:>8.0f}{one['rows'] / one['seconds']:>10.0f}"
            f"{one['bytes'] / one['seconds'] / 1e6:>7.0f}{one['bytes'] / one['rows']:>11.0f}"
            f"{one['service_cpu'] / one['rows'] * 1e6:>22.1f}"
        )


def print_small(found: dict[str, Any]) -> None:
    """Print what `small` found."""
    print(
        f"small: {found['batches']} batches of {SMALL_ROWS} from {THREADS} threads: accepted "
        f"{found['accepted_per_second']:.0f}/s, done {found['batches_per_second']:.0f}/s = "
        f"{found['rows_per_second']:.0f} rows/s; submit p50 {found['submit_p50_ms']:.1f} ms, p99 "
        f"{found['submit_p99_ms']:.1f} ms; CPU a batch: service {found['service_cpu_ms_per_batch']:.2f} ms, "
        f"engine {found['engine_cpu_ms_per_batch']:.2f} ms"
    )


PARTS: Final[dict[str, tuple[Callable[[Sizes], dict[str, Any]], Callable[[dict[str, Any]], None]]]] = {
    "submit": (submit, print_submit),
    "small": (small, print_small),
    "pollers": (polled, print_polled),
    "reads": (reads, print_reads),
}


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description="Measure the service around the engine.")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all by default")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the largest batch (1000000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=10_000, help="of `small` (10000)")
    parser.add_argument("--pollers", type=int, default=1000)
    parser.add_argument("--text-bytes", type=int, default=200, help="of a text (200)")
    parser.add_argument("--dimensions", type=int, default=64, help="of a vector (64)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work?")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if min(chosen.rows, chosen.rounds, chosen.batches, chosen.pollers, chosen.dimensions) < 1:
        parser.error("all numbers must be at least 1")
    sizes = Sizes(
        chosen.rows,
        chosen.rounds,
        chosen.batches,
        chosen.pollers,
        200_000,
        200_000,
        chosen.text_bytes,
        chosen.dimensions,
    )
    if chosen.quick:
        sizes = Sizes(12_000, 1, 64, 20, 12_000, 12_000, chosen.text_bytes, chosen.dimensions)
    found: dict[str, Any] = {"sizes": asdict(sizes)}
    for part in chosen.part or PARTS:
        measure, show = PARTS[part]
        found[part] = measure(sizes)
        show(found[part])
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
