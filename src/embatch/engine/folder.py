"""What a model's folder says about itself, read before a byte of its weights is.

The layout is that of sentence-transformers: `config.json`, `tokenizer.json`, `modules.json` with a folder
for each module, `sentence_bert_config.json`, `config_sentence_transformers.json`, and the weights as
`model.safetensors` or `onnx/model.onnx`. Nothing is guessed: what the folder leaves open, an option has to
say (`pooling=mean`, `normalize=true`, `max_tokens=512`, `prompt.RETRIEVAL_QUERY=query: `).
No code and no pickle of a model is ever run, and a folder that needs either is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch.batch import TaskType
from embatch.engine.texts import DEFAULT_PROMPT
from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POOLINGS: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which their results are joined when a folder names several."""
OPTIONS: Final = frozenset(
    {"pooling", "normalize", "max_tokens", "revision", "pinned", *(f"prompt.{task}" for task in TaskType)}
)
"""Options every engine that loads a folder understands. `pinned` names the row of `models.PINNED`."""

_LEGACY: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_LENGTH_FILES: Final = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_OFFSET_FAMILIES: Final = frozenset({"roberta", "xlm-roberta", "camembert"})
# Names authors give to the prompt of a task, most telling first, compared without case and punctuation.
# A question and a claim are looked up among documents: without a prompt of their own they are queries.
_QUERY: Final = ("query", "searchquery", "retrievalquery", "webquery", "websearchquery")
_PROMPT_NAMES: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.RETRIEVAL_QUERY: _QUERY,
    TaskType.RETRIEVAL_DOCUMENT: (
        "document",
        "passage",
        "corpus",
        "searchdocument",
        "retrievaldocument",
        "retrievalpassage",
    ),
    TaskType.SEMANTIC_SIMILARITY: ("semanticsimilarity", "sts", "similarity", "textmatching"),
    TaskType.CLASSIFICATION: ("classification",),
    TaskType.CLUSTERING: ("clustering", "separation"),
    TaskType.QUESTION_ANSWERING: ("questionanswering", "qa", *_QUERY),
    TaskType.FACT_VERIFICATION: ("factverification", "factchecking", *_QUERY),
    TaskType.CODE_RETRIEVAL_QUERY: ("coderetrievalquery", "coderetrieval", "codequery", *_QUERY),
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model as its files describe it."""

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    """The content of `config.json`."""
    safetensors: Path | None
    """`model.safetensors`; `None` where the folder has none, or has it in several parts."""
    onnx: Path | None
    pooling: tuple[str, ...]
    """Words of `POOLINGS`, joined in this order; empty where neither folder nor option says."""
    normalize: bool
    max_tokens: int
    lower_case: bool
    """Whether texts are put in lower case before they reach the tokenizer."""
    cut_left: bool
    """Whether too long a text loses its beginning instead of its end."""
    dimensions: int | None
    """`None` where only loading can tell."""
    prompts: Mapping[str, str]
    unsupported: str | None
    """A module between pooling and normalising that only sentence-transformers can run; `None`: none."""

    @property
    def family(self) -> str:
        """`model_type` of the configuration, such as `bert`; empty where it is not said."""
        return str(self.config.get("model_type", ""))

    @property
    def position_offset(self) -> int:
        """Rows of the position table before the first token's."""
        return _offset(self.config)

    def hashes(self, weights: Iterable[Path]) -> dict[str, str]:
        """Return the SHA-256 of the files that decide what a text's vector is, by name; not free."""
        files = (*weights, self.path / "tokenizer.json", self.path / "config.json")
        return {str(file.relative_to(self.path)): sha256(file) for file in files}

    def identity(self, hashes: Mapping[str, str], precision: str) -> str:
        """Return the digest of all that decides what a text's vector is, its files' `hashes` among it.

        Engines that compute the same function from the same weights in the same precision share it.
        """
        digest = hashlib.sha256()
        for name, found in hashes.items():
            digest.update(f"{name}={found}\n".encode())
        numerics = (self.pooling, self.normalize, self.max_tokens, self.lower_case, self.cut_left, precision)
        digest.update(repr(numerics).encode())
        return digest.hexdigest()


def read(path: Path, options: Mapping[str, str] | None = None) -> ModelFolder:
    """Return what the folder says, with what the options add or override.

    Raises:
        NotFound: a file every model needs is missing.
        InvalidArgument: the folder needs remote code or pickle, contradicts itself, or cannot be read.
    """
    options = options or {}
    config = _json(path / "config.json")
    tokenizer = _json(path / "tokenizer_config.json", {})
    _refuse_code(path, config, tokenizer, pinned="pinned" in options)
    if not (path / "tokenizer.json").is_file():
        raise NotFound(f"{path} has no tokenizer.json: only models with a fast tokenizer can be served")
    safetensors, onnx = _weights(path)
    modules = [(str(m["type"]).rpartition(".")[2], path / str(m["path"])) for m in _modules(path)]
    pooling, size = _pooling(modules, options)
    length = next((_json(path / name) for name in _LENGTH_FILES if (path / name).is_file()), {})
    kinds = [kind for kind, _ in modules]
    hidden = size or config.get("hidden_size")
    return ModelFolder(
        path=path,
        config=config,
        safetensors=safetensors,
        onnx=onnx,
        pooling=pooling,
        normalize=_flag(options["normalize"]) if "normalize" in options else "Normalize" in kinds,
        max_tokens=_max_tokens(config, tokenizer, length, options),
        lower_case=bool(length.get("do_lower_case", False)),
        cut_left=tokenizer.get("truncation_side") == "left",
        dimensions=hidden * max(1, len(pooling)) if isinstance(hidden, int) else None,
        prompts=_prompts(_json(path / "config_sentence_transformers.json", {}), options),
        unsupported=next((k for k in kinds if k not in {"Transformer", "Pooling", "Normalize"}), None),
    )


def sha256(file: Path) -> str:
    """Return the file's SHA-256 in hexadecimal; one that has not changed is read once."""
    about = file.stat()
    return _sha256(file, about.st_size, about.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    del size, changed  # they tell a changed file from the one that was read
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _json(file: Path, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    content = _any_json(file, default)
    if not isinstance(content, dict):
        raise InvalidArgument(f"{file} does not hold a JSON object", field="model")
    return content


def _any_json(file: Path, default: object = None) -> object:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        if default is None:
            raise NotFound(f"{file.parent} is no model folder: it has no {file.name}") from None
        return default
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{file} cannot be read as JSON", field="model") from error


def _modules(path: Path) -> Iterable[Mapping[str, Any]]:
    modules = _any_json(path / "modules.json", [])
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and {"type", "path"} <= module.keys() for module in modules
    ):
        raise InvalidArgument(f"{path / 'modules.json'} is not a list of modules", field="model")
    for module in modules:
        place = Path(str(module["path"]))
        if place.is_absolute() or ".." in place.parts:
            raise InvalidArgument(f"{path / 'modules.json'} points out of its folder", field="model")
        if not str(module["type"]).startswith("sentence_transformers."):
            raise InvalidArgument(
                f"{path / 'modules.json'} names a module of the model's own code, which is never run",
                field="model",
            )
    return modules


def _refuse_code(path: Path, *configs: Mapping[str, Any], pinned: bool) -> None:
    if any("auto_map" in config for config in configs):
        raise InvalidArgument(
            f"the model in {path} wants code of its own to be run (auto_map), which is never done",
            field="model",
        )
    # The files used of a pinned model are known byte for byte; what else lies beside them is never opened.
    if not pinned and any(found for pattern in ("*.py", "*/*.py") for found in path.glob(pattern)):
        raise InvalidArgument(
            f"{path} holds Python code, which is never run: copy the model's other files to a folder of "
            "their own if it works without",
            field="model",
        )


def _weights(path: Path) -> tuple[Path | None, Path | None]:
    safetensors = path / "model.safetensors"
    onnx = next((p for p in (path / "onnx/model.onnx", path / "model.onnx") if p.is_file()), None)
    if safetensors.is_file() or onnx or (path / "model.safetensors.index.json").is_file():
        return (safetensors if safetensors.is_file() else None), onnx
    if any(found for pattern in _PICKLES for found in path.glob(pattern)):
        raise InvalidArgument(
            f"{path} has its weights as pickle only, which can run any code when it is opened: "
            "convert them to model.safetensors, or take a revision of the model that has it",
            field="model",
        )
    raise NotFound(f"{path} has no weights: neither model.safetensors nor onnx/model.onnx")


def _pooling(
    modules: list[tuple[str, Path]], options: Mapping[str, str]
) -> tuple[tuple[str, ...], int | None]:
    """Return the poolings and the numbers of one token's vector, as far as they are said."""
    if "pooling" in options:
        return _known_poolings(options["pooling"].split("+")), None
    folder = next((place for kind, place in modules if kind == "Pooling"), None)
    if folder is None:
        return (), None
    said = _json(folder / "config.json")
    if not said.get("include_prompt", True):
        raise InvalidArgument(
            f"{folder} leaves the prompt out of the pooling: only the torch engine can do that", field="model"
        )
    size = said.get("word_embedding_dimension", said.get("embedding_dimension"))
    words = said.get("pooling_mode")
    if words is None:  # the older spelling: one switch for each; all off means mean
        words = [word for key, word in _LEGACY.items() if said.get(key)] or ["mean"]
    poolings = _known_poolings([words] if isinstance(words, str) else words)
    return poolings, size if isinstance(size, int) else None


def _known_poolings(words: Iterable[object]) -> tuple[str, ...]:
    known = tuple(word for word in words if isinstance(word, str) and word in POOLINGS)
    if not known or len(known) != len(tuple(words)):
        raise InvalidArgument(f"pooling must be of {', '.join(POOLINGS)}", field="engine-option")
    return known


def _flag(word: str) -> bool:
    if word.lower() not in {"true", "false"}:
        raise InvalidArgument("normalize must be true or false", field="engine-option")
    return word.lower() == "true"


def _offset(config: Mapping[str, Any]) -> int:
    if config.get("model_type") not in _OFFSET_FAMILIES:
        return 0
    pad = config.get("pad_token_id", 1)
    if not isinstance(pad, int) or pad < 0:
        raise InvalidArgument(f"config.json: pad_token_id must be a whole number, not {pad!r}", field="model")
    return pad + 1


def _max_tokens(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    length: Mapping[str, Any],
    options: Mapping[str, str],
) -> int:
    """Return the limit sentence-transformers would cut at, but never more than there are positions.

    `tokenizer.json` carries a truncation of its own, often a shorter one from training: it does not count.
    """
    positions = config.get("max_position_embeddings")
    room = positions - _offset(config) if isinstance(positions, int) else None
    if "max_tokens" in options:
        if not options["max_tokens"].isdecimal() or not int(options["max_tokens"]):
            raise InvalidArgument("max_tokens must be a whole number above 0", field="engine-option")
        wanted = int(options["max_tokens"])
    else:
        said = length.get("max_seq_length") or tokenizer.get("model_max_length")
        # Tokenizers without a limit say 10**30.
        wanted = int(said) if isinstance(said, int | float) and 0 < said < 1e9 else 0
    limits = [limit for limit in (wanted, room) if limit]
    if not limits:
        raise InvalidArgument(
            "the folder does not say how many tokens the model takes: add --engine-option max_tokens=N",
            field="engine-option",
        )
    return min(limits)


def _prompts(said: Mapping[str, Any], options: Mapping[str, str]) -> Mapping[str, str]:
    named = said.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise InvalidArgument("the prompts of config_sentence_transformers.json are not texts", field="model")
    plain = {"".join(filter(str.isalnum, name)).lower(): text for name, text in named.items()}
    prompts = {
        str(task): plain[name]
        for task, names in _PROMPT_NAMES.items()
        for name in [next((name for name in names if plain.get(name)), None)]
        if name is not None
    }
    default = named.get(said.get("default_prompt_name") or "")
    if default:
        prompts[DEFAULT_PROMPT] = default
    return prompts | {key.partition(".")[2]: text for key, text in options.items() if key[:7] == "prompt."}
