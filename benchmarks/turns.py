"""How long ten texts take beside a large batch, and what they cost it.

    .venv/bin/python benchmarks/turns.py [--rows 100000] [--tries 100] [--seconds 20] [--json FILE]

A service of its own works a batch of `--rows` texts. Beside it batches of ten texts are submitted, one after
the other, at equal and at higher priority in turn, until `--tries` of each are done; what counts is the
service's own time from createTime to endTime. Before and after each quarter of them the large batch is left
alone for `--seconds`. `limit` is two full micro-batches and half a second: a full one is what the large batch
takes for `EMBATCH_MICRO_BATCH_TOKENS` tokens on one stream, by its rate while it is alone. At last stands how
many texts of the large batch an engine's CPU second embeds, and which share of that is left beside the small
ones; then likewise for the tokens of all. A batch beyond the corpus's 20,000 passages has them again, too far
apart to be merged. It has to outlast its windows: give larger `--rows` to a fast machine. `--engine FLAGS`
gives `embatch serve` another engine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import CORPUS, passages
from benchmarks.engines import machine
from benchmarks.served import serving

from embatch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.served import Served

    from embatch import Client

PRIORITIES: Final = {"equal": 0, "higher": 10}
SMALL: Final = 10
QUARTERS: Final = 4


@dataclass
class Window:
    """What was done in one stretch of time."""

    seconds: float
    texts: float
    """Of the large batch."""
    tokens: float
    """Of all batches."""
    cpu: float
    """Seconds of the engines."""


@dataclass
class Measured:
    """All that was measured."""

    took: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PRIORITIES})
    """Seconds from createTime to endTime, by priority."""
    alone: list[Window] = field(default_factory=list)
    beside: list[Window] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)


@dataclass
class Large:
    """The large batch, and what was embedded beside it."""

    served: Served
    client: Client
    name: str
    others: float = 0.0
    """Tokens of the small batches that are done."""

    def look(self) -> Window:
        """Return what is done so far."""
        batch = self.client.get_batch_status(self.name)
        if batch.done:
            raise SystemExit(f"the large batch is {batch.state} before the end: give larger --rows")
        stats, usage = batch.batch_stats, batch.usage
        texts = stats.successful_request_count + stats.uncommitted_request_count
        tokens = usage.token_count + usage.uncommitted_token_count + self.others
        return Window(time.monotonic(), texts, tokens, self.served.spent().engines)

    def since(self, before: Window) -> Window:
        """Return what was done since."""
        now = self.look()
        return Window(
            now.seconds - before.seconds,
            now.texts - before.texts,
            now.tokens - before.tokens,
            now.cpu - before.cpu,
        )


def measure(rows: int, tries: int, seconds: float, flags: Sequence[str]) -> Measured:
    """Measure on a service of its own."""
    found = list(dict.fromkeys(passages(min(rows + SMALL * QUARTERS, CORPUS))))
    texts, fresh = list(itertools.islice(itertools.cycle(found), rows)), _fresh(found)
    measured = Measured()
    with serving(flags) as served, served.client() as client:
        client.await_batch_completion(_submit(client, next(fresh), 0), poll_interval=0.2)  # load, compile
        name = client.async_batch_embed_contents(texts, display_name="large").name
        large = Large(served, client, name)
        while not large.look().texts:
            time.sleep(0.2)
        for quarter in range(QUARTERS):
            measured.alone.append(_alone(large, seconds))
            before = large.look()
            for number in range(quarter * tries // QUARTERS, (quarter + 1) * tries // QUARTERS):
                order = list(PRIORITIES.items())
                for kind, priority in order[:: 1 if number % 2 else -1]:
                    done = client.await_batch_completion(
                        _submit(client, next(fresh), priority), poll_interval=0.05
                    )
                    assert done.create_time is not None  # noqa: S101  (the service's)
                    assert done.end_time is not None  # noqa: S101  (it is done)
                    measured.took[kind].append((done.end_time - done.create_time).total_seconds())
                    large.others += done.usage.token_count
                    client.delete_batch(done.name)
            measured.beside.append(large.since(before))
        measured.alone.append(_alone(large, seconds))
        client.cancel_batch(name)
        measured.engines = served.engines()
    return measured


def _fresh(found: Sequence[str]) -> Iterator[list[str]]:
    """Yield ten texts each time that were not there before."""
    for number in itertools.count():
        yield [f"{number}: {found[(number * SMALL + at) % len(found)]}" for at in range(SMALL)]


def _submit(client: Client, texts: Sequence[str], priority: int) -> str:
    return client.async_batch_embed_contents(texts, display_name="small", priority=priority).name


def _alone(large: Large, seconds: float) -> Window:
    before = large.look()
    time.sleep(seconds)
    return large.since(before)


def row(measured: Measured, streams: int) -> dict[str, float]:
    """Return the figures."""
    alone, beside = measured.alone, measured.beside
    rate = sum(one.tokens for one in alone) / sum(one.seconds for one in alone)
    full = Settings().micro_batch_tokens * streams / rate
    figures = {"micro_batch_seconds": full, "limit_seconds": 2 * full + 0.5}
    for kind, took in measured.took.items():
        cuts = statistics.quantiles(took, n=100, method="inclusive")
        figures |= {f"{kind}_p50": cuts[49], f"{kind}_p95": cuts[94], f"{kind}_max": max(took)}
    for what in ("texts", "tokens"):
        before, after = (
            sum(getattr(one, what) for one in windows) / sum(one.cpu for one in windows)
            for windows in (alone, beside)
        )
        figures |= {f"{what}_per_cpu_second": before, f"{what}_kept": after / before}
    return figures


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Measure small batches beside a large one.")
    parser.add_argument("--rows", type=int, default=100_000, help="texts of the large batch (100000)")
    parser.add_argument("--tries", type=int, default=100, help="small batches of each priority (100)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a window without small batches")
    parser.add_argument("--engine", default="", help="flags of `embatch serve`, such as '--engine hashing'")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.tries < QUARTERS:
        parser.error(f"--tries must be {QUARTERS} or more")
    measured = measure(chosen.rows, chosen.tries, chosen.seconds, shlex.split(chosen.engine))
    streams = int(measured.engines[0].split(", ")[2].split()[0])
    figures = row(measured, streams)
    print(f"{'; '.join(measured.engines)}; {chosen.tries} tries each beside {chosen.rows:,} texts")
    print(
        f"a full micro-batch {figures['micro_batch_seconds']:.2f} s, limit {figures['limit_seconds']:.2f} s"
    )
    for kind in PRIORITIES:
        p50, p95, most = (figures[f"{kind}_{name}"] for name in ("p50", "p95", "max"))
        print(f"{kind:>7} priority: p50 {p50:.2f} s, p95 {p95:.2f} s, most {most:.2f} s")
    print(
        f"an engine's CPU second: {figures['texts_per_cpu_second']:.1f} texts of the large batch alone, "
        f"{figures['texts_kept']:.3f} of that beside; tokens of all {figures['tokens_kept']:.3f}"
    )
    if chosen.json:
        said = {"machine": machine(), "engines": measured.engines, **figures, "took": measured.took}
        chosen.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
