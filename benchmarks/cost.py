"""What a token costs one text at a time, in small groups, under many clients, and as a batch.

    .venv/bin/python benchmarks/cost.py [--count 200] [--rounds 5] [--class NAME] [--json FILE]

One `embatch serve` with the default model, on a port; the same texts of `corpus.py` go to it in six ways, all
through `Client`: one at a time (`embedContent`, each after the answer of the one before), the same from 16
threads, groups of 8 in the order of the corpus (`batchEmbedContents`, one after the other), the same from 16
threads, as a batch, from the submit to the vectors, and as a batch whose texts an earlier run has embedded.
CPU seconds are those of the service and all its engine processes; the client's are not counted. Classes of
texts: `mixed` as in the corpus but without copies, `short` up to 32 tokens, `long` from 128 on, `copies`
mixed with one in twenty a copy. A round takes every way in turn, each round begins with another, and ratios
are to the batch of the same round: trust these, not the absolute numbers. The first pass over a class loads,
compiles, compares vectors, and is not counted. Small counts are hard on the batch, which waits for polls and
for a last micro-batch on one core.

Where our own kernel serves, texts one at a time also go to a second service on OpenVINO (`elsewhere`): what
others would ask one by one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import distinct_passages, token_counts
from benchmarks.engines import MAX_TOKENS, cosines, machine
from benchmarks.rounds import in_turn, ratios
from benchmarks.served import Served, serving

from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns
from embatch.engine import amx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embatch import Client

    Way = Callable[[Client, Sequence[str]], Any]

THREADS: Final = 16
GROUP: Final = 8
SHORT, LONG = 32, 128
"""Tokens that a short text has at most, and a long one at least."""
COPIES: Final = 20
"""One in so many texts of `copies` is a copy."""
CLASSES: Final = ("mixed", "short", "long", "copies")
BATCH: Final = "batch"
RUN: Final = "cost"
"""Whose vectors the cache keeps."""
LEAST_COSINE: Final = 0.99
"""Between the vectors of two ways. bfloat16 in another shape differs less, and another text much more."""


@dataclass
class Row:
    """What was measured of one way with one class, a number for each round."""

    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)


def single(client: Client, texts: Sequence[str]) -> Any:
    """Ask for one text after the other."""
    return np.stack([client.embed_content(text).values for text in texts])


def single_threads(client: Client, texts: Sequence[str]) -> Any:
    """Ask for one text at a time from many threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack([one.values for one in pool.map(client.embed_content, texts)])


def grouped(client: Client, texts: Sequence[str]) -> Any:
    """Ask for one group after the other."""
    found = [client.batch_embed_contents(group) for group in groups(texts)]
    return np.stack([one.values for group in found for one in group])


def grouped_threads(client: Client, texts: Sequence[str]) -> Any:
    """Ask for groups from many threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(client.batch_embed_contents, groups(texts)))
    return np.stack([one.values for group in found for one in group])


def batch(client: Client, texts: Sequence[str], run: str | None = None) -> Any:
    """Take a batch from its submit to its vectors."""
    made = ForRuns(client).submit(texts, RequestDefaults(), BatchOptions("cost", run=run))
    made = client.await_batch_completion(made.name, poll_interval=0.05)
    vectors = client.get_batch_embeddings(made).to_numpy()
    client.delete_batch(made.name)
    return vectors


def known(client: Client, texts: Sequence[str]) -> Any:
    """Take a batch of a run after another run embedded the same texts; the first call does so itself."""
    vectors = batch(client, texts, RUN)
    ForRuns(client).publish(RUN)
    return vectors


ELSEWHERE: Final = "one at a time, openvino"
WAYS: Final[dict[str, Way]] = {
    BATCH: batch,
    "one at a time": single,
    ELSEWHERE: single,
    f"{THREADS} threads": single_threads,
    f"groups of {GROUP}": grouped,
    f"groups, {THREADS} threads": grouped_threads,
    "batch, cached": known,
}


def groups(texts: Sequence[str]) -> list[Sequence[str]]:
    """Return the texts in groups, in their order; the last may be smaller."""
    return [texts[begin : begin + GROUP] for begin in range(0, len(texts), GROUP)]


def chosen_texts(names: Sequence[str], count: int) -> dict[str, list[str]]:
    """Return the texts of each class, the first of the corpus that fit.

    Raises:
        ValueError: the corpus does not hold so many of a class.
    """
    distinct = distinct_passages(count)
    lengths = dict(zip(distinct, token_counts(distinct), strict=True))
    fitting = {
        "mixed": distinct,
        "short": [text for text in distinct if lengths[text] <= SHORT],
        "long": [text for text in distinct if lengths[text] >= LONG],
        "copies": distinct,
    }
    found = {name: fitting[name][:count] for name in names}
    for name, texts in found.items():
        if len(texts) < count:
            raise ValueError(f"--count: the corpus holds only {len(texts)} texts of class {name}")
    if "copies" in found:
        texts = found["copies"]
        # Each copy stands half the texts after its original, not beside it.
        for place in range(count - 1, count // 2, -COPIES // 2):
            texts[place] = texts[place - count // 2]
    return found


def measure(
    served: Served, elsewhere: Served | None, texts: Sequence[str], rounds: int
) -> tuple[dict[str, Row], dict[str, float]]:
    """Return what every way costs, and its least cosine to the batch."""
    services = {name: elsewhere if name == ELSEWHERE else served for name in WAYS}
    with ExitStack() as stack:
        ways = {
            name: (one, stack.enter_context(one.client()))
            for name, one in services.items()
            if one is not None
        }
        rows = {name: Row() for name in ways}
        vectors = {name: WAYS[name](client, texts) for name, (_, client) in ways.items()}
        alike = {name: float(cosines(one, vectors[BATCH]).min()) for name, one in vectors.items()}
        if min(alike.values()) < LEAST_COSINE:
            raise RuntimeError(f"the ways do not give the same vectors: {alike}")
        for name in in_turn(ways, rounds):
            service, client = ways[name]
            before, begun = service.spent(), time.perf_counter()
            WAYS[name](client, texts)
            rows[name].wall_seconds.append(time.perf_counter() - begun)
            rows[name].cpu_seconds.append((service.spent() - before).total)
    return rows, alike


def table(rows: dict[str, Row], tokens: int) -> str:
    """Return a class's ways as text: seconds for 1,000 tokens, and times the batch, least to most."""
    head = f"  {'':20}{'CPU s/1000 tokens':>19}{'wall':>9}{'CPU, times the batch':>26}{'wall':>22}"
    lines = [head]
    for name, row in rows.items():
        cells = []
        for mine, others in (
            (row.cpu_seconds, rows[BATCH].cpu_seconds),
            (row.wall_seconds, rows[BATCH].wall_seconds),
        ):
            middle, least, most = ratios(mine, others)
            cells.append(f"{middle:.2f} ({least:.2f} to {most:.2f})")
        cpu, wall = (1000 * statistics.median(one) / tokens for one in (row.cpu_seconds, row.wall_seconds))
        lines.append(f"  {name:20}{cpu:>19.4f}{wall:>9.4f}{cells[0]:>26}{cells[1]:>22}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description="Measure what a token costs, way by way.")
    parser.add_argument("--count", type=int, default=200, help="texts of each class (200)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--class", action="append", dest="classes", choices=CLASSES, help="repeatable; all by default"
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if min(chosen.count, chosen.rounds) < 1:
        parser.error("--count and --rounds must be at least 1")
    found: dict[str, Any] = {"machine": machine(), "count": chosen.count, "classes": {}}
    lots = chosen_texts(chosen.classes or CLASSES, chosen.count)
    with ExitStack() as stack:
        served = stack.enter_context(serving())
        elsewhere = None if amx.unavailable() else stack.enter_context(serving(("--engine", "openvino")))
        for name, texts in lots.items():
            tokens = sum(min(one, MAX_TOKENS) for one in token_counts(texts))
            rows, alike = measure(served, elsewhere, texts, chosen.rounds)
            print(
                f"{name}: {len(texts)} texts, {len(set(texts))} distinct, {tokens} tokens, "
                f"{chosen.rounds} rounds"
            )
            print(table(rows, tokens), flush=True)
            found["classes"][name] = {
                "tokens": tokens,
                "distinct": len(set(texts)),
                "ways": {way: vars(row) | {"least_cosine": alike[way]} for way, row in rows.items()},
            }
        found["engines"] = served.engines()
        print(f"engines: {'; '.join(found['engines'])}")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
