"""What the configuration and the weights of a BERT hold, by the names they have in transformers.

Embeddings of word, position and token type 0, then layers of self-attention and feed-forward, each followed
by its LayerNorm (Devlin et al. 2019): MiniLM, bge, e5, gte and the RoBERTas are of this architecture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FAMILIES: Final = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
_WHOLE: Final = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
_PREFIXES: Final = ("", "bert.", "roberta.", "model.", "0.auto_model.")


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Return what makes a configuration another architecture than this one; `None` if nothing does."""
    if config.get("model_type") not in FAMILIES:
        return f"the architecture {str(config.get('model_type'))[:40]!r}"
    if (config.get("position_embedding_type") or "absolute") != "absolute":
        return "relative positions"
    if config.get("is_decoder") or config.get("embedding_size", config.get("hidden_size")) != config.get(
        "hidden_size"
    ):
        return "its variant of the architecture"
    return None


def activation(config: Mapping[str, Any]) -> str:
    """Return the name of the activation function between the two products of the feed-forward part."""
    return str(config.get("hidden_act", "gelu"))


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of `config.json` that the shapes of the tensors follow from."""

    words: int
    hidden: int
    heads: int
    inner: int
    """Columns between the two products of the feed-forward part."""
    layers: int
    epsilon: float
    """Of the layer norms."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """Read them.

        Raises:
            InvalidArgument: one is missing, or is no number above 0.
        """
        words, hidden, heads, inner, layers = (_whole(config, name) for name in _WHOLE)
        if hidden % heads:
            raise InvalidArgument(
                f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}: "
                "get the model again",
                field="model",
            )
        epsilon = config.get("layer_norm_eps", 1e-12)
        if type(epsilon) not in (int, float) or not 0 < epsilon < math.inf:
            raise _wrong("layer_norm_eps", "a number above 0", epsilon)
        return cls(words, hidden, heads, inner, layers, float(epsilon))


def _whole(config: Mapping[str, Any], name: str) -> int:
    if name not in config:
        raise InvalidArgument(f"config.json lacks {name!r}: get the model again", field="model")
    value = config[name]
    if type(value) is not int or not 0 < value < 1 << 31:
        raise _wrong(name, "a whole number above 0", value)
    return value


def _wrong(name: str, wanted: str, value: object) -> InvalidArgument:
    return InvalidArgument(
        f"config.json: {name} must be {wanted}, not {ascii(value)[:40]}: get the model again", field="model"
    )


class Checkpoint:
    """Tensors by their names in transformers, whatever prefix they are stored under."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = tensors
        word = "embeddings.word_embeddings.weight"
        self._prefix = next((prefix for prefix in _PREFIXES if prefix + word in tensors), "")

    def tensor(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        """Return a tensor of this shape; `None` in it stands for any size.

        Raises:
            InvalidArgument: there is none, it has another shape, or a number of it is none.
        """
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
        if not np.isfinite(tensor).all():  # every vector would be wrong, and no text to blame
            raise InvalidArgument(
                f"a weight of the model is infinite or not a number: in {name}", field="model"
            )
        return tensor

    def words(self, sizes: Sizes) -> NDArray[np.float32]:
        """Return the vectors of the words, (words, hidden)."""
        return self.tensor("embeddings.word_embeddings.weight", sizes.words, sizes.hidden)

    def positions(self, sizes: Sizes, offset: int, tokens: int) -> NDArray[np.float32]:
        """Return the vectors of the positions from `offset`, each with that of token type 0 added.

        All our texts are of token type 0, so its vector belongs to every position. (positions, hidden), for
        as many positions as the longest text has `tokens`, or more.

        Raises:
            InvalidArgument: there are fewer, or as `tensor`.
        """
        positions = self.tensor("embeddings.position_embeddings.weight", None, sizes.hidden)
        if (found := max(0, len(positions) - offset)) < tokens:
            raise InvalidArgument(
                f"the model has positions for {found} tokens, not for {tokens}: get it again, or add "
                f"--engine-option max_tokens={found}",
                field="model",
            )
        types = self.tensor("embeddings.token_type_embeddings.weight", None, sizes.hidden)
        return np.asarray(positions[offset:] + types[0], np.float32)
