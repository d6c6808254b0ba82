"""What each step of making the OpenVINO engine faster is worth: variants of it, one process, same texts.

    .venv/bin/python benchmarks/engine_steps.py STEP [STEP ...] [--count 300] [--rounds 5] [--shape mini|base]

The first STEP is the yardstick; `--list` names all. A step is a way to build the graph, to compile it, to
plan or to feed it. All load before the clock starts and run once to warm; then every round runs each of them
on the same distinct passages of `corpus.py`, tokenized before, starting with another step each time. What is
told is the median, over rounds, of a step's seconds divided by the yardstick's in the same round, with the
least and the most, in CPU time of the process and in wall time. Others on the machine slow both alike, so
that the ratios can be trusted and absolute times cannot. Cosines are to the yardstick's vectors. A step may
compile to the yardstick's own program (`sdpa` does in float32 on AVX2): the nodes printed beside it tell, and
its ratios then show nothing but the noise.
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
import openvino.opset13 as ops

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import passages  # noqa: E402  (found by the line above)
from benchmarks.engines import CORPUS, cosines, model  # noqa: E402  (as above)

from embatch.engine import bert, folder, models, openvino, packing, weights  # noqa: E402  (as above)
from embatch.engine.machine import cores  # noqa: E402  (as above)
from embatch.engine.protocol import EngineSpec  # noqa: E402  (as above)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow


class First(bert._Graph):  # noqa: SLF001  (steps change the engine's own graph)
    """The graph as it was before any step: three projections, scores scaled and masked one by one."""

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        """Return softmax(q k / sqrt(width) + bias) v."""
        query, key, value = (self.projected(hidden, name, kind) for kind in ("query", "key", "value"))
        scores = ops.matmul(query, key, transpose_a=False, transpose_b=True)
        scores = ops.add(ops.multiply(scores, np.float32(self.width**-0.5)), bias)
        mixed = ops.matmul(ops.softmax(scores, -1), value, transpose_a=False, transpose_b=False)
        return self.joined(mixed)

    @property
    def width(self) -> int:
        """Numbers of one head."""
        return self._size // self._heads

    def projected(
        self, hidden: ov.Node, name: str, kind: str, order: Sequence[int] = (0, 2, 1, 3)
    ) -> ov.Node:
        """Return one of query, key and value by heads: (rows, heads, tokens, width) by default."""
        linear = self._linear(hidden, f"{name}{kind}.", self._size, self._size)
        return self.parted(linear, order)

    def parted(self, linear: ov.Node, order: Sequence[int] = (0, 2, 1, 3)) -> ov.Node:
        """Return (rows, tokens, size) by heads, its axes in that order."""
        apart = ops.constant(np.array([0, 0, self._heads, self.width], np.int64))
        return ops.transpose(
            ops.reshape(linear, apart, special_zero=True), ops.constant(np.array(order, np.int64))
        )

    def joined(self, mixed: ov.Node) -> ov.Node:
        """Return (rows, tokens, size) from (rows, heads, tokens, width)."""
        swap = ops.constant(np.array([0, 2, 1, 3], np.int64))
        together = ops.constant(np.array([0, 0, self._size], np.int64))
        return ops.reshape(ops.transpose(mixed, swap), together, special_zero=True)

    def layer(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        """Return one layer, its feed-forward part apart from the rest so that it can be another."""
        attended = self._attention(hidden, bias, f"{name}attention.self.")
        attended = self._linear(attended, f"{name}attention.output.dense.", self._size, self._size)
        hidden = self._norm(ops.add(attended, hidden), f"{name}attention.output.LayerNorm.")
        return self._norm(ops.add(self.feed_forward(hidden, name), hidden), f"{name}output.LayerNorm.")

    def feed_forward(self, hidden: ov.Node, name: str) -> ov.Node:
        """Return the wide product, its activation and the product back."""
        inner = self._activation(self._linear(hidden, f"{name}intermediate.dense.", self._inner, self._size))
        return self._linear(inner, f"{name}output.dense.", self._size, self._inner)


class Scaled(First):
    """1/sqrt(width) goes into the query's weights."""

    def scores(self, hidden: ov.Node, name: str) -> ov.Node:
        """Return query times key, (rows, heads, tokens, tokens)."""
        key = self.projected(hidden, name, "key")
        return ops.matmul(self.projected(hidden, name, "query"), key, transpose_a=False, transpose_b=True)

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        probable = ops.softmax(ops.add(self.scores(hidden, name), bias), -1)
        value = self.projected(hidden, name, "value")
        return self.joined(ops.matmul(probable, value, transpose_a=False, transpose_b=False))

    def _tensor(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        found = super()._tensor(name, *shape)
        if ".query." in name:
            return np.asarray(found * np.float32(self.width**-0.5), np.float32)
        return found


class Turned(Scaled):
    """The key is transposed for good, to (rows, heads, width, tokens)."""

    def scores(self, hidden: ov.Node, name: str) -> ov.Node:
        """Return query times key, (rows, heads, tokens, tokens)."""
        key = self.projected(hidden, name, "key", (0, 2, 3, 1))
        return ops.matmul(self.projected(hidden, name, "query"), key, transpose_a=False, transpose_b=False)


class Merged(Scaled):
    """One product gives query, key and value; cut apart along its columns."""

    def merged(self, hidden: ov.Node, name: str) -> ov.Node:
        """Return query, key and value side by side, (rows, tokens, 3 * size)."""
        kinds = ("query", "key", "value")
        weight = np.concatenate(
            [self._tensor(f"{name}{kind}.weight", self._size, self._size) for kind in kinds]
        )
        bias = np.concatenate([self._tensor(f"{name}{kind}.bias", self._size) for kind in kinds])
        product = ops.matmul(hidden, ops.constant(weight), transpose_a=False, transpose_b=True)
        return ops.add(product, ops.constant(bias))

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        axis, sizes = ops.constant(np.int64(2)), ops.constant(np.array([self._size] * 3, np.int64))
        parts = ops.variadic_split(self.merged(hidden, name), axis, sizes)
        query, value = self.parted(parts.output(0)), self.parted(parts.output(2))
        key = self.parted(parts.output(1), (0, 2, 3, 1))
        scores = ops.add(ops.matmul(query, key, transpose_a=False, transpose_b=False), bias)
        mixed = ops.matmul(ops.softmax(scores, -1), value, transpose_a=False, transpose_b=False)
        return self.joined(mixed)


class MergedTurned(Merged):
    """One product for all three, put in order by one transposition, cut apart without copying."""

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        apart = ops.constant(np.array([0, 0, 3, self._heads, self.width], np.int64))
        all_heads = ops.reshape(self.merged(hidden, name), apart, special_zero=True)
        turned = ops.transpose(all_heads, ops.constant(np.array([2, 0, 3, 1, 4], np.int64)))
        first = ops.constant(np.int64(0))
        parts = ops.split(turned, first, 3)
        query, key, value = (ops.squeeze(parts.output(place), first) for place in range(3))
        scores = ops.add(ops.matmul(query, key, transpose_a=False, transpose_b=True), bias)
        mixed = ops.matmul(ops.softmax(scores, -1), value, transpose_a=False, transpose_b=False)
        return self.joined(mixed)


class Fused(First):
    """The operation `ScaledDotProductAttention`."""

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        query, key, value = (self.projected(hidden, name, kind) for kind in ("query", "key", "value"))
        return self.joined(ops.scaled_dot_product_attention(query, key, value, bias))


class FusedUnmasked(First):
    """The same without a mask: right only where nothing is padded, so its cosines are not."""

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:  # noqa: ARG002  (the base's signature)
        query, key, value = (self.projected(hidden, name, kind) for kind in ("query", "key", "value"))
        return self.joined(ops.scaled_dot_product_attention(query, key, value))


class Unmasked(Turned):
    """The chain without a mask: right only where nothing is padded, so its cosines are not."""

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:  # noqa: ARG002  (the base's signature)
        value = self.projected(hidden, name, "value")
        probable = ops.softmax(self.scores(hidden, name), -1)
        return self.joined(ops.matmul(probable, value, transpose_a=False, transpose_b=False))


class GeluTanh(Turned):
    """The tanh approximation of gelu: another function, to see what the exact one costs."""

    def feed_forward(self, hidden: ov.Node, name: str) -> ov.Node:
        """Return what `First` does, with the approximation."""
        inner = ops.gelu(self._linear(hidden, f"{name}intermediate.dense.", self._inner, self._size), "tanh")
        return self._linear(inner, f"{name}output.dense.", self._size, self._inner)


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
    "first": Step(First),
    "scaled": Step(Scaled),
    "turned": Step(Turned),
    "qkv-columns": Step(Merged),
    "qkv-turned": Step(MergedTurned),
    "sdpa": Step(Fused),
    "sdpa-unmasked": Step(FusedUnmasked),
    "unmasked": Step(Unmasked),
    "gelu-tanh": Step(GeluTanh),
    **{f"multiple-{size}": Step(multiple=size) for size in (1, 4, 8, 16, 32, 64)},
    **{f"budget-{size}": Step(budget=size) for size in (512, 1024, 2048, 4096, 8192, 16384)},
    "one-stream": Step(properties={"NUM_STREAMS": "1"}, calls=1),
    "pinned": Step(properties={"ENABLE_CPU_PINNING": "YES"}),
    "latency": Step(properties={"PERFORMANCE_HINT": "LATENCY"}),
    "throughput": Step(properties={"PERFORMANCE_HINT": "THROUGHPUT"}),
    "int64": Step(wide=True),
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


class Runner:
    """A step, loaded."""

    def __init__(self, step: Step, described: folder.ModelFolder) -> None:
        assert described.safetensors is not None  # noqa: S101  (the models here are of that kind)
        self.step = step
        tensors = weights.read(described.safetensors)
        with patch.object(bert, "_Graph", step.graph):
            parameters, hidden = bert.encoder(described.config, tensors, described.position_offset)
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
        plan = packing.pack(lengths, self.step.budget, self.step.multiple, most)
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


def measure(names: Sequence[str], texts: Sequence[str], rounds: int, shape: str) -> str:
    """Return the table of these steps, the first of which is the yardstick."""
    with tempfile.TemporaryDirectory() as place:
        described = models.opened(EngineSpec("openvino", str(model(Path(place, "model"), shape))))
        runners = {name: Runner(STEPS[name], described) for name in names}
        tokenizer = openvino._tokenizer(described)  # noqa: SLF001  (the engine's own)
    rows = [np.array(one.ids, np.int32) for one in tokenizer.encode_batch_fast(list(texts))]
    real = sum(map(len, rows))
    vectors = {name: runner.run(rows, described.max_tokens) for name, runner in runners.items()}
    spent = {name: Spent() for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            begun, used = time.perf_counter(), time.process_time()
            runners[name].run(rows, described.max_tokens)
            spent[name].cpu.append(time.process_time() - used)
            spent[name].wall.append(time.perf_counter() - begun)
    lines = [f"{'step':16}{'CPU time':>24}{'wall time':>24}  padded  cosine least  compiled to"]
    for name in names:
        alike = cosines(vectors[name], vectors[names[0]]).min()
        share = f"{runners[name].padded / real:.3f}"
        lines.append(
            f"{name:16}{spent[name].against(spent[names[0]])}{share:>8}  {alike:.7f}  {runners[name].nodes()}"
        )
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
    texts = list(dict.fromkeys(passages(max(CORPUS, round(1.06 * chosen.count)))))[: chosen.count]
    print(measure(tuple(dict.fromkeys(chosen.steps)), texts, chosen.rounds, chosen.shape), flush=True)


if __name__ == "__main__":
    main()
