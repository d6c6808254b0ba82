"""Tiny random models in the layout of sentence-transformers, and what they must compute.

`Tiny.embed` is a second, independent BERT: plain numpy in float64, one text at a time, no padding, no mask.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import TensorSpec, serialize_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-()"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "a quick brown fox jumps over the lazy dog.",
    "b",
    "embeddings are points; near points mean near things",
    "one two three four five six seven eight nine ten eleven twelve",
)


@dataclass(frozen=True)
class Tiny:
    """What to build. `write` makes the folder; `embed` says what an engine must answer."""

    family: str = "bert"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    inner: int = 128
    positions: int = 48
    activation: str = "gelu"
    poolings: tuple[str, ...] = ("mean",)
    normalize: bool = True
    max_tokens: int | None = 32
    stored: str = "F32"
    prefix: str = ""
    gamma: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of config.json."""
    seed: int = 7

    @property
    def offset(self) -> int:
        """Position of the first token."""
        return 0 if self.family == "bert" else 1  # the padding token is 0

    def write(self, path: Path) -> Path:
        """Write the folder, with the traps real ones hold, and return it."""
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = make_tokenizer()
        tokenizer.enable_truncation(6)
        tokenizer.enable_padding(length=6)
        tokenizer.save(str(path / "tokenizer.json"))
        config = {
            "model_type": self.family,
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.positions,
            "hidden_act": self.activation,
            "layer_norm_eps": 1e-6,
            "pad_token_id": 0,
            **self.extra,
        }
        write(path, "config.json", config)
        write(path, "tokenizer_config.json", {"model_max_length": 512})
        if self.max_tokens:
            write(path, "sentence_bert_config.json", {"max_seq_length": self.max_tokens})
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        if self.normalize:
            modules.append(
                {
                    "idx": 2,
                    "name": "2",
                    "path": "2_Normalize",
                    "type": "sentence_transformers.models.Normalize",
                }
            )
        write(path, "modules.json", modules)
        write(path, "1_Pooling/config.json", pooling_config(self.poolings, self.hidden))
        write(path, "config_sentence_transformers.json", {"prompts": self.prompts})
        save(path / "model.safetensors", self.stored_tensors(), self.stored)
        return path

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights by the names of the BERT of transformers."""
        random = np.random.default_rng(self.seed)

        def draw(*shape: int) -> NDArray[np.float32]:
            return (random.standard_normal(shape) * 0.3).astype(np.float32)

        def norm(name: str) -> dict[str, NDArray[np.float32]]:
            return {f"{name}.weight": 1 + draw(self.hidden), f"{name}.bias": draw(self.hidden)}

        def linear(name: str, outputs: int, inputs: int) -> dict[str, NDArray[np.float32]]:
            return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}

        words = make_tokenizer().get_vocab_size()
        tensors = {
            "embeddings.word_embeddings.weight": draw(words, self.hidden),
            "embeddings.position_embeddings.weight": draw(self.positions, self.hidden),
            "embeddings.token_type_embeddings.weight": draw(2, self.hidden),
            **norm("embeddings.LayerNorm"),
        }
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            for kind in ("query", "key", "value"):
                tensors |= linear(f"{name}.attention.self.{kind}", self.hidden, self.hidden)
            tensors |= linear(f"{name}.attention.output.dense", self.hidden, self.hidden)
            tensors |= norm(f"{name}.attention.output.LayerNorm")
            tensors |= linear(f"{name}.intermediate.dense", self.inner, self.hidden)
            tensors |= linear(f"{name}.output.dense", self.hidden, self.inner)
            tensors |= norm(f"{name}.output.LayerNorm")
        return {name: rounded(tensor, self.stored) for name, tensor in tensors.items()}

    def stored_tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights under the names this folder uses for them."""

        def name(plain: str) -> str:
            if self.gamma and "LayerNorm" in plain:
                plain = plain.replace(".weight", ".gamma").replace(".bias", ".beta")
            return self.prefix + plain

        return {name(plain): tensor for plain, tensor in self.tensors().items()}

    def embed(self, text: str) -> NDArray[np.float64]:
        """Return the vector of a text."""
        ids = make_tokenizer().encode(text).ids
        limit = self.max_tokens or self.positions - self.offset
        if len(ids) > limit:
            ids = [*ids[: limit - 1], ids[-1]]
        return pooled(self.states(ids), self.poolings, normalize=self.normalize)

    def states(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the last hidden states, (tokens, hidden)."""
        w = {name: tensor.astype(np.float64) for name, tensor in self.tensors().items()}
        x = w["embeddings.word_embeddings.weight"][list(ids)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = x + w["embeddings.position_embeddings.weight"][self.offset : self.offset + len(ids)]
        x = layer_norm(x, w, "embeddings.LayerNorm")
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = layer_norm(x + self._attend(x, w, name), w, f"{name}.attention.output.LayerNorm")
            inner = activate(self.activation, linear(x, w, f"{name}.intermediate.dense"))
            x = layer_norm(x + linear(inner, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm")
        return x

    def _attend(
        self, x: NDArray[np.float64], w: Mapping[str, NDArray[np.float64]], name: str
    ) -> NDArray[np.float64]:
        width = self.hidden // self.heads
        mixed = []
        q, k, v = (linear(x, w, f"{name}.attention.self.{kind}") for kind in ("query", "key", "value"))
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, part])
        return linear(np.concatenate(mixed, axis=1), w, f"{name}.attention.output.dense")

    def but(self, **changes: Any) -> Tiny:
        """Return the same with changes."""
        return replace(self, **changes)


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of single letters: every letter within a word is a token of its own."""
    vocabulary = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(
        models.WordPiece({token: place for place, token in enumerate(vocabulary)}, unk_token="[UNK]")  # noqa: S106 - a token of text
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def pooled(states: NDArray[np.float64], poolings: Sequence[str], *, normalize: bool) -> NDArray[np.float64]:
    """Return the vector of a text from those of its tokens, as sentence-transformers defines each word."""
    count = len(states)
    ways: dict[str, Callable[[], NDArray[np.float64]]] = {
        "cls": lambda: states[0],
        "max": lambda: states.max(axis=0),
        "mean": lambda: states.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: states.sum(axis=0) / math.sqrt(count),
        "weightedmean": lambda: np.average(states, axis=0, weights=np.arange(1, count + 1)),
        "lasttoken": lambda: states[-1],
    }
    vector = np.concatenate([ways[word]() for word in poolings])
    return np.asarray(vector / np.linalg.norm(vector) if normalize else vector, np.float64)


def pooling_config(poolings: Sequence[str], size: int) -> Mapping[str, object]:
    """Return 1_Pooling/config.json in its older spelling."""
    switches = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    return {"word_embedding_dimension": size} | {
        f"pooling_mode_{switch}": word in poolings for word, switch in switches.items()
    }


def linear(x: NDArray[np.float64], w: Mapping[str, NDArray[np.float64]], name: str) -> NDArray[np.float64]:
    """Return x times the transposed weight, plus bias."""
    return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"], np.float64)


def layer_norm(
    x: NDArray[np.float64], w: Mapping[str, NDArray[np.float64]], name: str
) -> NDArray[np.float64]:
    """Return each row with mean 0 and variance 1, scaled and shifted."""
    level = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    return np.asarray(level * w[f"{name}.weight"] + w[f"{name}.bias"], np.float64)


def activate(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the activation function of transformers by that name."""
    if name == "relu":
        return np.asarray(np.maximum(x, 0), np.float64)
    if name == "silu":
        return np.asarray(x / (1 + np.exp(-x)), np.float64)
    if name == "gelu_new":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), np.float64)
    assert name == "gelu"
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))), np.float64)


def rounded(tensor: NDArray[np.float32], stored: str) -> NDArray[np.float32]:
    """Return what is left of the numbers after storing them as F32, F16 or BF16."""
    if stored == "F16":
        return tensor.astype(np.float16).astype(np.float32)
    if stored == "BF16":
        return (tensor.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return tensor


def save(file: Path, tensors: Mapping[str, NDArray[np.float32]], stored: str = "F32") -> None:
    """Write tensors as safetensors in one of three widths."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    raw = {}
    for name, tensor in tensors.items():
        match stored:
            case "F16":
                raw[name] = np.ascontiguousarray(tensor, np.float16).view(np.uint16)
            case "BF16":
                raw[name] = (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype(np.uint16)
            case _:
                raw[name] = np.ascontiguousarray(tensor).view(np.uint32)
    specs = {
        name: TensorSpec(
            dtype=names[stored], shape=list(data.shape), data_ptr=data.ctypes.data, data_len=data.nbytes
        )
        for name, data in raw.items()
    }
    serialize_file(specs, file, None)


def write(path: Path, name: str, content: object) -> None:
    """Write a JSON file below a folder."""
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(content))
