"""ONNX files without the onnx package: just enough protocol buffers for a small embedding model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FLOAT, _INT64 = 1, 7
Dims = tuple[int | str, ...]
Tensor = NDArray[np.float32] | NDArray[np.int64]
TOKENS: Final[Dims] = ("batch", "sequence")


def varint(value: int) -> bytes:
    """Return a number as protocol buffers write it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: int | str | bytes) -> bytes:
    """Return one field: a number, or text, or a message already written."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def node(operation: str, inputs: Sequence[str], output: str) -> bytes:
    """Return a NodeProto."""
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operation)


def tensor(name: str, values: Tensor) -> bytes:
    """Return a TensorProto."""
    dims = b"".join(field(1, size) for size in values.shape)
    kind = _INT64 if values.dtype == np.int64 else _FLOAT
    return dims + field(2, kind) + field(8, name) + field(9, values.tobytes())


def port(name: str, kind: int, dims: Dims) -> bytes:
    """Return a ValueInfoProto; a dimension is a size or the name of an open one."""
    shape = b"".join(field(1, field(1, dim) if isinstance(dim, int) else field(2, dim)) for dim in dims)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def write_onnx(
    file: Path,
    nodes: Sequence[bytes],
    tensors: Mapping[str, Tensor],
    inputs: Sequence[str],
    outputs: Mapping[str, Dims],
) -> None:
    """Write a model whose inputs are all int64 (batch, sequence) and whose outputs are float32."""
    graph = b"".join(field(1, each) for each in nodes) + field(2, "graph")
    graph += b"".join(field(5, tensor(name, values)) for name, values in tensors.items())
    graph += b"".join(field(11, port(name, _INT64, TOKENS)) for name in inputs)
    graph += b"".join(field(12, port(name, _FLOAT, dims)) for name, dims in outputs.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
