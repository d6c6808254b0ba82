"""A model as somebody asks for it, by a folder or a name, and what it is served by: its own name, for good.

Two folders of one name are two models, and so is one folder in two precisions: the name of everything that is
not a Hub name as it stands ends in a digest of what was asked for.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch.engine import folder as folders
from embatch.engine.machine import AFFINITY
from embatch.engine.models import (
    DEFAULT_MODEL,
    ModelFiles,
    ServedModel,
    check_engine,
    described,
    folder_name,
    is_name,
    serve_model,
)
from embatch.engine.protocol import EngineSpec
from embatch.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DIGITS: Final = 8
"""Of the digest at the end of a name."""
_OPTIONS: Final = (folders.OPTIONS - {"pinned", "revision"}) | {AFFINITY, "device"}
_LOOKED_AT: Final = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*.onnx", "onnx/*")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Which model is meant, and how it shall be computed."""

    folder: str | None = None
    """Absolute; `None` for a model that has a name."""
    name: str | None = None
    """A Hub name, or for the hashing engine any; `None` for a folder."""
    revision: str | None = None
    """Of a Hub name: commit, tag or branch; `None` for the newest."""
    engine: str = "auto"
    precision: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it is a name and nothing beside: what is served under that name already is meant."""
        return self == ModelReference(name=self.name)

    @property
    def digest(self) -> str:
        """What tells it from every other one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def checked(self) -> ModelReference:
        """Return the same, its folder without links and the default model's name in full.

        Raises:
            InvalidArgument: an engine, a precision or an option cannot be so; `field` says which.
            NotFound: there is no such folder, or nothing can have such a name.
        """
        check_engine(self.engine, self.precision)
        if self.engine == "remote":
            raise InvalidArgument(
                "the remote engine is one of a service that somebody runs: embatch serve --engine remote "
                "--engine-url URL --model NAME, and --to its address",
                field="engine",
            )
        unknown = sorted(self.options.keys() - _OPTIONS) if self.engine != "hashing" else []
        if unknown:
            plain = ", ".join(sorted(name for name in _OPTIONS if not name.startswith("prompt.")))
            raise InvalidArgument(
                f"there is no option {unknown[0][:40]!r}; there are {plain}, prompt.TASK_TYPE, and revision "
                "for a Hub name",
                field="engine-option",
            )
        if self.folder is None:
            return self._checked_name()
        if self.revision is not None:
            raise InvalidArgument("a folder has no revision: it goes with a Hub name", field="engine-option")
        if self.engine == "hashing":
            raise InvalidArgument("the hashing engine reads no folder: give a name", field="engine")
        path = Path(self.folder)
        if not path.is_absolute():
            raise InvalidArgument("a folder is named by its whole path", field="model")
        _check_folder(path)
        return replace(self, folder=str(path.resolve()), name=None)

    def _checked_name(self) -> ModelReference:
        name = (self.name or DEFAULT_MODEL).removeprefix("models/")
        if not is_name(name):
            raise NotFound(
                "no model can have this name, and it names no folder: a Hub name looks like org/name, a "
                "folder begins with / or ./",
                field="model",
                reason="MODEL_NOT_FOUND",
            )
        return replace(self, name=DEFAULT_MODEL if name == DEFAULT_MODEL.rpartition("/")[2] else name)

    def served_name(self, taken: Collection[str]) -> str:
        """Return the name to serve it by: always the same, unless that is taken by another reference."""
        if self.name is not None and self.plain and self.name not in taken:
            return self.name
        digest = self.digest
        stem = self.name or folder_name(Path(self.folder or ""))
        names = (f"{stem}-{digest[:digits]}" for digits in range(DIGITS, len(digest) + 1))
        return next(name for name in names if name not in taken)

    def serve(self, name: str, found: ModelFiles | None, threads: int) -> ServedModel:
        """Return how it is served under a name.

        Args:
            name: of `served_name`.
            found: where the files of a Hub name are; `None` for what needs none.
            threads: 0 for one per core.

        Raises:
            NotFound, InvalidArgument, DataLoss: as `models.serve_model`.
        """
        if self.engine == "hashing":
            made = serve_model(self.name or "", engine="hashing", threads=threads, options=self.options)
            return replace(made, name=name)
        path = Path(self.folder) if self.folder is not None else found.path if found is not None else Path()
        if self.folder is not None:
            _check_folder(path)  # it was there when it was named
        pinned = {"pinned": found.pinned} if found is not None and found.pinned is not None else {}
        spec = EngineSpec(self.engine, str(path), self.precision, threads, None, {**self.options, **pinned})
        try:
            return described(name, spec)
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field="model") from error


def _check_folder(path: Path) -> None:
    """Refuse what is no folder. Raises NotFound."""
    if not path.is_dir():
        words = (
            f"{path} is a file, and a model is a folder" if path.exists() else f"there is no folder {path}"
        )
        raise NotFound(words, field="model", reason="MODEL_NOT_FOUND")


def state_of(path: Path) -> str:
    """Return what tells a folder from the same one with other files in it, without reading them."""
    seen = []
    for file in sorted({file for pattern in _LOOKED_AT for file in path.glob(pattern)}):
        with suppress(OSError):  # a link that leads nowhere
            about = file.stat()
            seen.append((str(file), about.st_ino, about.st_size, about.st_mtime_ns))
    return hashlib.sha256(repr(seen).encode()).hexdigest()
