"""What each step of making the OpenVINO engine faster is worth: variants of it, one process, same texts.

    .venv/bin/python benchmarks/engine_steps.py STEP [STEP ...] [--count 300] [--rounds 5] [--shape mini|base]

The first STEP is the yardstick; `--list` names all. A step is a way to build the graph, to compile it, to
plan or to feed it. All load before the clock starts and run once to warm; then every round runs each of them
on the same distinct passages of `corpus.py`, tokenized before, starting with another step each time. What is
told is the median, over rounds, of a step's seconds divided by the yardstick's in the same round, with the
least and the most, in CPU time of the process and in wall time. Others on the machine slow both alike, so
that the ratios can be trusted and absolute times cannot. Cosines are to the yardstick's vectors. A step may
compile to the yardstick's own program (`sdpa` does in float32 on AVX2): the nodes printed beside it tell, and
its ratios then show nothing but the noise. `overlap` is the share of a
text's ten nearest that still are.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
import openvino as ov

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import engine_graphs as graphs  # noqa: E402  (found by the line above)
from benchmarks.corpus import distinct_passages  # noqa: E402  (as above)
from benchmarks.engines import cosines, model  # noqa: E402  (as above)
from benchmarks.rounds import in_turn  # noqa: E402  (as above)

from embatch.engine import bert, folder, models, openvino, packing, weights  # noqa: E402  (as above)
from embatch.engine.machine import cores  # noqa: E402  (as above)
from embatch.engine.protocol import EngineSpec  # noqa: E402  (as above)
from embatch.engine.tokens import FolderTokenizer  # noqa: E402  (as above)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow


@dataclass(frozen=True)
class Step:
    """One way to run the model."""

    graph: type[bert._Graph] = bert._Graph  # noqa: SLF001  (as above)
    properties: dict[str, str] = field(default_factory=dict)
    multiple: int = openvino.MULTIPLE
    budget: int = 4096
    calls: int = 0
    """Forward passes at the same time; 0: one per core, each on one thread."""
    wide: bool = False
    """Whether the inputs are int64."""


STEPS: Final = {
    "now": Step(),
    "first": Step(graphs.First),
    "scaled": Step(graphs.Scaled),
    "turned": Step(graphs.Turned),
    "qkv-columns": Step(graphs.Merged),
    "qkv-turned": Step(graphs.MergedTurned),
    "sdpa": Step(graphs.Fused),
    "sdpa-unmasked": Step(graphs.FusedUnmasked),
    "unmasked": Step(graphs.Unmasked),
    "gelu-tanh": Step(graphs.GeluTanh),
    **{f"multiple-{size}": Step(multiple=size) for size in (1, 4, 8, 16, 32, 64)},
    **{f"budget-{size}": Step(budget=size) for size in (512, 1024, 2048, 4096, 8192, 16384)},
    "one-stream": Step(properties={"NUM_STREAMS": "1"}, calls=1),
    "pinned": Step(properties={"ENABLE_CPU_PINNING": "YES"}),
    "latency": Step(properties={"PERFORMANCE_HINT": "LATENCY"}),
    "throughput": Step(properties={"PERFORMANCE_HINT": "THROUGHPUT"}),
    "int64": Step(wide=True),
    "int8": Step(graphs.Int8),
    "int8-dynamic": Step(properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}),
}


COUNTED: Final = (
    "FullyConnected",
    "ScaledDotProductAttention",
    "Subgraph",
    "Gelu",
    "Split",
    "Transpose",
    "Reshape",
    "Eltwise",
)  # fmt: skip  (one line of words)

CALIBRATED: Final = 64
"""Texts whose numbers set the ranges of `int8`: part of those that are measured, which flatters it."""


class Runner:
    """A step, loaded."""

    def __init__(self, step: Step, described: folder.ModelFolder) -> None:
        assert described.safetensors is not None  # noqa: S101  (the models here are of that kind)
        self.step = step
        tensors = weights.read(described.safetensors)
        with patch.object(bert, "_Graph", step.graph):
            parameters, hidden = bert.encoder(
                described.config, tensors, described.position_offset, described.max_tokens
            )
        graph = openvino._finished(parameters, hidden, described)  # noqa: SLF001  (the engine's own ending)
        if step.wide:
            prepared = ov.preprocess.PrePostProcessor(graph)
            for place in range(2):
                prepared.input(place).tensor().set_element_type(ov.Type.i64)
            graph = prepared.build()
        settings = openvino._properties("f32", cores()) | step.properties  # noqa: SLF001  (its settings)
        self.compiled = ov.Core().compile_model(graph, "CPU", settings)
        self.calls = step.calls or cores()
        self.idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.calls):
            self.idle.put(self.compiled.create_infer_request())
        self.dimensions = int(self.compiled.outputs[0].partial_shape[1].get_length())
        self.padded = 0

    def nodes(self) -> str:
        """Return how many nodes of each kind were compiled: steps with equal counts may be one program."""
        kinds = Counter(
            str(node.get_rt_info()["layerType"].astype(str))
            for node in self.compiled.get_runtime_model().get_ordered_ops()
        )
        return " ".join(f"{kind}={kinds[kind]}" for kind in COUNTED if kinds[kind])

    def run(self, rows: Sequence[TokenRow], most: int) -> NDArray[np.float32]:
        """Return the vectors of all rows, planned and run as an engine process does."""
        lengths = [len(row) for row in rows]
        plan = packing.pack_padded(lengths, self.step.budget, self.step.multiple, most)
        self.padded = sum(part.shape.rows * part.shape.tokens for part in plan)
        vectors = np.empty((len(rows), self.dimensions), np.float32)

        def forward(part: packing.MicroBatch) -> None:
            kind = np.int64 if self.step.wide else np.int32
            ids = np.zeros((part.shape.rows, part.shape.tokens), kind)
            mask = np.zeros_like(ids)
            for place, row in enumerate(part.rows):
                ids[place, : lengths[row]] = rows[row]
                mask[place, : lengths[row]] = 1
            request = self.idle.get()
            vectors[list(part.rows)] = request.infer([ids, mask])[0]
            self.idle.put(request)

        with ThreadPoolExecutor(self.calls) as streams:
            list(streams.map(forward, plan))
        return vectors


@dataclass
class Spent:
    """Seconds of each round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def against(self, other: Spent) -> str:
        """Return both medians of ratios with least and most."""
        told = []
        for mine, theirs in ((self.cpu, other.cpu), (self.wall, other.wall)):
            ratios = sorted(one / two for one, two in zip(mine, theirs, strict=True))
            told.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
        return f"{told[0]:>24}{told[1]:>24}"


def overlap(vectors: NDArray[np.float32], others: NDArray[np.float32], nearest: int = 10) -> float:
    """Return the share of each text's nearest by one's vectors that is nearest by the other's, on average."""
    found = []
    for one in (vectors, others):
        scores = one @ one.T
        np.fill_diagonal(scores, -np.inf)
        found.append(np.argsort(-scores, axis=1)[:, :nearest])
    pairs = zip(*found, strict=True)
    return float(np.mean([len(np.intersect1d(mine, theirs)) / nearest for mine, theirs in pairs]))


def measure(names: Sequence[str], texts: Sequence[str], rounds: int, shape: str) -> str:
    """Return the table of these steps, the first of which is the yardstick."""
    with tempfile.TemporaryDirectory() as place:
        described = models.opened(EngineSpec("openvino", str(model(Path(place, "model"), shape))))
        rows = FolderTokenizer(described).encode(texts).rows
        if any(STEPS[name].graph is graphs.Int8 for name in names):
            graphs.Int8.ranges = graphs.ranges(described, rows[:CALIBRATED])
        runners = {name: Runner(STEPS[name], described) for name in names}
    real = sum(map(len, rows))
    vectors = {name: runner.run(rows, described.max_tokens) for name, runner in runners.items()}
    spent = {name: Spent() for name in names}
    for name in in_turn(names, rounds):
        begun, used = time.perf_counter(), time.process_time()
        runners[name].run(rows, described.max_tokens)
        spent[name].cpu.append(time.process_time() - used)
        spent[name].wall.append(time.perf_counter() - begun)
    lines = [f"{'step':16}{'CPU time':>24}{'wall time':>24}  padded  cosine least  overlap  compiled to"]
    for name in names:
        alike = cosines(vectors[name], vectors[names[0]]).min()
        share = f"{runners[name].padded / real:.3f}"
        kept = overlap(vectors[name], vectors[names[0]])
        told = spent[name].against(spent[names[0]])
        lines.append(f"{name:16}{told}{share:>8}  {alike:.7f}     {kept:.3f}  {runners[name].nodes()}")
    first = spent[names[0]]
    lines.append(
        f"{len(texts)} texts, {real} tokens; {names[0]}: {statistics.median(first.cpu):.2f} CPU s, "
        f"{statistics.median(first.wall):.2f} s"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare ways to run the model.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="the first is the yardstick")
    parser.add_argument("--list", action="store_true", help="print the names of the steps")
    parser.add_argument("--count", type=int, default=300, help="distinct texts (300)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=("mini", "base"), default="mini")
    chosen = parser.parse_args()
    if chosen.list:
        print("\n".join(STEPS))
        return
    unknown = sorted(set(chosen.steps) - STEPS.keys())
    if unknown or not chosen.steps or min(chosen.count, chosen.rounds) < 1:
        parser.error(f"no step {unknown[0]}" if unknown else "name a step; --count and --rounds from 1")
    texts = distinct_passages(chosen.count)[: chosen.count]
    print(measure(tuple(dict.fromkeys(chosen.steps)), texts, chosen.rounds, chosen.shape), flush=True)


if __name__ == "__main__":
    main()
