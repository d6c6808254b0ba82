"""What our own encoder kernel gives on a processor with AMX: its stages, and OpenVINO beside it.

    .venv/bin/python benchmarks/kernel.py [--part PART ...] [--count N] [--rounds 5]
                                          [--shape mini|base] [--variant=FLAGS ...] [--json FILE]

`rate`      what the tiles of one core and of all do at most: two by two tiles out of the first-level
            cache, on random numbers and on zeros (which no real work reaches).
`stages`    CPU seconds of each stage of the forward pass over the corpus on all cores, counted by a build
            for it; its operations a second on one core, and their share of the rate on random numbers,
            which is measured before and after. The floor is all operations at the rate of all cores;
            the time is told as so many floors, of the forward passes and with tokenizing before them.
`engines`   forward passes alone, and with tokenizing before them, of the kernel on all cores and on one,
            and of OpenVINO in bf16, in turn; least cosines to OpenVINO in float32.
`latency`   one text of 16, 64, 128 and 256 tokens at a time, in turn with OpenVINO in bf16 on one thread
            and on all; medians of 12 calls in each round.
`variants`  forward passes of builds with other flags, in turn with the one that is shipped, loading left
            out. By default two other sizes of the feed-forward part's chunk, and for `base` sums that are
            never in pieces (`-DEMBATCH_RESIDENT=64`) and such in smaller ones (`=12`).

Texts are distinct passages of `corpus.py`, cut at 256 tokens, planned as the service plans them. `--shape
base` takes 12 layers of 768 with random weights, and 400 texts instead of 2,000. Rounds are interleaved:
trust the ratios within a round. A part is printed, and written to the file, once it is done.
Without AMX this ends with 2; `--emulated` runs it all the same, with tiles in plain C++, on a processor
that has AVX-512 with bfloat16: to try the benchmark, its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import distinct_passages  # noqa: E402  (found by the line above)
from benchmarks.engines import cosines, machine, model  # noqa: E402  (as above)
from benchmarks.profiled import STAGES, counters, cycles, rate, tick  # noqa: E402  (as above)
from benchmarks.roofline import operations, run  # noqa: E402  (as above)
from benchmarks.rounds import in_turn, ratios  # noqa: E402  (as above)

from embatch.engine import openvino  # noqa: E402  (as above)
from embatch.engine.amx.library import ELSEWHERE  # noqa: E402  (as above)
from embatch.engine.loading import load  # noqa: E402  (as above)
from embatch.engine.machine import cores, has_amx  # noqa: E402  (as above)
from embatch.engine.protocol import EngineSpec, Shape  # noqa: E402  (as above)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from embatch.engine.protocol import Engine

LENGTHS: Final = (16, 64, 128, 256)
CALLS: Final = 12
CHUNKS: Final = ("-DEMBATCH_CHUNK=192", "-DEMBATCH_CHUNK=768")
VARIANTS: Final = {"mini": CHUNKS, "base": (*CHUNKS, "-DEMBATCH_RESIDENT=64", "-DEMBATCH_RESIDENT=12")}
COUNTS: Final = {"mini": 2000, "base": 400}


@dataclass(frozen=True)
class Asked:
    """What every part is told."""

    folder: Path
    texts: Sequence[str]
    rounds: int
    amx: bool
    """Whether to measure the native build; else the emulated one is tried."""
    variants: Sequence[str]


def stage_operations(config: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, int]:
    """Return the floating-point operations of each stage, as `roofline.operations` counts them."""
    size, inner, layers = (
        int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    linear = 2 * layers * sum(lengths) * size
    counted = (0, 3 * linear * size, operations(config, lengths).attention, linear * size, 0)
    return dict(zip(STAGES, (*counted, linear * inner, linear * inner), strict=True))


@cache
def library(flags: tuple[str, ...] = (), *, amx: bool, profiled: bool = False) -> Path:
    """Return a library, compiled once in a run: its source may have changed since the last one."""
    compile_ = runpy.run_path(str(ROOT / "kernel" / "compile.py"))
    name = "-".join(("benchmark", "amx" if amx else "emulated", *(flag.strip("-") for flag in flags)))
    target = ROOT / "build" / f"{name}{'-profiled' if profiled else ''}.so"
    compile_["variant"](target, flags, amx=amx, profiled=profiled)
    return target


@contextmanager
def kernel(file: Path, folder: Path, threads: int) -> Iterator[Engine]:
    """Load the amx engine with one build of the kernel."""
    with patch.dict(os.environ, {ELSEWHERE: str(file)}):
        engine = load(EngineSpec("amx", str(folder), threads=threads))
    try:
        yield engine
    finally:
        engine.close()


def measure_rate(file: Path, rounds: int) -> dict[str, list[float]]:
    """Return operations a second, a number for each round."""
    counted = counters(file)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for threads in sorted({1, cores()}):
            for random in (True, False):
                name = f"{'random' if random else 'zeros'}, {threads} thread{'s' * (threads > 1)}"
                found.setdefault(name, []).append(rate(counted, threads, random=random))
    return found


def measure_stages(file: Path, folder: Path, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return CPU seconds by stage and what belongs to them, medians over the rounds."""
    counted = counters(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    seconds, rates, walls, wholes = [], [], [], []
    with kernel(file, folder, cores()) as engine:
        _, lengths, _ = run(engine, texts)
        a_cycle = tick(counted)
        for _ in range(rounds):
            before = rate(counted, cores(), random=True)
            cycles(counted)
            phases, _, _ = run(engine, texts)
            seconds.append([a_cycle * count for count in cycles(counted)[0]])
            walls.append(phases.forward)
            wholes.append(phases.seconds)
            rates.append((before + rate(counted, cores(), random=True)) / 2)
    work = stage_operations(config, lengths)
    total, best = operations(config, lengths).total, statistics.median(rates)
    return {
        "tokens": sum(lengths),
        "operations": work,
        "seconds": dict(zip(STAGES, map(statistics.median, zip(*seconds, strict=True)), strict=True)),
        "rate": best,
        "floor": total / best,
        "times_floor": [wall * one / total for wall, one in zip(walls, rates, strict=True)],
        "times_floor_with_tokenizing": [one * two / total for one, two in zip(wholes, rates, strict=True)],
    }


def timed(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return what each way says in every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for name in in_turn(ways, rounds):
        found[name].append(ways[name]())
    return found


def measure_engines(engines: Mapping[str, Engine], texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return seconds of forward passes, and of tokenizing and forward passes, by engine and round."""
    whole: dict[str, list[float]] = {name: [] for name in engines}

    def way(name: str) -> Callable[[], float]:
        def once() -> float:
            phases, _, _ = run(engines[name], texts)
            whole[name].append(phases.seconds)
            return phases.forward

        return once

    for engine in engines.values():
        run(engine, texts)
    return {"forward": timed({name: way(name) for name in engines}, rounds), "with tokenizing": whole}


def alone(engine: Engine, row: Any) -> float:
    """Return the seconds of one row by itself, in the middle of a few calls."""
    spent = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        engine.forward([row], Shape(1, len(row)))
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def measure_latency(engines: Mapping[str, Engine], texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return seconds of one text of each length alone, by engine and round."""
    (row,) = next(iter(engines.values())).encode([" ".join(texts[:40])]).rows
    found = {}
    for length in LENGTHS:
        one = np.array([*row[: length - 1], row[-1]], np.int32)
        ways = {name: partial(alone, engine, one) for name, engine in engines.items()}
        found[str(length)] = timed(ways, rounds)
    return found


def vectors(engine: Engine, texts: Sequence[str]) -> Any:
    """Return the vectors of a few texts."""
    rows = engine.encode(texts).rows
    return engine.forward(rows, Shape(len(rows), max(map(len, rows))))


def one_wide(folder: Path) -> Engine:
    """Return OpenVINO in bf16 with all cores for one text."""
    settings = openvino._properties  # noqa: SLF001  (its settings)

    def wide(precision: str, streams: int) -> dict[str, str]:
        return settings(precision, streams) | {"INFERENCE_NUM_THREADS": str(cores())}

    with patch.object(openvino, "_properties", wide):
        return load(EngineSpec("openvino", str(folder), "bf16", threads=1))


def spread(numbers: Sequence[float]) -> str:
    """Return the median with the least and the most."""
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def print_stages(found: Mapping[str, Any]) -> None:
    """Print a line for each stage, and the distance to the floor."""
    whole, core = sum(found["seconds"].values()), found["rate"] / cores()
    print(f"{'stage':22}{'CPU s':>8}{'share':>8}{'GFLOP/s a core':>16}{'of the rate':>13}")
    for name, seconds in found["seconds"].items():
        speed = found["operations"][name] / seconds if seconds else 0.0
        told = f"{speed / 1e9:>16.0f}{speed / core:>13.1%}" if speed else ""
        print(f"{name:22}{seconds:>8.3f}{seconds / whole:>8.1%}{told}")
    print(
        f"{found['tokens']} tokens; all cores do {found['rate'] / 1e12:.2f} TFLOP/s on random numbers, the "
        f"floor is {found['floor']:.2f} s; the forward passes took {spread(found['times_floor'])} times that "
        f"and with tokenizing before them {spread(found['times_floor_with_tokenizing'])} times"
    )


def print_ratios(title: str, seconds: Mapping[str, Sequence[float]], texts: int = 0) -> None:
    """Print what each took, or texts a second where there are many, and how many times the first's time."""
    print(f"{title:40}{'texts/s' if texts else 'ms':>12}{'times as long as the first':>32}")
    first = next(iter(seconds.values()))
    for name, row in seconds.items():
        took = statistics.median(row)
        middle, least, most = ratios(row, first)
        told = f"{middle:.2f} ({least:.2f} to {most:.2f})"
        print(f"  {name:38}{texts / took if texts else 1000 * took:>12.2f}{told:>32}")


def rate_part(asked: Asked) -> dict[str, list[float]]:
    """Measure what the tiles do at most."""
    found = measure_rate(library(amx=asked.amx, profiled=True), asked.rounds)
    for name, row in found.items():
        print(f"{name:22}{spread([one / 1e12 for one in row]):>28} TFLOP/s")
    return found


def stages_part(asked: Asked) -> dict[str, Any]:
    """Measure where the forward passes spend their time."""
    found = measure_stages(library(amx=asked.amx, profiled=True), asked.folder, asked.texts, asked.rounds)
    print_stages(found)
    return found


def engines_part(asked: Asked) -> dict[str, Any]:
    """Measure the kernel and OpenVINO on the same texts."""
    shipped, engines = library(amx=asked.amx), {}
    with (
        kernel(shipped, asked.folder, cores()) as engines["kernel"],
        kernel(shipped, asked.folder, 1) as engines["kernel, 1 thread"],
    ):
        engines["openvino bf16"] = load(EngineSpec("openvino", str(asked.folder), "bf16"))
        found = measure_engines(engines, asked.texts, asked.rounds)
        exact = vectors(load(EngineSpec("openvino", str(asked.folder), "f32")), asked.texts[:100])
        few = {name: vectors(engine, asked.texts[:100]) for name, engine in engines.items()}
    for name, seconds in found.items():
        print_ratios(name, seconds, len(asked.texts))
    least = {name: float(cosines(one, exact).min()) for name, one in few.items()}
    print("least cosine to float32: " + ", ".join(f"{name} {one:.6f}" for name, one in least.items()))
    return {**found, "least_cosine": least}


def latency_part(asked: Asked) -> dict[str, Any]:
    """Measure one text at a time."""
    with kernel(library(amx=asked.amx), asked.folder, 1) as ours:
        engines = {
            "kernel, 1 thread": ours,
            "openvino bf16, 1 thread": load(EngineSpec("openvino", str(asked.folder), "bf16", threads=1)),
            "openvino bf16, all": one_wide(asked.folder),
        }
        found = measure_latency(engines, asked.texts, asked.rounds)
    for length, seconds in found.items():
        print_ratios(f"one text of {length} tokens", seconds)
    return found


def variants_part(asked: Asked) -> dict[str, list[float]]:
    """Measure builds with other flags beside the one that is shipped, and say which give the same bytes."""
    files = {"as shipped": library(amx=asked.amx)}
    files |= {flags: library(tuple(flags.split()), amx=asked.amx) for flags in asked.variants}
    ways: dict[str, Callable[[], float]] = {}
    first = b""
    for name, file in files.items():
        with kernel(file, asked.folder, cores()) as engine:
            mine = vectors(engine, asked.texts[:50]).tobytes()
            first = first or mine
            print(f"{name}: {'the same bytes' if mine == first else 'other bytes'}")

        def once(file: Path = file) -> float:
            with kernel(file, asked.folder, cores()) as engine:
                run(engine, asked.texts[:50])
                return run(engine, asked.texts)[0].forward

        ways[name] = once
    found = timed(ways, asked.rounds)
    print_ratios("forward", found, len(asked.texts))
    return found


PARTS: Final[Mapping[str, Callable[[Asked], Any]]] = {
    "rate": rate_part,
    "stages": stages_part,
    "engines": engines_part,
    "latency": latency_part,
    "variants": variants_part,
}


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description="Measure our own encoder kernel.")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all by default")
    parser.add_argument("--count", type=int, help="distinct texts (2000; 400 for base)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=("mini", "base"), default="mini")
    parser.add_argument("--variant", action="append", default=[], help="flags of another build; repeatable")
    parser.add_argument("--emulated", action="store_true", help="without AMX: to try the benchmark only")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    count = COUNTS[chosen.shape] if chosen.count is None else chosen.count
    if min(count, chosen.rounds) < 1:
        parser.error("--count and --rounds must be at least 1")
    before = machine()
    if not has_amx() and not chosen.emulated:
        print("this processor has no AMX: there is nothing to measure (--emulated tries the benchmark)")
        raise SystemExit(2)
    texts = distinct_passages(count)[:count]
    found: dict[str, Any] = {"machine": before, "shape": chosen.shape, "texts": len(texts)}
    print(f"{before['processor']}, {before['cores']} cores, shape {chosen.shape}, {len(texts)} texts")
    with tempfile.TemporaryDirectory() as place:
        folder = model(Path(place, "model"), chosen.shape)
        variants = chosen.variant or VARIANTS[chosen.shape]
        asked = Asked(folder, texts, chosen.rounds, not chosen.emulated, variants)
        for name in chosen.part or PARTS:
            found[name] = PARTS[name](asked)
            sys.stdout.flush()
            if chosen.json:
                chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.emulated:
        print("tiles in plain C++: these times mean nothing")


if __name__ == "__main__":
    main()
