"""The same encoder in plain numpy and float32: what the kernel's vectors are compared with on every load.

One text at a time, no padding, no mask, nothing clever: short enough to be seen to be right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine.amx.library import Form

    Floats = NDArray[np.float32]

HEAD_TENSORS = 4
LAYER_TENSORS = 16


def vector(form: Form, tensors: Sequence[Floats], ids: NDArray[np.int32]) -> Floats:
    """Return the vector of one text, float32 (hidden,). `tensors` as `Library.load` takes them."""
    words, positions, weight, bias = tensors[:HEAD_TENSORS]
    x = _norm(words[ids] + positions[: len(ids)], weight, bias, form.epsilon)
    for layer in range(form.layers):
        first = HEAD_TENSORS + layer * LAYER_TENSORS
        wq, bq, wk, bk, wv, bv, wo, bo, g1, b1, wi, bi, wt, bt, g2, b2 = tensors[
            first : first + LAYER_TENSORS
        ]
        mixed = _attention(x @ wq.T + bq, x @ wk.T + bk, x @ wv.T + bv, form.heads)
        x = _norm(x + mixed @ wo.T + bo, g1, b1, form.epsilon)
        x = _norm(x + _gelu(x @ wi.T + bi) @ wt.T + bt, g2, b2, form.epsilon)
    pooled = x[0] if form.cls else x.mean(axis=0)
    length = float(np.linalg.norm(pooled)) if form.normalize else 1.0
    return np.asarray(pooled / max(length, 1e-12), np.float32)


def _attention(q: Floats, k: Floats, v: Floats, heads: int) -> Floats:
    q, k, v = (part.reshape(len(part), heads, -1).swapaxes(0, 1) for part in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = powers / powers.sum(axis=-1, keepdims=True) @ v
    return np.asarray(mixed.swapaxes(0, 1).reshape(mixed.shape[1], -1), np.float32)


def _norm(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> Floats:
    apart = x - x.mean(axis=-1, keepdims=True)
    variance = (apart * apart).mean(axis=-1, keepdims=True)
    return np.asarray(apart / np.sqrt(variance + np.float32(epsilon)) * weight + bias, np.float32)


def _gelu(x: Floats) -> Floats:
    """Return x Phi(x); the error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.polyval(np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0]), t)
    error = np.copysign(1 - series * np.exp(-size * size), x)
    return np.asarray(x * (0.5 + 0.5 * error), np.float32)
