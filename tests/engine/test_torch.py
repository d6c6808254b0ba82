"""The torch engine, on a GPU where there is one. `python3 run.py test-torch` has what it needs."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conformance import BUDGET, CHECKS, REFERENCES, check_company, check_references, embed
from tiny import TEXTS, Tiny, make_tokenizer, pooling_config, save, write

from embatch.engine import folder, models
from embatch.engine.loading import load
from embatch.engine.packing import pack_padded
from embatch.engine.protocol import EngineSpec, Shape
from embatch.engine.texts import compose
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.vectors import cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from embatch.engine.protocol import Engine

pytestmark = pytest.mark.torch

TOLERANCE = {"f32": 0.9999, "bf16": 0.999}
LONG = (*TEXTS, "a long text to be cut somewhere, " * 9)
VOCABULARY = make_tokenizer().get_vocab_size()
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GROUPED: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "bert": SIZES,
    "xlm-roberta": SIZES,
    "mpnet": SIZES,
    "deberta-v2": SIZES,
    "modernbert": {**SIZES, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    "qwen3": GROUPED,
    "gemma3_text": {**GROUPED, "sliding_window": 16, "use_bidirectional_attention": True},
    "t5": {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
}
"""Encoders with absolute, relative and rotary positions, with local attention, and decoders."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The default model as this machine would run it: in bf16 where GPU or CPU multiply it, else float32."""
    loaded = load(models.serve_model(models.DEFAULT_MODEL, engine="torch", threads=2).spec)
    loaded.warm()
    yield loaded
    loaded.close()


def open_folder(path: Path, precision: str = "f32", **options: str) -> Engine:
    """Load a folder."""
    return load(EngineSpec("torch", str(path), precision, threads=1, options=options))


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(engine: Engine, check: Callable[[Engine, float], None]) -> None:
    """The suite passes in the precision this machine has."""
    check(engine, TOLERANCE[engine.describe().precision])


def test_references(engine: Engine) -> None:
    """The default model gives the reference vectors."""
    check_references(engine, TOLERANCE[engine.describe().precision])


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_references_in_either_precision(precision: str) -> None:
    """So it does in the other precision, for forty of the texts: without native bf16 it takes long."""
    loaded = load(models.serve_model(models.DEFAULT_MODEL, engine="torch", precision=precision).spec)
    assert loaded.describe().precision == precision
    lines = (REFERENCES / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    vectors = embed(loaded, [json.loads(line)["text"] for line in lines[:40]])
    assert cosine(vectors, np.load(REFERENCES / "vectors.npy")[:40]).min() >= TOLERANCE[precision]
    loaded.close()


def test_device_and_precision(engine: Engine) -> None:
    """A GPU is taken where there is one, and bf16 where the device has it."""
    import torch

    from embatch.engine.machine import has_bf16

    gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else has_bf16()
    assert engine.describe().precision == ("bf16" if native else "f32")
    assert vars(engine)["_device"].type == (
        "cuda" if gpu else "mps" if torch.backends.mps.is_available() else "cpu"
    )


def test_chosen_where_openvino_is_not(tmp_path: Path) -> None:
    """`auto` takes torch in this environment, and describes the same function as openvino would."""
    loaded = load(EngineSpec("auto", str(Tiny().write(tmp_path)), "f32"))
    about = loaded.describe()
    assert about.engine == "torch"
    described = folder.read(tmp_path)
    assert about.identity == described.identity(described.hashes([tmp_path / "model.safetensors"]), "f32")
    loaded.close()


@pytest.mark.parametrize(
    "tiny",
    [
        Tiny(),
        Tiny(family="roberta"),
        Tiny(normalize=False, poolings=("cls",)),
        Tiny(poolings=("max", "mean")),
        Tiny(poolings=("weightedmean",), activation="gelu_new"),
        Tiny(poolings=("lasttoken",), activation="relu"),
        Tiny(poolings=("mean_sqrt_len_tokens",), normalize=False),
        Tiny(stored="F16"),
        Tiny(stored="BF16"),
        Tiny(gamma=True, prefix="bert."),
        Tiny(max_tokens=7),
    ],
    ids=str,
)
def test_against_arithmetic(tmp_path: Path, tiny: Tiny) -> None:
    """Small models give what plain arithmetic gives, whatever their folder looks like."""
    tiny.write(tmp_path)
    fast_tokenizer(tmp_path)
    loaded = open_folder(tmp_path)
    expected = np.stack([tiny.embed(text) for text in LONG])
    np.testing.assert_allclose(embed(loaded, LONG), expected, atol=2e-4, rtol=1e-3)
    assert loaded.describe().normalized is tiny.normalize
    loaded.close()


def test_options(tmp_path: Path) -> None:
    """Pooling, normalising, length and prompts can be overruled."""
    Tiny(poolings=("cls",), normalize=False, prompts={"query": "query: "}).write(tmp_path)
    options = {"pooling": "mean", "normalize": "true", "max_tokens": "9", "prompt.CLUSTERING": "group: "}
    loaded = open_folder(tmp_path, **options)
    expected = np.stack([Tiny(max_tokens=9).embed(text) for text in LONG])
    np.testing.assert_allclose(embed(loaded, LONG), expected, atol=1e-4)
    about = loaded.describe()
    assert (about.max_tokens, about.normalized) == (9, True)
    assert about.prompts["RETRIEVAL_QUERY"] == "query: "
    assert about.prompts["CLUSTERING"] == "group: "
    bare = open_folder(Tiny().write(tmp_path / "bare"), normalize="false")
    np.testing.assert_allclose(
        embed(bare, TEXTS), [Tiny(normalize=False).embed(text) for text in TEXTS], atol=1e-3
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(tmp_path: Path, name: str) -> None:
    """Each gives what sentence-transformers gives for one text a call, and the same bytes in any company."""
    from sentence_transformers import SentenceTransformer

    random_model(tmp_path, name, ARCHITECTURES[name])
    loaded = open_folder(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True).encode(
        [*LONG], batch_size=1
    )
    assert cosine(embed(loaded, LONG), theirs).min() > 0.99999
    check_company(loaded, 0.9999)
    loaded.close()


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_full_rows_keep_their_bytes(tmp_path: Path, name: str) -> None:
    """A row as long as the shape has the same bytes beside full rows and beside short ones."""
    random_model(tmp_path, name, ARCHITECTURES[name])
    loaded = open_folder(tmp_path)
    full, short, other = loaded.encode(["abcdefghijklmn", "ab", "nmlkjihgfedcba"]).rows
    shape = Shape(2, len(full))
    beside = [loaded.forward(rows, shape)[0].tobytes() for rows in ([full, other], [full, short], [full])]
    assert len(set(beside)) == 1
    loaded.close()


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_dense_module(tmp_path: Path, precision: str) -> None:
    """What follows the pooling is computed in float32 from the weights as they are stored."""
    weights = dense(Tiny(normalize=False).write(tmp_path), tmp_path / "2_Dense")
    loaded = open_folder(tmp_path, precision)
    assert loaded.describe().dimensions == 24
    pooled = np.stack([Tiny(normalize=False).embed(text) for text in TEXTS])
    expected = np.tanh(pooled @ weights["linear.weight"].T + weights["linear.bias"])
    assert cosine(embed(loaded, TEXTS), expected).min() > TOLERANCE[precision]
    kept = next(module for module in vars(loaded)["_modules"] if type(module).__name__ == "Dense")
    np.testing.assert_array_equal(kept.linear.weight.detach().cpu().numpy(), weights["linear.weight"])
    before = loaded.describe().identity
    loaded.close()
    dense(tmp_path, tmp_path / "2_Dense", seed=2)
    assert open_folder(tmp_path, precision).describe().identity != before


def test_pickles_are_refused(tmp_path: Path) -> None:
    """Weights of a module as a pickle are not opened, with or without safetensors beside them."""
    dense(Tiny(normalize=False).write(tmp_path), tmp_path / "2_Dense")
    (tmp_path / "2_Dense/model.safetensors").rename(tmp_path / "2_Dense/pytorch_model.bin")
    with pytest.raises(InvalidArgument, match="safetensors"):
        open_folder(tmp_path)


def test_code_is_refused(tmp_path: Path) -> None:
    """A model that wants code of its own to be run is refused, each way it can ask for it."""
    Tiny(extra={"auto_map": {"AutoModel": "modeling.Model"}}).write(tmp_path / "map")
    modules = json.loads((Tiny().write(tmp_path / "module") / "modules.json").read_text())
    write(
        tmp_path / "module",
        "modules.json",
        [*modules, {"idx": 3, "name": "3", "path": "3", "type": "own.Code"}],
    )
    write(Tiny().write(tmp_path / "file"), "modeling.py", {})
    dense(Tiny(normalize=False).write(tmp_path / "class"), tmp_path / "class/2_Dense")
    settings = json.loads((tmp_path / "class/2_Dense/config.json").read_text())
    write(tmp_path / "class/2_Dense", "config.json", settings | {"activation_function": "subprocess.Popen"})
    reasons = {"map": "code", "module": "code", "file": "code", "class": "subprocess.Popen"}
    for name, reason in reasons.items():
        with pytest.raises(InvalidArgument, match=reason):
            open_folder(tmp_path / name)


def test_models_it_cannot_run(tmp_path: Path) -> None:
    """They are refused with the reason, before they give wrong numbers."""
    Tiny().write(tmp_path / "cnn")
    modules = json.loads((tmp_path / "cnn/modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.CNN"
    write(tmp_path / "cnn", "modules.json", modules)
    with pytest.raises(InvalidArgument, match="a CNN module"):
        open_folder(tmp_path / "cnn")
    modules[1]["type"] = "sentence_transformers.models.Dropout"
    write(
        tmp_path / "cnn",
        "modules.json",
        [*modules, modules[1] | {"type": "sentence_transformers.models.Pooling"}],
    )
    with pytest.raises(InvalidArgument, match="then pooling"):
        open_folder(tmp_path / "cnn", pooling="mean")
    (Tiny().write(tmp_path / "bare") / "modules.json").unlink()
    with pytest.raises(InvalidArgument, match="pooling"):
        open_folder(tmp_path / "bare")
    assert open_folder(tmp_path / "bare", pooling="mean").describe().dimensions == 64
    Tiny().write(tmp_path / "words")
    config = json.loads((tmp_path / "words/config.json").read_text())
    write(tmp_path / "words", "config.json", config | {"vocab_size": VOCABULARY - 1})
    with pytest.raises(InvalidArgument, match="tokens"):
        open_folder(tmp_path / "words")


NAMES = ("query", "document", "passage", "corpus")
NAMED: list[Mapping[str, str | None]] = [
    {name: text for name, text in zip(NAMES, texts, strict=True) if text != "-"}
    for texts in product(("q: ", "", None, "-"), ("d: ", "", "-"), ("p: ", "-"), ("c: ", "-"))
]
"""Of each name a prompt, an empty one, null, or none."""


@pytest.mark.parametrize("default", [None, "query", "document", "passage", "corpus"])
def test_prompts_stand_where_the_library_puts_them(tmp_path: Path, default: str | None) -> None:
    """Every combination of names, empty and absent ones, and of the default: the library's own three ways."""
    from sentence_transformers import SentenceTransformer

    Tiny().write(tmp_path)
    write(tmp_path, "config_sentence_transformers.json", {})
    library = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    for named in NAMED:
        said = {"prompts": named} | ({} if default is None else {"default_prompt_name": default})
        write(tmp_path, "config_sentence_transformers.json", said)
        if default not in (None, "query", "document", *named):
            with pytest.raises(InvalidArgument, match="default_prompt_name"):
                folder.read(tmp_path)
            continue
        prompts = folder.read(tmp_path).prompts
        library = SentenceTransformer(
            modules=list(library),
            device="cpu",
            prompts={name: text or "" for name, text in named.items()},
            default_prompt_name=default,
        )
        for task, encode in (
            ("RETRIEVAL_QUERY", library.encode_query),
            ("RETRIEVAL_DOCUMENT", library.encode_document),
            (None, library.encode),
        ):
            seen = compose("a text", task, None, prompts)
            assert np.array_equal(encode("a text"), library.encode(seen, prompt="")), (named, default, task)


@pytest.mark.parametrize("poolings", [("mean",), ("cls",), ("max", "weightedmean"), ("lasttoken",)], ids=str)
def test_prompts_that_the_pooling_leaves_out(tmp_path: Path, poolings: tuple[str, ...]) -> None:
    """The library's vectors, whatever stands beside a text; without its prompt a like text is another."""
    from sentence_transformers import SentenceTransformer

    tiny = Tiny(prompts={"query": "find: ", "document": "a longer prompt: "}, poolings=poolings)
    tiny.write(tmp_path)
    said = json.loads((tmp_path / "1_Pooling/config.json").read_text())
    write(tmp_path, "1_Pooling/config.json", said | {"include_prompt": False})
    library = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    loaded = open_folder(tmp_path)
    prompts = loaded.describe().prompts
    texts = ("a text", "b", "another one, " * 9)
    given = [(task, text) for task in ("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", None) for text in texts]
    given.append((None, "find: a text"))
    seen = [compose(text, task, None, prompts) for task, text in given]
    found = embed(loaded, seen)
    ways = {
        "RETRIEVAL_QUERY": library.encode_query,
        "RETRIEVAL_DOCUMENT": library.encode_document,
        None: library.encode,
    }
    expected = np.stack([ways[task](text) for task, text in given])
    assert cosine(found, expected).min() > 0.99999
    # Of the last token alone it makes no difference.
    assert (cosine(found[:1], found[-1:]).max() < 0.9999) == (poolings != ("lasttoken",))
    rows = loaded.encode(seen)
    together = loaded.forward(rows.rows, Shape(len(seen), 32))
    for at in range(len(seen)):
        alone = loaded.forward([rows.rows[at]], Shape(len(seen), 32))
        assert alone[0].tobytes() == together[at].tobytes()
    loaded.close()


def test_chat_templates(tmp_path: Path) -> None:
    """Where the library reads texts through one the model is refused; where it only lies there it is not."""
    template = "{% for m in messages %}user: {{ m.content }}{% endfor %}"
    for name in ("unused", "used", "bare"):
        fast_tokenizer(Tiny().write(tmp_path / name), chat_template=template)
    assert open_folder(tmp_path / "unused").describe().dimensions == 64
    way = {"method": "forward", "method_output_name": "last_hidden_state"}
    settings = json.loads((tmp_path / "used/sentence_bert_config.json").read_text())
    settings |= {
        "modality_config": {"text": way, "message": {**way, "format": "flat"}},
        "module_output_name": "token_embeddings",
    }
    write(tmp_path / "used", "sentence_bert_config.json", settings)
    (tmp_path / "bare/modules.json").unlink()  # nobody has said how texts are read: the library decides
    for name in ("used", "bare"):
        with pytest.raises(InvalidArgument, match="chat template"):
            open_folder(tmp_path / name, pooling="mean")


@pytest.mark.parametrize(
    ("precision", "options", "field"),
    [
        ("f16", {}, "precision"),
        ("f32", {"device": "cuda:99"}, "engine-option"),
        ("f32", {"device": "abacus"}, "engine-option"),
        ("f32", {"speed": "high"}, "engine-option"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, precision: str, options: dict[str, str], field: str) -> None:
    """A wrong option or precision is refused and named."""
    Tiny().write(tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        open_folder(tmp_path, precision, **options)
    assert caught.value.field == field


def test_shapes_and_closing(tmp_path: Path) -> None:
    """Rows that do not fit are a mistake; a closed engine says so, twice as well."""
    loaded = open_folder(Tiny().write(tmp_path))
    rows = loaded.encode(["one", "two"]).rows
    for wrong in (Shape(1, 32), Shape(2, 2)):
        with pytest.raises(InvalidArgument, match="fit"):
            loaded.forward(rows, wrong)
    with pytest.raises(InvalidArgument, match="token ids"):
        loaded.forward(["one"], Shape(1, 8))
    loaded.close()
    loaded.close()
    with pytest.raises(EngineTrouble, match="closed"):
        loaded.forward(rows, Shape(2, 8))


def test_packing_uses_its_multiple(engine: Engine) -> None:
    """Planned lengths are multiples of eight, up to the model's limit."""
    about = engine.describe()
    lengths = engine.encode([text * 20 for text in LONG]).lengths.tolist()
    shapes = {part.shape.tokens for part in pack_padded(lengths, BUDGET, about.multiple, about.max_tokens)}
    assert all(tokens % 8 == 0 for tokens in shapes)


def fast_tokenizer(path: Path, **more: str) -> None:
    """Make transformers take `tokenizer.json` as it is, whatever the architecture."""
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    write(path, "tokenizer_config.json", kind | tokens | more)


def random_model(path: Path, name: str, sizes: Mapping[str, Any]) -> None:
    """Write a model of an architecture with random weights; decoders take their last token."""
    import torch
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    Tiny(max_tokens=96, positions=128).write(path)
    fast_tokenizer(path)
    if name == "qwen3":
        write(path, "1_Pooling/config.json", pooling_config(("lasttoken",), 64))
    torch.manual_seed(5)
    config = AutoConfig.for_model(name, **sizes)
    model = T5EncoderModel(config) if name == "t5" else AutoModel.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(path)


def dense(path: Path, place: Path, *, seed: int = 1) -> dict[str, Any]:
    """Add a Dense module with tanh to a folder; return its weights, float32."""
    random = np.random.default_rng(seed)
    weights = {
        "linear.weight": random.standard_normal((24, 64)).astype(np.float32),
        "linear.bias": random.standard_normal(24).astype(np.float32),
    }
    modules = json.loads((path / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    write(path, "modules.json", [*modules[:2], {"idx": 2, "name": "2", "path": place.name, "type": kind}])
    activation = "torch.nn.modules.activation.Tanh"
    sizes = {"in_features": 64, "out_features": 24, "bias": True, "activation_function": activation}
    write(place, "config.json", sizes)
    save(place / "model.safetensors", weights)
    return weights
