"""From an `EngineSpec` to a loaded engine. Each engine's libraries are imported only when it is chosen."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch.engine import folder
from embatch.engine.machine import AFFINITY
from embatch.errors import EmbatchError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.engine.protocol import Engine, EngineSpec

_NEEDS: Final = {
    "amx": (("tokenizers", "safetensors"), "local"),
    "openvino": (("openvino", "tokenizers", "safetensors"), "local"),
    "torch": (("torch", "sentence_transformers"), "torch"),
}
"""What an engine imports, and the extra of ours that brings it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine, and why it is not another."""

    engine: Engine
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """The faster engines that `auto` would have taken, and what stood against each."""


def load(spec: EngineSpec) -> Engine:
    """Load the engine the spec names; `auto` takes the fastest that model and machine allow.

    That is amx, our own kernel, where it can be used; then openvino; then torch.

    Raises:
        NotFound: the model's files are not there.
        InvalidArgument: no such engine, its libraries are not installed, or it cannot run the model.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    return choose(spec).engine


def choose(spec: EngineSpec) -> Loaded:
    """Load an engine as `load` does, and say what was passed over. Raises as `load`."""
    if spec.engine != "auto":
        return Loaded(_named(spec.engine, spec))
    problem = _no_amx(spec)
    if problem is None:
        from embatch.engine import amx  # noqa: PLC0415 - as below

        try:
            return Loaded(_named("amx", spec))
        except amx.Unfit as error:
            problem = error.message
    passed_over = {"amx": problem}
    # What only amx can do was said for the case that it serves.
    spec = replace(spec, options={name: value for name, value in spec.options.items() if name != AFFINITY})
    problem = _no_openvino(spec)
    if problem is None:
        return Loaded(_named("openvino", spec), passed_over)
    if _installed("torch"):
        return Loaded(_named("torch", spec), passed_over | {"openvino": problem})
    if not _installed("openvino"):
        return Loaded(_named("openvino", spec))  # which says how to get it
    raise InvalidArgument(
        f"openvino cannot run this model ({problem}), and the torch engine, which may, is not installed: "
        'pip install "embatch[torch]"',
        field="model",
    )


def _named(name: str, spec: EngineSpec) -> Engine:
    if name not in {"amx", "openvino", "torch", "remote", "hashing"}:
        raise InvalidArgument("engine must be auto, amx, openvino, torch, remote or hashing", field="engine")
    if not _installed(name):
        raise InvalidArgument(
            f'the {name} engine is not installed: pip install "embatch[{_NEEDS[name][1]}]"', field="engine"
        )
    module = importlib.import_module(f"embatch.engine.{name}")
    try:
        engine: Engine = module.load(spec)
    except (EmbatchError, MemoryError):
        raise
    except Exception as error:
        raise InvalidArgument(
            f"the {name} engine cannot load {spec.model} ({type(error).__name__}): its files are damaged, or "
            "of a kind that is not known here",
            field="model",
        ) from error
    return engine


def _no_amx(spec: EngineSpec) -> str | None:
    if not _installed("amx"):
        return "not installed"
    from embatch.engine import amx  # noqa: PLC0415 - only where what it imports is installed

    if spec.precision not in {"auto", "bf16"}:
        return "it computes in bf16 only"
    return amx.unavailable() or amx.unsupported(folder.read(Path(spec.model), spec.options))


def _no_openvino(spec: EngineSpec) -> str | None:
    if not _installed("openvino"):
        return "not installed"
    from embatch.engine import openvino  # noqa: PLC0415 - only where it is installed

    return openvino.unsupported(folder.read(Path(spec.model), spec.options))


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in _NEEDS.get(name, ((),))[0])
