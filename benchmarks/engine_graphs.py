"""Variants of the engine's graph, for `engine_steps.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from embatch.engine import bert, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine import folder
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


class Watched(First):
    """Remembers what goes into each product with weights."""

    inputs: ClassVar[dict[str, ov.Node]] = {}

    def _linear(self, x: ov.Node, name: str, outputs: int, inputs: int) -> ov.Node:
        self.inputs[name] = x
        return super()._linear(x, name, outputs, inputs)


class Int8(First):
    """Products of int8: weights by output, what they multiply by one range seen on some texts."""

    ranges: ClassVar[dict[str, tuple[float, float]]] = {}

    def _linear(self, x: ov.Node, name: str, outputs: int, inputs: int) -> ov.Node:
        weight = self._tensor(f"{name}weight", outputs, inputs)
        most = np.abs(weight).max(axis=1, keepdims=True)
        narrow = ops.fake_quantize(ops.constant(weight), -most, most, -most, most, 255)
        low, high = (np.float32(bound) for bound in self.ranges[name])
        product = ops.matmul(
            ops.fake_quantize(x, low, high, low, high, 256), narrow, transpose_a=False, transpose_b=True
        )
        return ops.add(product, ops.constant(self._tensor(f"{name}bias", outputs)))


def ranges(described: folder.ModelFolder, rows: Sequence[TokenRow]) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest number that goes into each product with weights, over some texts."""
    assert described.safetensors is not None  # noqa: S101  (as in `Runner`)
    with patch.object(bert, "_Graph", Watched):
        parameters, _ = bert.encoder(
            described.config,
            weights.read(described.safetensors),
            described.position_offset,
            described.max_tokens,
        )
    axes = ops.constant(np.array([0, 1, 2], np.int64))
    results = [
        ops.result(reduce(node, axes))
        for node in Watched.inputs.values()
        for reduce in (ops.reduce_min, ops.reduce_max)
    ]
    compiled = ov.Core().compile_model(ov.Model(results, parameters, "ranges"), "CPU")
    tokens = [np.asarray(row, np.int32)[None] for row in rows]
    found = [compiled([row, np.ones_like(row)]) for row in tokens]
    bounds = np.array([[float(one[port]) for port in compiled.outputs] for one in found])
    least, most = bounds.min(axis=0)[::2], bounds.max(axis=0)[1::2]
    return dict(zip(Watched.inputs, zip(least.tolist(), most.tolist(), strict=True), strict=True))
