"""What the whole service does: start-up, accepted submits, and the demo corpus end to end.

    .venv/bin/python benchmarks/service.py [--json FILE]

`first vector` is a whole command, from pressing Enter to its exit, on a file of ten texts and an empty data
folder. `submits` counts small batches acknowledged (durable) over HTTP from several threads. `corpus` runs
the demo's corpus as one batch on a warm service, from acceptance to COMPLETED, beside the bare engine in this
process, in alternating rounds: trust the ratios, not the absolute numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from corpus import passages

from embatch import Client
from embatch.engine.loading import load
from embatch.engine.models import DEFAULT_MODEL, serve_model
from embatch.engine.packing import pack
from embatch.settings import Settings


def first_vector(rounds: int) -> list[float]:
    """Return the seconds of `embatch embed` on ten texts, each on a data folder of its own."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.jsonl"
            source.write_text("".join(json.dumps({"text": one.text}) + "\n" for one in passages(10)))
            begun = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "embatch", "embed", str(source), "-o", f"{folder}/out.parquet"],
                env={**os.environ, "EMBATCH_DATA": f"{folder}/data"},
                check=True,
                capture_output=True,
            )
            seconds.append(time.monotonic() - begun)
    return seconds


def submits(count: int, threads: int) -> float:
    """Return durable acknowledgements of one-text batches a second."""
    with tempfile.TemporaryDirectory() as folder, Client(data=Path(folder)) as client:

        def submit(number: int) -> None:
            client.async_batch_embed_contents([f"text {number}"], display_name=f"batch {number}")

        submit(0)
        with ThreadPoolExecutor(threads) as pool:
            begun = time.monotonic()
            list(pool.map(submit, range(count)))
            return count / (time.monotonic() - begun)


def corpus(count: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of the corpus as a batch and through the bare engine, round by round."""
    texts = list(dict.fromkeys(one.text for one in passages(count)))
    engine = load(serve_model(DEFAULT_MODEL).spec)
    engine.warm()
    seconds: dict[str, list[float]] = {"batch": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder, Client(data=Path(folder)) as client:
        for number in range(rounds + 1):
            batch = client.async_batch_embed_contents(texts, display_name=f"round {number}")
            batch = client.await_batch_completion(batch.name, poll_interval=0.2)
            assert batch.batch_stats.successful_request_count == len(texts), batch  # noqa: S101
            assert batch.create_time is not None and batch.end_time is not None  # noqa: S101, PT018
            spent = (batch.end_time - batch.create_time).total_seconds()
            client.delete_batch(batch.name)
            alone = bare(engine, texts)
            if number:  # the first round loads the engine and compiles its shapes
                seconds["batch"].append(spent)
                seconds["bare"].append(alone)
    engine.close()
    return seconds


def bare(engine: Any, texts: list[str]) -> float:
    """Return the seconds of the engine alone: encode, plan, forward on as many threads as it has streams."""
    about, settings = engine.describe(), Settings()
    begun = time.monotonic()
    encoded = engine.encode(texts)
    plan = pack(encoded.lengths, settings.micro_batch_tokens, about.multiple, about.max_tokens)

    def run(part: Any) -> None:
        engine.forward([encoded.rows[row] for row in part.rows], part.shape)

    with ThreadPoolExecutor(about.streams) as pool:
        list(pool.map(run, plan))
    return time.monotonic() - begun


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Measure the whole service.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    seconds = corpus(chosen.count, chosen.rounds)
    ratios = [alone / batch for batch, alone in zip(seconds["batch"], seconds["bare"], strict=True)]
    figures = {
        "first_vector_seconds": first_vector(chosen.rounds),
        "submits_per_second": submits(2000, 32),
        "corpus_texts": chosen.count,
        "batch_seconds": seconds["batch"],
        "bare_seconds": seconds["bare"],
        "share_of_bare_engine": ratios,
    }
    print(f"first vector        {statistics.median(figures['first_vector_seconds']):6.2f} s")
    print(f"submits accepted    {figures['submits_per_second']:6.0f} /s")
    print(f"corpus as a batch   {chosen.count / statistics.median(seconds['batch']):6.1f} texts/s")
    print(f"corpus, bare engine {chosen.count / statistics.median(seconds['bare']):6.1f} texts/s")
    print(f"share of the bare   {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
