"""What a tokenizer may do that no model can work with: seen at loading, or told of the text alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tiny import Tiny, write

from embatch.engine import folder, openvino
from embatch.engine.protocol import EngineSpec
from embatch.engine.tokens import FolderTokenizer
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[dict[str, Any]], object]


def _changed(path: Path, change: Change) -> Path:
    said = json.loads((path / "tokenizer.json").read_text())
    change(said)
    write(path, "tokenizer.json", said)
    return path


def _in_vocabulary(said: dict[str, Any]) -> None:
    said["model"]["vocab"]["b"] = 9_999


def _one_beyond(said: dict[str, Any]) -> None:
    said["model"]["vocab"]["b"] = len(said["model"]["vocab"])


def _in_template(said: dict[str, Any]) -> None:
    said["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [9_999]


@pytest.mark.parametrize("change", [_in_vocabulary, _one_beyond, _in_template])
def test_a_token_without_a_vector_is_refused(tmp_path: Path, change: Change) -> None:
    """Not as many tokens as the model has are needed for it: one number beyond the table is enough."""
    path = _changed(Tiny().write(tmp_path), change)
    with pytest.raises(InvalidArgument, match="more tokens than the model"):
        FolderTokenizer(folder.read(path))


@pytest.mark.parametrize("limit", [1, 2])
def test_no_room_between_the_special_tokens(tmp_path: Path, limit: int) -> None:
    """All texts would be one text, or would not be cut at all."""
    path = Tiny().write(tmp_path)
    for described in (
        folder.read(path, {"max_tokens": str(limit)}),
        folder.read(Tiny(max_tokens=limit).write(tmp_path / "said")),
    ):
        with pytest.raises(InvalidArgument, match=f"takes {limit} tokens, and 2 of them"):
            FolderTokenizer(described)


def test_room_for_one_token(tmp_path: Path) -> None:
    """It is a limit like every other."""
    encoded = FolderTokenizer(folder.read(Tiny(max_tokens=3).write(tmp_path))).encode(["a", "a b"])
    assert encoded.lengths.tolist() == [3, 3]
    assert encoded.truncated.tolist() == [False, True]


def test_a_tokenizer_without_special_tokens_may_have_a_limit_of_one(tmp_path: Path) -> None:
    """Nothing stands around its texts, so that one token is one of the text."""
    path = _changed(Tiny(max_tokens=1).write(tmp_path), lambda said: said.update(post_processor=None))
    assert FolderTokenizer(folder.read(path)).encode(["a", "b c"]).lengths.tolist() == [1, 1]


def test_fewer_positions_than_the_folder_says(tmp_path: Path) -> None:
    """A text as long as the folder allows would stop the model: it is refused when it is loaded."""
    path = Tiny(positions=20, max_tokens=40, extra={"max_position_embeddings": 40}).write(tmp_path)
    with pytest.raises(InvalidArgument, match="positions for 20 tokens, not for 40"):
        openvino.load(EngineSpec("openvino", str(path)))
    engine = openvino.load(EngineSpec("openvino", str(path), options={"max_tokens": "20"}))
    assert engine.encode(["a " * 100]).lengths.tolist() == [20]
    engine.close()
