"""From the vectors of a text's tokens to the vector of the text, as nodes of an OpenVINO graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino.opset13 as ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    import openvino as ov

_NOTHING = -1e30  # finite, so that a row of filler without tokens gives numbers and not NaN


def pool(hidden: ov.Output, mask: ov.Output, poolings: Sequence[str]) -> ov.Output:
    """Return (rows, len(poolings) * size): one vector a row of hidden (rows, tokens, size).

    The mask is float32 (rows, tokens), 1 for a token and 0 for padding, which stands on the right. The words
    are those of `folder.POOLINGS`, the arithmetic that of sentence-transformers.
    """
    weights = ops.unsqueeze(mask, ops.constant(np.int32(2)))
    parts = [_one(hidden, weights, word) for word in poolings]
    return (parts[0] if len(parts) == 1 else ops.concat(parts, -1)).output(0)


def unit(vectors: ov.Output) -> ov.Output:
    """Return the vectors at length 1; a zero vector stays zero."""
    return ops.normalize_l2(vectors, ops.constant(np.array([1], np.int64)), 1e-24, "max").output(0)


def _one(hidden: ov.Output, weights: ov.Output, word: str) -> ov.Node:
    tokens = ops.constant(np.int64(1))
    match word:
        case "cls":
            return ops.gather(hidden, ops.constant(np.int32(0)), tokens)
        case "max":
            gone = ops.multiply(ops.subtract(weights, np.float32(1)), np.float32(-_NOTHING))
            return ops.reduce_max(ops.add(hidden, gone), tokens)
        case "lasttoken":
            # The mask less itself shifted left by one is 1 at the last token and 0 elsewhere.
            begin, step = ops.constant(np.array([1], np.int64)), ops.constant(np.array([1], np.int64))
            end = ops.constant(np.array([np.iinfo(np.int64).max], np.int64))
            shifted = ops.pad(
                ops.slice(weights, begin, end, step, ops.constant(np.array([1], np.int64))),
                ops.constant(np.zeros(3, np.int64)),
                ops.constant(np.array([0, 1, 0], np.int64)),
                "constant",
                ops.constant(np.float32(0)),
            )
            return ops.reduce_sum(ops.multiply(hidden, ops.subtract(weights, shifted)), tokens)
        case "weightedmean":  # the n-th token counts n times
            weights = ops.multiply(weights, ops.cum_sum(weights, ops.constant(np.int32(1))))
    total = ops.reduce_sum(ops.multiply(hidden, weights), tokens)
    count = ops.maximum(ops.reduce_sum(weights, tokens), np.float32(1e-9))
    return ops.divide(total, ops.sqrt(count) if word == "mean_sqrt_len_tokens" else count)
