"""Folders that strangers made: whatever stands in them, the error is one of ours, in one line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import pytest
from tiny import Tiny, write

from embatch.engine import fields, folder
from embatch.engine.loading import load
from embatch.engine.models import serve_model
from embatch.engine.protocol import EngineSpec
from embatch.errors import EmbatchError, InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILES: Final = (
    "config.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
)
KINDS: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 5, 2**31, 2**63, 10**400, 0.5, -0.5, 1e300, 1e400, float("nan")),
    *("", "x", "mean", "../..", "/etc/passwd", "a\0b", "\x1b[31mred", "x" * 5000, "\ud800"),
    *([], [1], ["mean"], [[]], [None], {}, {"x": 1}, {"x": {"y": []}}, {"query": 5}, {"query": ["x"]}),
)
"""Every kind of JSON value, at its odd ends."""
FEW: Final[tuple[Any, ...]] = (0, 3, 2**31 - 1, "mpnet", "roberta", "x", [], {}, 0.25, True, None)


def places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in a JSON value, itself included."""
    yield way
    if isinstance(content, dict):
        for name, value in content.items():
            yield from places(value, (*way, name))
    elif isinstance(content, list):
        for at, value in enumerate(content):
            yield from places(value, (*way, at))


def changed(content: Any, way: tuple[Any, ...], value: object) -> Any:
    """Return a JSON value with another one at a place."""
    if not way:
        return value
    copy = json.loads(json.dumps(content))
    inner = copy
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    return copy


def outcome(work: Callable[[], object]) -> str:
    """Return the message of our error, empty if there is none; any other error fails the test."""
    said = ""
    try:
        work()
    except EmbatchError as error:
        said = error.message
    assert len(said) < 1_000
    assert said.isprintable(), said
    return said


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid folder with something in every file."""
    path = Tiny(prompts={"query": "q: ", "document": "d: "}).write(tmp_path / "model")
    said = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "query"}
    write(path, "config_sentence_transformers.json", said)
    length = {"max_seq_length": 32, "do_lower_case": False}
    write(path, "sentence_bert_config.json", length)
    write(path, "tokenizer_config.json", {"model_max_length": 512, "truncation_side": "right"})
    pooling = json.loads((path / "1_Pooling/config.json").read_text())
    write(path, "1_Pooling/config.json", {**pooling, "include_prompt": True})
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_member_of_every_kind(path: Path, name: str) -> None:
    """Values of all kinds are put in the place of each value of each file: read, or refused by name."""
    content = json.loads((path / name).read_text())
    refused = 0
    for way in places(content):
        for value in KINDS:
            write(path, name, changed(content, way, value))
            said = outcome(lambda: folder.read(path))
            if said:
                refused += 1
                assert str(path) in said or "--engine-option" in said, (way, value, said)
    assert refused > 20


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "tokenizer_config.json"])
def test_an_engine_loads_or_says_why_not(path: Path, name: str) -> None:
    """Beyond what reading refuses: numbers that do not fit the weights, the words, or each other."""
    content = json.loads((path / name).read_text())
    for way in places(content):
        for value in FEW:
            write(path, name, changed(content, way, value))

            def work() -> None:
                engine = load(EngineSpec("openvino", str(path), threads=1))
                engine.warm()
                engine.close()

            outcome(work)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "JSON"),
        ("config.json", '{"model_type": {}}', "model_type must be a text, not an object"),
        ("config.json", '{"a": NaN, "b":' + "[" * 5_000 + "]" * 5_000 + "}", "JSON"),
        ("modules.json", "[" * 100_000, "JSON"),
        ("1_Pooling/config.json", '{"pooling_mode": 5}', "pooling_mode must be of"),
        ("1_Pooling/config.json", '{"pooling_mode": ["mean", 5]}', "pooling_mode must be of"),
        ("1_Pooling/config.json", '{"word_embedding_dimension": -64}', "word_embedding_dimension"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": "false"}', "pooling_mode_mean_tokens"),
        ("sentence_bert_config.json", '{"max_seq_length": -5}', "max_seq_length must be a whole number"),
        ("sentence_bert_config.json", '{"max_seq_length": 1e99}', "max_seq_length must be a whole number"),
        ("tokenizer_config.json", '{"truncation_side": ["left"]}', "truncation_side must be a text"),
        ("config_sentence_transformers.json", '{"prompts": ["query: "]}', "prompts must be an object"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 5}}', "prompts must be an object"),
        ("config_sentence_transformers.json", '{"default_prompt_name": {}}', "default_prompt_name"),
        ("modules.json", '[{"type": "sentence_transformers.models.Pooling", "path": "../x"}]', "out of its"),
        (
            "modules.json",
            '[{"type": "sentence_transformers.models.Pooling", "path": "a\\u0000b"}]',
            "no name",
        ),
        ("modules.json", '[{"type": "sentence_transformers.models.Pooling"}]', "a type and a path"),
        ("modules.json", '[{"type": 5, "path": ""}]', "type must be a text"),
        ("tokenizer.json", "{}", "tokenizer"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["x", "y"]]}}',
            "tokenizer",
        ),
        ("model.safetensors", "", "safetensors"),
        ("model.safetensors", "\xff" * 64, "safetensors"),
    ],
)
def test_the_error_names_file_and_member(path: Path, name: str, content: str, words: str) -> None:
    """And what is wrong with it, on loading if reading does not come to it."""
    (path / name).write_bytes(content.encode("latin-1"))
    said = outcome(lambda: load(EngineSpec("openvino", str(path), threads=1)))
    assert words in said
    assert str(path / name) in said


def test_what_an_engine_did_not_foresee_is_an_error_of_ours(path: Path) -> None:
    """The folder is named, and the kind of error, whatever the engine's libraries raise."""
    with pytest.raises(InvalidArgument, match=r"cannot load .*(TypeError|RuntimeError)"):
        load(EngineSpec("openvino", str(path), threads="many"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_names_that_are_no_files(path: Path, tmp_path: Path, name: str) -> None:
    """Folders, links in a circle or to nowhere, pipes that nobody writes to."""
    file = path / name

    def becomes(make: Callable[[], object]) -> str:
        file.unlink() if not file.is_dir() else file.rmdir()
        make()
        return outcome(lambda: serve_model(str(path), engine="openvino"))

    for make, words in (
        (lambda: file.symlink_to(file), "cannot be read"),
        (lambda: file.symlink_to(tmp_path / "nowhere"), "leads nowhere"),
        (lambda: os.mkfifo(file), "is not a file"),
        (file.mkdir, "is not a file"),
    ):
        said = becomes(make)
        assert words in said, said
        assert str(file) in said


def test_files_are_read_up_to_a_size(path: Path) -> None:
    """A configuration of a gigabyte is none: nothing of it is read."""
    for name in FILES:
        content = (path / name).read_bytes()
        with (path / name).open("r+b") as file:
            file.truncate(1 << 30)
        with pytest.raises(InvalidArgument, match=r"1,073,741,824 bytes, and no more than") as caught:
            folder.read(path)
        assert str(path / name) in caught.value.message
        (path / name).write_bytes(content)


def test_what_editors_and_other_programs_write_is_read(path: Path) -> None:
    """A byte-order mark, and numbers that JSON has not, in members that nobody asks for."""
    config = (path / "config.json").read_text()
    (path / "config.json").write_text("\ufeff" + config[:-1] + ', "time_step_limit": [0.0, Infinity]}')
    assert folder.read(path).dimensions == 64
    (path / "config.json").write_bytes(config.encode("utf-16"))
    with pytest.raises(InvalidArgument, match=r"config\.json cannot be read as JSON"):
        folder.read(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_weights_that_were_cut_off(path: Path, part: float) -> None:
    """As an interrupted download leaves them."""
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InvalidArgument, match=r"model\.safetensors is not a whole safetensors file"):
        load(EngineSpec("openvino", str(path)))


def test_weights_that_are_no_file(path: Path) -> None:
    """A folder or a link in a circle of the name counts as none."""
    file = path / "model.safetensors"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(NotFound, match="no weights"):
        serve_model(str(path), engine="openvino")
    file.unlink()
    file.mkdir()
    with pytest.raises(NotFound, match="no weights"):
        serve_model(str(path), engine="openvino")


def test_what_the_system_says_of_a_file_is_shown(path: Path) -> None:
    """In its own words."""
    with pytest.raises(InvalidArgument, match="cannot be read: File name too long"):
        fields.read_object(path / ("x" * 300))
