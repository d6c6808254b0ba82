"""Texts of which a model's tokenizer leaves nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pools
import pyarrow as pa
from tiny import Tiny, write

from embatch.engine.models import serve_model

if TYPE_CHECKING:
    from pathlib import Path


def test_a_text_without_a_token_fails_alone(tmp_path: Path) -> None:
    """What an engine makes of no token is no vector of the text; the others keep theirs, in both lanes."""
    path = Tiny().write(tmp_path / "bare")
    said = json.loads((path / "tokenizer.json").read_text())
    write(path, "tokenizer.json", {**said, "post_processor": None})
    model = serve_model(str(path), engine="openvino")
    with pools.opened() as pool:
        requests = pools.shard("a quick fox", "\u200b", "b", "\u200b", "\u200d\ufeff")
        for found in (pools.embed(pool, model, requests), pool.query(model, requests)):
            assert pools.blamed(found) == dict.fromkeys((1, 3, 4), "EMPTY_TEXT")
            assert "leaves nothing" in found.column("error_message")[1].as_py()
            alone = pools.embed(pool, model, pools.shard("a quick fox", "b"))
            assert isinstance(found, pa.RecordBatch)
            assert [pools.bytes_of(found)[at] for at in (0, 2)] == pools.bytes_of(alone)
        assert pool.count(model, requests).tolist() == [9, 0, 1, 0, 0]
