"""How near our engine comes to what this machine can multiply, and where the rest of its time goes.

    .venv/bin/python benchmarks/roofline.py [--count 500] [--rounds 5] [--shape mini|base] [--json FILE]

The matrix rate is the best of numpy (OpenBLAS) and of OpenVINO over the sizes of the encoder's own matrices
and a square one, in float32, and in bfloat16 where the processor has it; the memory rate that of numpy's copy
and triad. `all cores` is one thread for each core with a product of its own, as the engine works. The
corpus's operations are counted from the model's configuration: for a token 2 (4 h² + 2 h f) in each layer
(query, key, value, output and the two feed-forward products), for each pair of tokens of a text 4 h (scores,
mixing), with h the hidden and f the inner size; what is not a product of matrices counts nothing. The
share is operations a second of the engine over the matrix rate of its precision, measured in turn: rate,
engine, rate, engine. Real tokens are the texts' own; padded ones are those of the plan, which the engine
multiplies. Time by kind of node is of a pass of its own on one stream with OpenVINO's counters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for `rates`, and before OpenVINO loads numpy

import openvino as ov

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import distinct_passages
from benchmarks.engines import machine, model
from benchmarks.rates import matrix_rate, memory_rates, survey

from embatch.engine.loading import load
from embatch.engine.machine import cores
from embatch.engine.packing import plan
from embatch.engine.protocol import EngineSpec
from embatch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.rates import Product

    from embatch.engine.packing import MicroBatch
    from embatch.engine.protocol import Engine

TOKENS: Final = 4096
"""Rows of the encoder's products: the padded tokens of a micro-batch."""
SQUARE: Final = 2048


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of texts, a multiplication and an addition counting two."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention


@dataclass
class Phases:
    """What a run of the engine spent, in seconds of the clock."""

    encode: float = 0.0
    plan: float = 0.0
    forward: float = 0.0
    """From the first forward pass to the last."""
    calls: float = 0.0
    """Within `forward`, over all streams: `forward` times streams less `calls` is idle."""
    inside: float = 0.0
    """Within OpenVINO; only of a pass that is counted. The rest of `calls` is padding and copying."""
    nodes: dict[str, float] = field(default_factory=dict)
    """Seconds by kind of node; only of a pass that is counted."""

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.encode + self.plan + self.forward


# operations


def operations(config: Mapping[str, Any], lengths: Sequence[int]) -> Operations:
    """Return the operations that an encoder of this configuration needs for texts of so many tokens.

    Args:
        config: of BERT and its kin: `hidden_size`, `intermediate_size`, `num_hidden_layers`.
        lengths: tokens of each text, padding included if it is to count.
    """
    size, inner, layers = (
        int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)
    return Operations(layers * 2 * (4 * size * size + 2 * size * inner) * tokens, layers * 4 * size * pairs)


def products(config: Mapping[str, Any]) -> list[Product]:
    """Return the encoder's products of a micro-batch, and a square one."""
    size, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    return [(TOKENS, size, size), (TOKENS, size, inner), (TOKENS, inner, size), (SQUARE, SQUARE, SQUARE)]


# the engine


def run(engine: Engine, texts: Sequence[str]) -> tuple[Phases, list[int], tuple[MicroBatch, ...]]:
    """Embed the texts as the service's engine process does; return what it took, lengths and plan."""
    about, phases, begun = engine.describe(), Phases(), time.perf_counter()
    encoded = engine.encode(texts)
    phases.encode, begun = time.perf_counter() - begun, time.perf_counter()
    lengths = encoded.lengths.tolist()
    planned = plan(lengths, Settings().micro_batch_tokens, about)
    phases.plan, begun = time.perf_counter() - begun, time.perf_counter()

    def forward(part: MicroBatch) -> float:
        called = time.perf_counter()
        engine.forward([encoded.rows[row] for row in part.rows], part.shape)
        return time.perf_counter() - called

    with ThreadPoolExecutor(about.streams) as pool:
        phases.calls = sum(pool.map(forward, planned))
    phases.forward = time.perf_counter() - begun
    return phases, lengths, planned


class Counters:
    """What OpenVINO counted on one stream. Its counters are means over all inferences since compiling."""

    def __init__(self) -> None:
        self.times, self.inside = 0, 0.0
        self._means: dict[str, float] = {}

    def add(self, seconds: float, nodes: Sequence[Any]) -> None:
        """Take an inference."""
        self.times += 1
        self.inside += seconds
        self._means = {}
        for node in nodes:
            kind = f"{node.node_type} ({node.exec_type})"
            self._means[kind] = self._means.get(kind, 0.0) + node.real_time.total_seconds()

    def totals(self) -> dict[str, float]:
        """Return the seconds of all inferences by kind of node."""
        return {kind: mean * self.times for kind, mean in self._means.items()}


@contextmanager
def counted() -> Iterator[Counters]:
    """Have what is compiled and run here counted."""
    counters = Counters()
    compile_model, infer = ov.Core.compile_model, ov.InferRequest.infer

    def compiling(core: ov.Core, graph: Any, device: str, config: Mapping[str, Any]) -> ov.CompiledModel:
        return compile_model(core, graph, device, {**config, "PERF_COUNT": "YES"})

    def inferring(request: ov.InferRequest, *given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        result = infer(request, *given, **named)
        counters.add(time.perf_counter() - begun, request.profiling_info)
        return result

    with patch.object(ov.Core, "compile_model", compiling), patch.object(ov.InferRequest, "infer", inferring):
        yield counters


def by_node(spec: EngineSpec, texts: Sequence[str]) -> Phases:
    """Return a counted run on one stream: what nodes of each kind take, and what is spent around them."""
    with counted() as counters:
        engine = load(replace(spec, threads=1))
        run(engine, texts)
        before, inside = counters.totals(), counters.inside
        phases, _, _ = run(engine, texts)
        engine.close()
    phases.inside = counters.inside - inside
    phases.nodes = {kind: seconds - before.get(kind, 0.0) for kind, seconds in counters.totals().items()}
    return phases


def share(
    engine: Engine, texts: Sequence[str], best: Mapping[str, Any], rounds: int
) -> list[dict[str, float]]:
    """Return, round by round, the matrix rate and what the engine took, measured in turn."""
    run(engine, texts)
    found = []
    for _ in range(rounds):
        now = matrix_rate(best["library"], best["precision"], best["product"], best["threads"])
        phases, _, _ = run(engine, texts)
        found.append(
            {
                "rate": now,
                "seconds": phases.seconds,
                "encode": phases.encode,
                "plan": phases.plan,
                "forward": phases.forward,
                "calls": phases.calls,
            }
        )
    return found


def print_rates(rates: Sequence[Mapping[str, Any]], memory: Mapping[int, Mapping[str, float]]) -> None:
    """Print GFLOP/s and GB/s by threads."""
    threads = sorted(memory)
    head = "".join(f"{f'{number} thread' + 's' * (number > 1):>12}" for number in threads)
    print(f"{'matrix rate, GFLOP/s':36}{head}")
    rows: dict[str, list[float]] = {}
    for one in rates:
        product = " x ".join(str(size) for size in one["product"])
        rows.setdefault(f"{one['library']} {one['precision']} {product}", []).append(one["rate"] / 1e9)
    for name, row in rows.items():
        print(f"  {name:34}{''.join(f'{found:>12.1f}' for found in row)}")
    print(f"{'memory rate, GB/s':36}{head}")
    for name in ("copy", "triad"):
        print(f"  {name:34}{''.join(f'{memory[number][name] / 1e9:>12.1f}' for number in threads)}")


def print_share(found: Mapping[str, Any]) -> None:
    """Print what the texts need, what the engine reached, and where its time went."""
    real, padded, rounds = found["real"], found["padded"], found["rounds"]
    print(
        f"{found['texts']} texts, {real['tokens']} tokens; the plan has {padded['tokens']}, "
        f"{padded['tokens'] / real['tokens']:.3f} times as many, in {found['micro_batches']} micro-batches"
    )
    for name, one in (("real", real), ("padded", padded)):
        total = one["linear"] + one["attention"]
        shares = sorted(total / each["seconds"] / each["rate"] for each in rounds)
        print(
            f"  {name:7}{total / 1e9:>9.1f} GFLOP ({one['attention'] / total:.1%} attention), "
            f"{statistics.median(total / each['seconds'] for each in rounds) / 1e9:.1f} GFLOP/s = "
            f"{statistics.median(shares):.1%} ({shares[0]:.1%} to {shares[-1]:.1%}) of the matrix rate"
        )
    streams = found["streams"]
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print(f"phases of a run of {middle['seconds']:.2f} s, {found['precision']}, {streams} streams")
    counted_run = found["counted"]
    around = max(0.0, 1 - counted_run["inside"] / counted_run["calls"])
    idle = max(0.0, middle["forward"] * streams - middle["calls"])
    for name, seconds in (
        ("tokenise", middle["encode"]),
        ("plan", middle["plan"]),
        ("forward, in OpenVINO", middle["calls"] * (1 - around) / streams),
        ("forward, padding and copying", middle["calls"] * around / streams),
        ("streams idle", idle / streams),
    ):
        print(f"  {name:34}{seconds:>8.3f} s{seconds / middle['seconds']:>8.1%}")
    inside = counted_run["inside"]
    print(f"nodes of a counted run on one stream, {inside:.2f} s")
    nodes = sorted(counted_run["nodes"].items(), key=lambda node: -float(node[1]))
    for name, seconds in nodes[:10]:
        print(f"  {name[:48]:50}{seconds:>8.3f} s{seconds / inside:>8.1%}")
    left = inside - sum(seconds for _, seconds in nodes[:10])
    print(f"  {'all others, and around the nodes':50}{left:>8.3f} s{left / inside:>8.1%}")
    multiplied = sum(seconds for name, seconds in nodes if name.startswith("FullyConnected"))
    if multiplied:
        per_second = padded["linear"] / multiplied
        print(f"  FullyConnected on one core: {per_second / 1e9:.1f} GFLOP/s")


def measure(folder: Path | str, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return rates of the machine and what the engine makes of them, from a model's folder."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    rates = survey(products(config))
    memory = {threads: memory_rates(threads) for threads in sorted({1, cores()})}
    spec = EngineSpec("openvino", str(folder))
    engine = load(spec)
    about = engine.describe()
    fitting = [one for one in rates if one["precision"] == about.precision and one["threads"] == cores()]
    best = max(fitting, key=lambda one: float(one["rate"]))
    _, lengths, parts = run(engine, texts)
    planned = [part.shape.tokens for part in parts for _ in part.rows]
    found = share(engine, texts, best, rounds)
    engine.close()
    return {
        "rates": rates,
        "memory": memory,
        "texts": len(texts),
        "micro_batches": len(parts),
        "precision": about.precision,
        "streams": about.streams,
        "best": best,
        "real": {"tokens": sum(lengths), **asdict(operations(config, lengths))},
        "padded": {"tokens": sum(planned), **asdict(operations(config, planned))},
        "rounds": found,
        "counted": asdict(by_node(spec, texts)),
    }


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description="Measure how near the engine comes to the machine.")
    parser.add_argument("--count", type=int, default=500, help="distinct texts (500)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=("mini", "base"), default="mini")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if min(chosen.count, chosen.rounds) < 1:
        parser.error("--count and --rounds must be at least 1")
    before = machine()
    texts = distinct_passages(chosen.count)[: chosen.count]
    with tempfile.TemporaryDirectory() as place:
        found = measure(model(Path(place, "model"), chosen.shape), texts, chosen.rounds)
    print(f"{before['processor']}, {before['cores']} cores, shape {chosen.shape}")
    print_rates(found["rates"], found["memory"])
    print_share(found)
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"machine": before, "shape": chosen.shape, **found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
