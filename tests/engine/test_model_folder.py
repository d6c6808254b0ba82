"""What a model's folder says, and what of it is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tiny import Tiny, write

from embatch.engine import amx, folder, openvino
from embatch.engine.loading import load
from embatch.engine.protocol import EngineSpec
from embatch.engine.texts import PROMPT_END
from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, **options: str) -> folder.ModelFolder:
    """Read with options."""
    return folder.read(path, {name.replace("__", "."): value for name, value in options.items()})


def test_the_folder_is_read_whole(tmp_path: Path) -> None:
    """Pooling, normalising, limit, dimensions and weights."""
    found = read(Tiny(poolings=("cls", "mean")).write(tmp_path))
    assert found.pooling == ("cls", "mean")
    assert found.normalize
    assert (found.max_tokens, found.dimensions) == (32, 128)
    assert found.safetensors == tmp_path / "model.safetensors"
    assert found.onnx is None
    assert not found.lower_case
    assert not found.cut_left
    assert found.unsupported is None


@pytest.mark.parametrize(
    ("said", "poolings"),
    [
        ({"pooling_mode": "mean", "embedding_dimension": 64}, ("mean",)),
        ({"pooling_mode": ["cls", "lasttoken"]}, ("cls", "lasttoken")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"word_embedding_dimension": 64}, ("mean",)),
    ],
)
def test_both_spellings_of_pooling(tmp_path: Path, said: dict[str, Any], poolings: tuple[str, ...]) -> None:
    """The switches of old folders and the words of new ones; several are joined in a fixed order."""
    path = Tiny().write(tmp_path)
    write(path, "1_Pooling/config.json", said)
    assert read(path).pooling == poolings


@pytest.mark.parametrize(
    ("modules", "dense"),
    [
        (["models.Transformer", "models.Pooling", "models.Dense"], "Dense"),
        (["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"], None),
    ],
)
def test_modules_by_their_last_name(tmp_path: Path, modules: list[str], dense: str | None) -> None:
    """sentence-transformers has moved its classes more than once."""
    path = Tiny(normalize=False).write(tmp_path)
    places = ["", "1_Pooling", "2_Dense"]
    write(
        path,
        "modules.json",
        [
            {"type": f"sentence_transformers.{name}", "path": place}
            for name, place in zip(modules, places, strict=False)
        ],
    )
    found = read(path)
    assert (found.pooling, found.normalize, found.unsupported) == (("mean",), False, dense)
    assert found.dimensions == (None if dense else 64)  # a Dense module gives any number


def test_files_that_differ_over_the_dimensions(tmp_path: Path) -> None:
    """Nobody is promised more than the model has: only loading tells then."""
    path = Tiny().write(tmp_path)
    said = json.loads((path / "1_Pooling/config.json").read_text())
    write(path, "1_Pooling/config.json", said | {"word_embedding_dimension": 999})
    assert read(path).dimensions is None


def test_options_say_what_the_folder_leaves_open(tmp_path: Path) -> None:
    """Without modules.json nothing is assumed; options fill in and override."""
    path = Tiny(prompts={"query": "find: "}).write(tmp_path)
    (path / "modules.json").unlink()
    assert (read(path).pooling, read(path).normalize) == ((), False)
    found = read(
        path, pooling="cls+mean", normalize="true", max_tokens="9", prompt__RETRIEVAL_DOCUMENT="keep: "
    )
    assert (found.pooling, found.normalize, found.max_tokens) == (("cls", "mean"), True, 9)
    assert found.prompts["RETRIEVAL_QUERY"] == "find: "
    assert found.prompts["RETRIEVAL_DOCUMENT"] == "keep: "
    for name, value in (
        ("pooling", "median"),
        ("normalize", "maybe"),
        ("max_tokens", "0"),
        ("max_tokens", "x"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            read(path, **{name: value})


@pytest.mark.parametrize(
    ("length", "tokenizer", "config", "limit"),
    [
        ({"max_seq_length": 20}, {"model_max_length": 512}, {}, 20),
        ({"max_seq_length": 999}, {"model_max_length": 512}, {}, 48),
        ({"max_seq_length": None}, {"model_max_length": 40}, {}, 40),
        (None, {"model_max_length": 10**30}, {}, 48),
        (None, {}, {"model_type": "xlm-roberta", "pad_token_id": 1}, 46),
    ],
)
def test_the_limit_is_the_one_of_sentence_transformers(
    tmp_path: Path,
    length: dict[str, Any] | None,
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    limit: int,
) -> None:
    """Its own file first, then the tokenizer's, never more than there are positions."""
    path = Tiny(max_tokens=None, extra=config).write(tmp_path)
    if length is not None:
        write(path, "sentence_bert_config.json", length)
    write(path, "tokenizer_config.json", tokenizer)
    assert read(path).max_tokens == limit


def test_no_limit_at_all_is_asked_for(tmp_path: Path) -> None:
    """A folder that names no length anywhere needs the option."""
    path = Tiny(max_tokens=None, extra={"max_position_embeddings": None}).write(tmp_path)
    write(path, "tokenizer_config.json", {})
    with pytest.raises(InvalidArgument, match="max_tokens=N"):
        read(path)
    assert read(path, max_tokens="77").max_tokens == 77


def test_prompts_by_the_names_authors_use(tmp_path: Path) -> None:
    """Names differ in case and punctuation; questions and claims fall back on the query's prompt."""
    path = Tiny().write(tmp_path)
    prompts = {
        "Retrieval-query": "q: ",
        "Retrieval-document": "title: none | text: ",
        "STS": "s: ",
        "Fact_Checking": "f: ",
        "document": "",
        "Reranking": "r: ",
    }
    write(path, "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "STS"})
    assert read(path).prompts == {
        "": "s: ",
        "RETRIEVAL_QUERY": "q: ",
        "RETRIEVAL_DOCUMENT": "title: none | text: ",
        "SEMANTIC_SIMILARITY": "s: ",
        "QUESTION_ANSWERING": "q: ",
        "FACT_VERIFICATION": "f: ",
        "CODE_RETRIEVAL_QUERY": "q: ",
    }


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(tmp_path: Path, name: str) -> None:
    """`auto_map` asks for the model's own code, in the model or in its tokenizer."""
    path = Tiny().write(tmp_path)
    write(path, name, {"model_type": "bert", "auto_map": {"AutoModel": "modeling.Model"}})
    with pytest.raises(InvalidArgument, match="auto_map"):
        read(path)


@pytest.mark.parametrize("name", ["modeling_custom.py", "2_Custom/module.py"])
def test_python_files_are_refused(tmp_path: Path, name: str) -> None:
    """Code beside the weights is refused even if nothing names it."""
    path = Tiny().write(tmp_path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("raise SystemExit")
    with pytest.raises(InvalidArgument, match="Python code"):
        read(path)


def test_modules_of_foreign_code_are_refused(tmp_path: Path) -> None:
    """A module class outside sentence-transformers is remote code; a path outside is a trick."""
    path = Tiny().write(tmp_path)
    write(path, "modules.json", [{"type": "custom_st.Transformer", "path": ""}])
    with pytest.raises(InvalidArgument, match="own code"):
        read(path)
    for place in ("../elsewhere", "/etc"):
        write(path, "modules.json", [{"type": "sentence_transformers.models.Pooling", "path": place}])
        with pytest.raises(InvalidArgument, match="out of its folder"):
            read(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pkl", "model.ckpt"])
def test_pickle_alone_is_refused(tmp_path: Path, name: str) -> None:
    """Pickle is never opened: beside safetensors it is ignored, alone it is an error that says why."""
    path = Tiny().write(tmp_path)
    (path / name).write_bytes(b"\x80\x04.")
    assert read(path).safetensors is not None
    (path / "model.safetensors").unlink()
    with pytest.raises(InvalidArgument, match="pickle"):
        read(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """The error says which file the folder lacks."""
    path = Tiny().write(tmp_path)
    (path / name).unlink()
    with pytest.raises(NotFound, match=name):
        read(path)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", '"text"'])
def test_damaged_json_is_named(tmp_path: Path, content: str) -> None:
    """No traceback of a parser reaches the user."""
    path = Tiny().write(tmp_path)
    (path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        read(path)


def test_prompts_kept_out_of_the_pooling_are_for_an_engine_that_does_so(tmp_path: Path) -> None:
    """Ignoring `include_prompt: false` would give other vectors without a word, unless prompts are empty."""
    path = Tiny(prompts={"query": "q: ", "document": ""}).write(tmp_path)
    assert read(path).pooled_prompt
    before = read(path).identity({}, "f32")
    write(path, "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    found = read(path, prompt__CLUSTERING="c: ")
    assert not found.pooled_prompt
    assert found.prompts["RETRIEVAL_QUERY"] == "q: " + PROMPT_END
    assert (found.prompts["RETRIEVAL_DOCUMENT"], found.prompts["CLUSTERING"]) == ("", "c: " + PROMPT_END)
    assert found.identity({}, "f32") != before
    for engine, unsupported in (("openvino", openvino.unsupported), ("amx", amx.unsupported)):
        assert "include_prompt" in (unsupported(found) or ""), engine
    with pytest.raises(InvalidArgument, match=r"include_prompt.*--engine torch"):
        load(EngineSpec("openvino", str(path)))
    write(path, "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    assert openvino.unsupported(read(path)) is None


def test_identity_is_of_content_not_of_place(tmp_path: Path) -> None:
    """A copy is the same model; another weight, limit, pooling or precision is not."""
    one, two = (Tiny().write(tmp_path / name) for name in ("one", "two"))

    def identity(path: Path, precision: str = "f32", **options: str) -> str:
        found = read(path, **options)
        assert found.safetensors is not None
        return found.identity(found.hashes([found.safetensors]), precision)

    assert identity(one) == identity(two)
    others = [
        identity(one, "bf16"),
        identity(one, pooling="cls"),
        identity(one, max_tokens="8"),
        identity(one, normalize="false"),
        identity(Tiny(seed=8).write(tmp_path / "three")),
    ]
    assert len({identity(one), *others}) == 6
