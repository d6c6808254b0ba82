"""From an `EngineSpec` to a loaded engine. Each engine's libraries are imported only when it is chosen."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch.engine import folder
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from embatch.engine.protocol import Engine, EngineSpec

_NEEDS: Final = {
    "openvino": (("openvino", "tokenizers", "safetensors"), "local"),
    "torch": (("torch", "sentence_transformers"), "torch"),
}
"""What an engine imports, and the extra of ours that brings it."""


def load(spec: EngineSpec) -> Engine:
    """Load the engine the spec names; `auto` takes openvino where it can run the model, else torch.

    Raises:
        NotFound: the model's files are not there.
        InvalidArgument: no such engine, its libraries are not installed, or it cannot run the model.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    name = _choose(spec) if spec.engine == "auto" else spec.engine
    if name not in {"openvino", "torch", "remote", "hashing"}:
        raise InvalidArgument("engine must be auto, openvino, torch, remote or hashing", field="engine")
    if not _installed(name):
        raise InvalidArgument(
            f'the {name} engine is not installed: pip install "embatch[{_NEEDS[name][1]}]"', field="engine"
        )
    engine: Engine = importlib.import_module(f"embatch.engine.{name}").load(spec)
    return engine


def _choose(spec: EngineSpec) -> str:
    if not _installed("openvino"):
        return "torch" if _installed("torch") else "openvino"
    from embatch.engine import openvino  # noqa: PLC0415 - only where it is installed

    problem = openvino.unsupported(folder.read(Path(spec.model), spec.options))
    if problem is None:
        return "openvino"
    if _installed("torch"):
        return "torch"
    raise InvalidArgument(
        f"openvino cannot run this model ({problem}), and the torch engine, which may, is not installed: "
        'pip install "embatch[torch]"',
        field="model",
    )


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in _NEEDS.get(name, ((),))[0])
