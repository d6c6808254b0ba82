"""What a model's folder says about itself, read before a byte of its weights is.

The layout is that of sentence-transformers: `config.json`, `tokenizer.json`, `modules.json` with a folder
for each module, `sentence_bert_config.json`, `config_sentence_transformers.json`, and the weights as
`model.safetensors` or `onnx/model.onnx`. Nothing is guessed: what the folder leaves open, an option has to
say (`pooling=mean`, `normalize=true`, `max_tokens=512`, `prompt.RETRIEVAL_QUERY=query: `).
No code and no pickle of a model is ever run, and a folder that needs either is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch.batch import TaskType
from embatch.engine import fields, prompts
from embatch.engine.texts import PROMPT_END
from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embatch.engine.fields import ConfigFields

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
_TOKENIZER_BYTES: Final = 1 << 30
_NO_LIMIT: Final = 1e9
"""Tokenizers without a limit say 10**30."""
_LONGEST_NAME: Final = 200
_WHOLE: Final = re.compile(r"0*[1-9][0-9]{0,8}")
_OFFSET_FAMILIES: Final = frozenset({"roberta", "xlm-roberta", "camembert"})


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
    """As `Description.prompts`; each ends with `texts.PROMPT_END` where the pooling leaves it out."""
    pooled_prompt: bool
    """Whether a text's vector is made of its prompt's tokens too."""
    unsupported: str | None
    """A module between pooling and normalising that only sentence-transformers can run; `None`: none."""

    @property
    def family(self) -> str:
        """`model_type` of the configuration, such as `bert`; empty where it is not said."""
        return str(self.config.get("model_type") or "")

    @property
    def position_offset(self) -> int:
        """Rows of the position table before the first token's."""
        return _offset(fields.ConfigFields(self.path / "config.json", self.config))

    @property
    def pad(self) -> int:
        """The token that fills up short rows; which one it is matters nowhere, for it is masked."""
        return max(0, self.config.get("pad_token_id") or 0)

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
        if not self.pooled_prompt:
            digest.update(b"the prompt is not pooled\n")
        digest.update(repr(numerics).encode())
        return digest.hexdigest()


def read(path: Path, options: Mapping[str, str] | None = None) -> ModelFolder:
    """Return what the folder says, with what the options add or override.

    Raises:
        NotFound: a file every model needs is missing.
        InvalidArgument: the folder needs remote code or pickle, contradicts itself, or cannot be read.
    """
    options = options or {}
    config = fields.read_object(path / "config.json", needed=True)
    tokenizer = fields.read_object(path / "tokenizer_config.json")
    _refuse_code(path, config.content, tokenizer.content, pinned="pinned" in options)
    _check(config)
    try:
        fields.check_file(path / "tokenizer.json", _TOKENIZER_BYTES)
    except FileNotFoundError:
        raise NotFound(
            f"{path} has no tokenizer.json: only models with a fast tokenizer can be served", field="model"
        ) from None
    safetensors, onnx = _weights(path)
    listed = [(kind, path / place) for kind, place in modules(path)]
    pooling, size, pooled_prompt = _pooling(listed, options)
    length = next(
        (fields.read_object(path / name) for name in _LENGTH_FILES if os.path.lexists(path / name)), None
    )
    kinds = [kind for kind, _ in listed]
    unsupported = next((k for k in kinds if k not in {"Transformer", "Pooling", "Normalize"}), None)
    return ModelFolder(
        path=path,
        config=config.content,
        safetensors=safetensors,
        onnx=onnx,
        pooling=pooling,
        normalize=_flag(options["normalize"]) if "normalize" in options else "Normalize" in kinds,
        max_tokens=_max_tokens(config, tokenizer, length, options),
        lower_case=length is not None and length.flag("do_lower_case", default=False),
        cut_left=tokenizer.text("truncation_side") == "left",
        dimensions=None if unsupported else _dimensions(config.whole("hidden_size"), size, pooling),
        prompts=_prompts(
            fields.read_object(path / "config_sentence_transformers.json"), options, pooled=pooled_prompt
        ),
        pooled_prompt=pooled_prompt,
        unsupported=unsupported,
    )


def refuse_code(path: Path) -> None:
    """Refuse a model that wants code of its own to be run, by its configuration. Raises InvalidArgument."""
    names = ("config.json", "tokenizer_config.json")
    _refuse_code(path, *(fields.read_object(path / name).content for name in names), pinned=True)
    modules(path)


def unpooled(described: ModelFolder) -> str | None:
    """Return what an engine that pools all tokens says of a model whose prompts are left out, else `None`."""
    if described.pooled_prompt or not any(described.prompts.values()):
        return None
    return "a pooling that leaves the prompt out (include_prompt)"


def sha256(file: Path) -> str:
    """Return the file's SHA-256 in hexadecimal; one that has not changed is read once."""
    about = file.stat()
    return _sha256(file, about.st_size, about.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    del size, changed  # they tell a changed file from the one that was read
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(config: ConfigFields) -> None:
    """Make sure that what several parts of this program take from `config.json` is of its kind."""
    for name in ("model_type", "position_embedding_type"):
        config.text(name)
    for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
        config.whole(name)
    config.whole("pad_token_id", -1)


def modules(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the folder of each module that `modules.json` lists; none where there is none.

    Raises:
        InvalidArgument: it is no such list, names the model's own code, or points out of its folder.
    """
    return [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in _modules(path)]


def _modules(path: Path) -> Iterable[Mapping[str, Any]]:
    file = path / "modules.json"
    listed = fields.read_json(file, [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidArgument(f"{file} is not a list of modules", field="model")
    for one in listed:
        module = fields.ConfigFields(file, one)
        kind, folder = module.text("type"), module.text("path")
        if kind is None or folder is None:
            raise InvalidArgument(f"{file}: each module needs a type and a path", field="model")
        if not (kind + folder).isprintable() or len(folder) > _LONGEST_NAME:
            raise InvalidArgument(f"{file}: a type or a path is no name", field="model")
        place = Path(folder)
        if place.is_absolute() or ".." in place.parts:
            raise InvalidArgument(f"{file} points out of its folder", field="model")
        if not kind.startswith("sentence_transformers."):
            raise InvalidArgument(
                f"{file} names a module of the model's own code, which is never run", field="model"
            )
    return listed


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
) -> tuple[tuple[str, ...], int | None, bool]:
    """Return the poolings and the numbers of a token's vector, as far as said, and if prompts are pooled."""
    folder = next((place for kind, place in modules if kind == "Pooling"), None)
    said = fields.read_object(folder / "config.json", needed=True) if folder is not None else None
    pooled = said is None or said.flag("include_prompt", default=True)
    if "pooling" in options:
        words = tuple(options["pooling"].split("+"))
        if not set(words) <= set(POOLINGS):
            raise InvalidArgument(f"pooling must be of {', '.join(POOLINGS)}", field="engine-option")
        return words, None, pooled
    if said is None:
        return (), None, True
    size = said.whole("word_embedding_dimension") or said.whole("embedding_dimension")
    named = said.content.get("pooling_mode")
    if named is None:  # the older spelling: one switch for each; all off means mean
        switched = [word for key, word in _LEGACY.items() if said.flag(key, default=False)]
        return tuple(switched) or ("mean",), size, pooled
    listed = [named] if isinstance(named, str) else named
    if not isinstance(listed, list) or not listed or any(word not in POOLINGS for word in listed):
        raise said.wrong("pooling_mode", f"of {', '.join(POOLINGS)}", named)
    return tuple(listed), size, pooled


def _dimensions(hidden: int | None, pooled: int | None, pooling: tuple[str, ...]) -> int | None:
    """Return the numbers of a vector; `None` where two files differ or none says."""
    if None not in (hidden, pooled) and hidden != pooled:
        return None
    size = hidden or pooled
    return size * max(1, len(pooling)) if size else None


def _flag(word: str) -> bool:
    if word.lower() not in {"true", "false"}:
        raise InvalidArgument("normalize must be true or false", field="engine-option")
    return word.lower() == "true"


def _offset(config: ConfigFields) -> int:
    if config.text("model_type") not in _OFFSET_FAMILIES:
        return 0
    pad = config.whole("pad_token_id", 0) if "pad_token_id" in config.content else 1
    if pad is None:
        raise config.wrong("pad_token_id", "a whole number", pad)
    return pad + 1


def _max_tokens(
    config: ConfigFields, tokenizer: ConfigFields, length: ConfigFields | None, options: Mapping[str, str]
) -> int:
    """Return the limit sentence-transformers would cut at, but never more than there are positions.

    `tokenizer.json` carries a truncation of its own, often a shorter one from training: it does not count.
    """
    positions = config.whole("max_position_embeddings")
    room = positions - _offset(config) if positions else None
    if room is not None and room < 1:
        raise config.wrong("max_position_embeddings", "more than pad_token_id and 1", positions)
    if "max_tokens" in options:
        if _WHOLE.fullmatch(options["max_tokens"]) is None:
            raise InvalidArgument("max_tokens must be a whole number above 0", field="engine-option")
        wanted = int(options["max_tokens"])
    else:
        said = length.whole("max_seq_length") if length is not None else None
        limit = said or tokenizer.number("model_max_length") or 0
        wanted = int(limit) if limit < _NO_LIMIT else 0
    limits = [limit for limit in (wanted, room) if limit]
    if not limits:
        raise InvalidArgument(
            "the folder does not say how many tokens the model takes: add --engine-option max_tokens=N",
            field="engine-option",
        )
    return min(limits)


def _prompts(said: ConfigFields, options: Mapping[str, str], *, pooled: bool) -> Mapping[str, str]:
    named, default = said.texts("prompts"), said.text("default_prompt_name") or None
    if default is not None and default not in named and default not in prompts.ALWAYS:
        raise said.wrong("default_prompt_name", "the name of one of its prompts", default)
    found = prompts.by_task(named, default)
    found |= {key.partition(".")[2]: text for key, text in options.items() if key[:7] == "prompt."}
    return found if pooled else {task: text and text + PROMPT_END for task, text in found.items()}
