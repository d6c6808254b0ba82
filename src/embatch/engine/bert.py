"""The encoder of BERT, RoBERTa and XLM-RoBERTa as an OpenVINO graph, straight from its tensors.

What sentence-transformers runs for MiniLM, bge, e5 and gte: embeddings of word, position and token type 0,
then layers of self-attention and feed-forward, each followed by its LayerNorm (Devlin et al. 2019).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

FAMILIES: Final = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})

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
_PREFIXES: Final = ("", "bert.", "roberta.", "model.", "0.auto_model.")
_MASKED: Final = 1e9  # far below every score, yet finite: a row of filler gives numbers and not NaN


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Return why this encoder cannot be built from such a configuration; `None` if it can."""
    if config.get("model_type") not in FAMILIES:
        return f"the architecture {str(config.get('model_type'))[:40]!r}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "relative positions"
    if config.get("hidden_act", "gelu") not in _ACTIVATIONS:
        return "its activation function"
    if config.get("is_decoder") or config.get("embedding_size", config.get("hidden_size")) != config.get(
        "hidden_size"
    ):
        return "its variant of the architecture"
    return None


def encoder(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], position_offset: int
) -> tuple[list[ov.Node], ov.Output]:
    """Return the parameters and the last hidden states, float32 (rows, tokens, size).

    The parameters are `input_ids` and `attention_mask`, both int32 (rows, tokens), both sizes left open.

    Raises:
        InvalidArgument: a tensor is missing or has another shape than the configuration says.
    """
    graph = _Graph(config, tensors)
    ids = ops.parameter([-1, -1], np.int32, name="input_ids")
    mask = ops.parameter([-1, -1], np.int32, name="attention_mask")
    for parameter in (ids, mask):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    hidden = graph.embeddings(ids, position_offset)
    seen = ops.convert(mask, np.float32)
    bias = ops.multiply(ops.subtract(seen, np.float32(1)), np.float32(_MASKED))
    bias = ops.unsqueeze(bias, ops.constant(np.array([1, 2], np.int64)))
    for layer in range(int(config["num_hidden_layers"])):
        hidden = graph.layer(hidden, bias, f"encoder.layer.{layer}.")
    return [ids, mask], hidden.output(0)


class _Graph:
    """One walk over the tensors of one model."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = tensors
        word = "embeddings.word_embeddings.weight"
        self._prefix = next((prefix for prefix in _PREFIXES if prefix + word in tensors), "")
        try:
            self._words = int(config["vocab_size"])
            self._size = int(config["hidden_size"])
            self._heads = int(config["num_attention_heads"])
            self._inner = int(config["intermediate_size"])
            self._activation = _ACTIVATIONS[config.get("hidden_act", "gelu")]
        except KeyError as error:
            raise InvalidArgument(f"config.json lacks or does not know {error}", field="model") from None
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))

    def embeddings(self, ids: ov.Node, position_offset: int) -> ov.Node:
        words = self._tensor("embeddings.word_embeddings.weight", self._words, self._size)
        positions = self._tensor("embeddings.position_embeddings.weight", None, self._size)
        types = self._tensor("embeddings.token_type_embeddings.weight", None, self._size)
        # All our texts are of token type 0, so its vector belongs to every position.
        table = ops.constant(positions[position_offset:] + types[0])
        length = ops.gather(
            ops.shape_of(ids, "i64"), ops.constant(np.array([1], np.int64)), ops.constant(np.int64(0))
        )
        first, one = ops.constant(np.array([0], np.int64)), ops.constant(np.array([1], np.int64))
        place = ops.slice(table, first, length, one, first)
        found = ops.gather(_shared(words), ids, ops.constant(np.int64(0)))
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
        level = ops.mvn(x, last, normalize_variance=True, eps=self._epsilon, eps_mode="INSIDE_SQRT")
        scaled = ops.multiply(level, ops.constant(self._tensor(f"{name}weight", self._size)))
        return ops.add(scaled, ops.constant(self._tensor(f"{name}bias", self._size)))

    def _tensor(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        tensor = self._tensors.get(self._prefix + name)
        if tensor is None:  # LayerNorm in checkpoints of the first years
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            tensor = self._tensors.get(self._prefix + old)
        if tensor is None:
            raise InvalidArgument(f"the weights lack {name}", field="model")
        if len(tensor.shape) != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        ):
            raise InvalidArgument(f"{name} has another shape than config.json says", field="model")
        return tensor


def _shared(tensor: NDArray[np.float32]) -> ov.Node:
    # The graph keeps the array alive and does not copy it: large tables would otherwise stand twice.
    return ops.constant(np.ascontiguousarray(tensor), shared_memory=True)
