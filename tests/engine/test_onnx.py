"""Folders with an ONNX export: inputs and outputs found by name, pooling as the folder says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx_writer import Dims, Tensor, node, write_onnx
from tiny import TEXTS, Tiny, make_tokenizer, pooled, write

from embatch.engine import openvino
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

HIDDEN = ("batch", "sequence", 64)
WORDS = np.random.default_rng(1).standard_normal((128, 64)).astype(np.float32)
TYPES = np.random.default_rng(2).standard_normal((2, 64)).astype(np.float32)
PLACES = np.random.default_rng(3).standard_normal((512, 64)).astype(np.float32)


def export(
    tiny: Tiny,
    path: Path,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids", "position_ids"),
    outputs: Mapping[str, Dims] | None = None,
    file: str = "onnx/model.onnx",
) -> Path:
    """Make a folder of another family, whose export looks words, types and places up and adds them."""
    tiny.write(path)
    (path / "model.safetensors").unlink()
    write(path, "config.json", {"model_type": "mpnet", "max_position_embeddings": 48})
    nodes = [
        node("Gather", ["words", "input_ids"], "w"),
        node("Gather", ["types", "token_type_ids" if "token_type_ids" in inputs else "input_ids"], "t"),
        node("Gather", ["places", "position_ids" if "position_ids" in inputs else "input_ids"], "p"),
        node("Add", ["w", "t"], "wt"),
        node("Add", ["wt", "p"], "last_hidden_state"),
        node("Neg", ["last_hidden_state"], "other"),
        node("ReduceMax", ["last_hidden_state"], "scalar"),
    ]
    tensors = {"words": WORDS, "types": TYPES, "places": PLACES}
    write_onnx(path / file, nodes, tensors, inputs, outputs or {"last_hidden_state": HIDDEN})
    return path


def expected(text: str, poolings: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the vector of a text by the same arithmetic."""
    ids = make_tokenizer().encode(text).ids
    if len(ids) > 32:
        ids = [*ids[:31], ids[-1]]
    states = WORDS[ids].astype(np.float64) + TYPES[0] + PLACES[: len(ids)]
    return pooled(states, poolings, normalize=True)


def vectors(path: Path, **options: str) -> NDArray[np.float32]:
    """Return what the engine makes of the sample texts."""
    engine = openvino.load(EngineSpec("openvino", str(path), "f32", threads=1, options=options))
    return engine.forward(engine.encode(TEXTS).rows, Shape(len(TEXTS) + 1, 32))


@pytest.mark.parametrize("file", ["onnx/model.onnx", "model.onnx"])
@pytest.mark.parametrize("poolings", [("mean",), ("cls",), ("max",), ("lasttoken",), ("weightedmean",)])
def test_an_export_gives_its_vectors(tmp_path: Path, file: str, poolings: tuple[str, ...]) -> None:
    """All four usual inputs are filled, padding counts for nothing, pooling is the folder's."""
    path = export(Tiny(poolings=poolings), tmp_path, file=file)
    np.testing.assert_allclose(vectors(path), [expected(text, poolings) for text in TEXTS], atol=1e-5)


def test_the_token_output_is_found_among_others(tmp_path: Path) -> None:
    """`last_hidden_state` is taken by name, wherever it stands."""
    path = export(Tiny(), tmp_path, outputs={"other": HIDDEN, "last_hidden_state": HIDDEN})
    np.testing.assert_allclose(vectors(path), [expected(text, ("mean",)) for text in TEXTS], atol=1e-5)


def test_several_unnamed_outputs_are_refused(tmp_path: Path) -> None:
    """Taking the wrong one of several would give vectors that look right."""
    path = export(Tiny(), tmp_path, outputs={"other": HIDDEN, "wt": HIDDEN})
    with pytest.raises(InvalidArgument, match="several outputs"):
        vectors(path)


def test_a_pooled_output_is_not_pooled_again(tmp_path: Path) -> None:
    """An export that ends in `sentence_embedding` is taken as it is, even without a Pooling module."""
    path = Tiny().write(tmp_path)
    (path / "model.safetensors").unlink()
    (path / "modules.json").unlink()
    nodes = [
        node("Gather", ["words", "input_ids"], "last_hidden_state"),
        node("ReduceSum", ["last_hidden_state", "axis"], "sums"),
        node("Squeeze", ["sums", "axis"], "sentence_embedding"),
    ]
    tensors: dict[str, Tensor] = {"words": WORDS, "axis": np.array([1], np.int64)}
    outputs: dict[str, Dims] = {"last_hidden_state": HIDDEN, "sentence_embedding": ("batch", 64)}
    write_onnx(path / "model.onnx", nodes, tensors, ("input_ids", "attention_mask"), outputs)
    engine = openvino.load(EngineSpec("openvino", str(path), "f32", threads=1))
    assert not engine.describe().normalized
    row = engine.encode(["abc def"]).rows[0]
    assert not isinstance(row, str)
    vector = engine.forward([row], Shape(1, len(row)))
    np.testing.assert_allclose(vector, WORDS[row].sum(axis=0, keepdims=True), rtol=1e-5, atol=1e-5)


def test_inputs_nobody_can_fill_are_refused(tmp_path: Path) -> None:
    """A decoder's cache, or pixels: not a text embedding model."""
    inputs = ("input_ids", "attention_mask", "past_key_values")
    with pytest.raises(InvalidArgument, match="wants other inputs"):
        vectors(export(Tiny(), tmp_path, inputs=inputs))


def test_an_unreadable_export_is_refused(tmp_path: Path) -> None:
    """A cut or foreign file names itself."""
    path = export(Tiny(), tmp_path)
    (path / "onnx/model.onnx").write_bytes(b"not an export")
    with pytest.raises(InvalidArgument, match=r"model\.onnx"):
        vectors(path)


def test_safetensors_are_preferred_where_both_can_run(tmp_path: Path) -> None:
    """The export beside the weights of a BERT is left alone; with another family it is used."""
    tiny = Tiny()
    path = tiny.write(tmp_path)
    (path / "model.onnx").write_bytes(b"not an export")
    np.testing.assert_allclose(vectors(path), [tiny.embed(text) for text in TEXTS], atol=2e-5)
    config = json.loads((path / "config.json").read_text())
    write(path, "config.json", config | {"model_type": "mpnet"})
    with pytest.raises(InvalidArgument, match=r"model\.onnx"):
        vectors(path)
