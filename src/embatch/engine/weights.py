"""Tensors of a safetensors file as float32, however they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


def read(file: Path) -> dict[str, NDArray[np.float32]]:
    """Return every floating-point tensor by name; whole-number ones (buffers of old exports) are left out.

    Raises:
        InvalidArgument: the file is not safetensors, or damaged.
    """
    try:
        with safe_open(file, framework="np") as opened:
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - the handle is no mapping
            if "BF16" not in kinds.values():
                return {
                    name: np.asarray(opened.get_tensor(name), np.float32)
                    for name, kind in kinds.items()
                    if kind in _FLOATS
                }
        # numpy has no bfloat16, and the library then refuses: its raw bytes are widened here.
        return {
            name: _widen(raw["dtype"], raw["data"]).reshape(raw["shape"])
            for name, raw in deserialize(file.read_bytes())  # type: ignore[no-untyped-call] # no stub
            if raw["dtype"] in _FLOATS
        }
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InvalidArgument(
            f"{file} is not a whole safetensors file: get the model again", field="model"
        ) from error


def _widen(kind: str, data: bytes) -> NDArray[np.float32]:
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    return np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32)
