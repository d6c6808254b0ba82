"""The encoder built from safetensors, against an independent one in numpy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny import TEXTS, Tiny, save, write

from embatch.engine import openvino
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VARIANTS = {
    "minilm": Tiny(),
    "bge": Tiny(poolings=("cls",), prompts={"query": "find: "}, prefix="bert."),
    "e5": Tiny(activation="gelu_new", heads=8, prompts={"query": "query: ", "document": "passage: "}),
    "gte": Tiny(hidden=96, heads=6, inner=192, layers=3, stored="F16"),
    "not normalised, max": Tiny(poolings=("max",), normalize=False),
    "square root": Tiny(poolings=("mean_sqrt_len_tokens",), normalize=False, activation="relu"),
    "weighted mean": Tiny(poolings=("weightedmean",), activation="silu"),
    "last token": Tiny(poolings=("lasttoken",), stored="BF16"),
    "two poolings": Tiny(poolings=("cls", "mean")),
    "first years": Tiny(gamma=True, prefix="bert."),
    "xlm-roberta": Tiny(family="xlm-roberta", prefix="roberta.", max_tokens=None, positions=30),
    "length from positions": Tiny(max_tokens=None, positions=21),
}


def embed(path: Path, texts: tuple[str, ...], shape: Shape, threads: int = 1) -> NDArray[np.float32]:
    """Return the engine's vectors of all texts in one shape."""
    engine = openvino.load(EngineSpec("openvino", str(path), "f32", threads=threads))
    try:
        return engine.forward(engine.encode(texts).rows, shape)
    finally:
        engine.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graph_computes_what_plain_numpy_does(tmp_path: Path, name: str) -> None:
    """Every variant gives the vectors of the independent implementation, padded or not."""
    tiny = VARIANTS[name]
    path = tiny.write(tmp_path)
    limit = tiny.max_tokens or tiny.positions - tiny.offset
    vectors = embed(path, TEXTS, Shape(6, limit))
    expected = np.array([tiny.embed(text) for text in TEXTS])
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_what_it_describes_is_what_it_computes(tmp_path: Path) -> None:
    """Dimensions, limit, prompts and normalising come from the folder."""
    engine = openvino.load(EngineSpec("openvino", str(VARIANTS["e5"].write(tmp_path)), threads=2))
    about = engine.describe()
    assert (about.engine, about.dimensions, about.max_tokens, about.streams) == ("openvino", 64, 32, 2)
    assert about.normalized
    assert about.prompts["RETRIEVAL_QUERY"] == "query: "
    assert about.prompts["RETRIEVAL_DOCUMENT"] == "passage: "


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "mpnet"}, "architecture"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"hidden_act": "snake"}, "activation"),
        ({"is_decoder": True}, "variant"),
    ],
)
def test_another_architecture_is_refused_and_named(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    """What the graph cannot express is an error that says so, never an approximation."""
    path = Tiny(extra=changes).write(tmp_path)
    with pytest.raises(InvalidArgument, match=word):
        openvino.load(EngineSpec("openvino", str(path)))


def test_tensors_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    """A missing tensor, another shape, another vocabulary and a cut file each say what is wrong."""
    tiny = Tiny()
    tensors = tiny.tensors()
    path = tiny.write(tmp_path)
    spec = EngineSpec("openvino", str(path))
    lacking = {
        name: tensor for name, tensor in tensors.items() if name != "encoder.layer.1.output.dense.bias"
    }
    save(path / "model.safetensors", lacking)
    with pytest.raises(InvalidArgument, match=r"lack encoder\.layer\.1\.output\.dense\.bias"):
        openvino.load(spec)
    save(path / "model.safetensors", tensors | {"embeddings.LayerNorm.bias": np.zeros(3, np.float32)})
    with pytest.raises(InvalidArgument, match="another shape"):
        openvino.load(spec)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(InvalidArgument, match="whole safetensors"):
        openvino.load(spec)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    """A token without a vector would silently count as zeros."""
    tiny = Tiny()
    path = tiny.write(tmp_path)
    small = {name: tensor[:20] if "word" in name else tensor for name, tensor in tiny.tensors().items()}
    save(path / "model.safetensors", small)
    write(path, "config.json", json.loads((path / "config.json").read_text()) | {"vocab_size": 20})
    with pytest.raises(InvalidArgument, match="more tokens than the model"):
        openvino.load(EngineSpec("openvino", str(path)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    """No text is to blame for what they make of it: the model is refused, with the name of the tensor."""
    tiny, name = Tiny(), "encoder.layer.1.output.dense.weight"
    path, tensors = tiny.write(tmp_path), tiny.tensors()
    tensors[name][3, 5] = value
    save(path / "model.safetensors", tensors)
    with pytest.raises(InvalidArgument, match=name.removesuffix(".weight")):
        openvino.load(EngineSpec("openvino", str(path)))


@pytest.mark.parametrize(
    "said",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "64"},
        {"layer_norm_eps": None},
        {"vocab_size": float("nan")},
        {"model_type": "xlm-roberta", "pad_token_id": None},
    ],
    ids=str,
)
def test_numbers_that_are_none(tmp_path: Path, said: dict[str, Any]) -> None:
    """What `config.json` says instead of a number is named."""
    path = Tiny().write(tmp_path)
    write(path, "config.json", json.loads((path / "config.json").read_text()) | said)
    with pytest.raises(InvalidArgument, match=next(reversed(said))):
        openvino.load(EngineSpec("openvino", str(path)))
