"""The encoder of BERT, RoBERTa and XLM-RoBERTa as an OpenVINO graph, straight from its tensors.

What sentence-transformers runs for MiniLM, bge, e5 and gte; `checkpoint` says which architecture that is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from embatch.engine import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_ACTIVATIONS: Final[Mapping[str, Callable[[ov.Node], ov.Node]]] = {
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu_new": lambda x: ops.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, "tanh"),
    "gelu_fast": lambda x: ops.gelu(x, "tanh"),
    "relu": ops.relu,
    "silu": ops.swish,
    "swish": ops.swish,
    "tanh": ops.tanh,
}
_MASKED: Final = 1e9  # far below every score, yet finite: a row of filler gives numbers and not NaN


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Return why this encoder cannot be built from such a configuration; `None` if it can."""
    if problem := checkpoint.unsupported(config):
        return problem
    return None if checkpoint.activation(config) in _ACTIVATIONS else "its activation function"


def encoder(
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    position_offset: int,
    max_tokens: int,
) -> tuple[list[ov.Node], ov.Output]:
    """Return the parameters and the last hidden states, float32 (rows, tokens, size).

    The parameters are `input_ids` and `attention_mask`, both int32 (rows, tokens), both sizes left open.

    Raises:
        InvalidArgument: a tensor is missing or has another shape than the configuration says, or there are
            fewer positions than the longest text has tokens.
    """
    graph = _Graph(config, tensors)
    ids = ops.parameter([-1, -1], np.int32, name="input_ids")
    mask = ops.parameter([-1, -1], np.int32, name="attention_mask")
    for parameter in (ids, mask):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    hidden = graph.embeddings(ids, position_offset, max_tokens)
    seen = ops.convert(mask, np.float32)
    bias = ops.multiply(ops.subtract(seen, np.float32(1)), np.float32(_MASKED))
    bias = ops.unsqueeze(bias, ops.constant(np.array([1, 2], np.int64)))
    for layer in range(graph.layers):
        hidden = graph.layer(hidden, bias, f"encoder.layer.{layer}.")
    return [ids, mask], hidden.output(0)


class _Graph:
    """One walk over the tensors of one model."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = checkpoint.Checkpoint(tensors)
        self._sizes = sizes = checkpoint.Sizes.of(config)
        self._size, self._heads, self._inner = sizes.hidden, sizes.heads, sizes.inner
        self.layers = sizes.layers
        self._activation = _ACTIVATIONS[checkpoint.activation(config)]

    def embeddings(self, ids: ov.Node, position_offset: int, max_tokens: int) -> ov.Node:
        table = ops.constant(self._tensors.positions(self._sizes, position_offset, max_tokens))
        length = ops.gather(
            ops.shape_of(ids, "i64"), ops.constant(np.array([1], np.int64)), ops.constant(np.int64(0))
        )
        first, one = ops.constant(np.array([0], np.int64)), ops.constant(np.array([1], np.int64))
        place = ops.slice(table, first, length, one, first)
        found = ops.gather(_shared(self._tensors.words(self._sizes)), ids, ops.constant(np.int64(0)))
        return self._norm(ops.add(found, place), "embeddings.LayerNorm.")

    def layer(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        attended = self._attention(hidden, bias, f"{name}attention.self.")
        attended = self._linear(attended, f"{name}attention.output.dense.", self._size, self._size)
        hidden = self._norm(ops.add(attended, hidden), f"{name}attention.output.LayerNorm.")
        inner = self._activation(self._linear(hidden, f"{name}intermediate.dense.", self._inner, self._size))
        outer = self._linear(inner, f"{name}output.dense.", self._size, self._inner)
        return self._norm(ops.add(outer, hidden), f"{name}output.LayerNorm.")

    def _attention(self, hidden: ov.Node, bias: ov.Node, name: str) -> ov.Node:
        width = self._size // self._heads
        apart = ops.constant(np.array([0, 0, self._heads, width], np.int64))
        swap = ops.constant(np.array([0, 2, 1, 3], np.int64))

        def heads(kind: str) -> ov.Node:
            linear = self._linear(hidden, f"{name}{kind}.", self._size, self._size)
            return ops.transpose(ops.reshape(linear, apart, special_zero=True), swap)

        scores = ops.matmul(heads("query"), heads("key"), transpose_a=False, transpose_b=True)
        scores = ops.add(ops.multiply(scores, np.float32(1 / math.sqrt(width))), bias)
        mixed = ops.matmul(ops.softmax(scores, -1), heads("value"), transpose_a=False, transpose_b=False)
        together = ops.constant(np.array([0, 0, self._size], np.int64))
        return ops.reshape(ops.transpose(mixed, swap), together, special_zero=True)

    def _linear(self, x: ov.Node, name: str, outputs: int, inputs: int) -> ov.Node:
        weight = _shared(self._tensor(f"{name}weight", outputs, inputs))
        product = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
        return ops.add(product, ops.constant(self._tensor(f"{name}bias", outputs)))

    def _norm(self, x: ov.Node, name: str) -> ov.Node:
        last = ops.constant(np.array([-1], np.int64))
        level = ops.mvn(x, last, normalize_variance=True, eps=self._sizes.epsilon, eps_mode="INSIDE_SQRT")
        scaled = ops.multiply(level, ops.constant(self._tensor(f"{name}weight", self._size)))
        return ops.add(scaled, ops.constant(self._tensor(f"{name}bias", self._size)))

    def _tensor(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        return self._tensors.tensor(name, *shape)


def _shared(tensor: NDArray[np.float32]) -> ov.Node:
    # The graph keeps the array alive and does not copy it: large tables would otherwise stand twice.
    return ops.constant(np.ascontiguousarray(tensor), shared_memory=True)
