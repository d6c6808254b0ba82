"""Random weights in the kernel's order, and what float32 makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embatch.engine.amx import reference
from embatch.engine.amx.library import BLOCK, Form, opened
from embatch.vectors import cosine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.engine.amx.library import PackedModel

SMALL = Form(64, 128, 2, 2, 97, BLOCK, cls=False, normalize=True, epsilon=1e-6)
QUERY, KEY, VALUE = 0, 2, 4
"""Places of a layer's weights among its tensors; each is followed by its bias."""


@dataclass
class Weights:
    """A model's form and tensors; change them before it is packed."""

    form: Form
    tensors: list[NDArray[np.float32]]

    def layers(self, place: int) -> Iterator[NDArray[np.float32]]:
        """Return the tensor at one place of every layer."""
        for layer in range(self.form.layers):
            yield self.tensors[reference.HEAD_TENSORS + layer * reference.LAYER_TENSORS + place]

    def pack(self, library: Path) -> PackedModel:
        """Return them packed; free it."""
        return opened(library).load(self.form, self.tensors)

    def expected(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the vectors of all rows in float32."""
        return np.stack([reference.vector(self.form, self.tensors, row) for row in rows])


def but(**changes: Any) -> Form:
    """Return the small form with changes."""
    return replace(SMALL, **changes)


def weights(form: Form = SMALL, *, seed: int = 5, spread: float = 1.0) -> Weights:
    """Return random weights, as large as those of real models: outputs of a product are about 1."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, scale: float) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * scale * spread).astype(np.float32)

    def norm() -> list[NDArray[np.float32]]:
        return [1 + draw(form.hidden, scale=0.1), draw(form.hidden, scale=0.1)]

    def linear(outputs: int, inputs: int) -> list[NDArray[np.float32]]:
        return [draw(outputs, inputs, scale=inputs**-0.5), draw(outputs, scale=0.1)]

    tensors = [draw(form.words, form.hidden, scale=1), draw(form.positions, form.hidden, scale=0.3), *norm()]
    for _ in range(form.layers):
        for _ in range(4):
            tensors += linear(form.hidden, form.hidden)
        tensors += norm()
        tensors += linear(form.inner, form.hidden) + linear(form.hidden, form.inner) + norm()
    return Weights(form, tensors)


def rows_of(lengths: Sequence[int], words: int = SMALL.words, seed: int = 1) -> list[NDArray[np.int32]]:
    """Return random token ids, a row for each length."""
    random = np.random.default_rng(seed)
    return [random.integers(0, words, length).astype(np.int32) for length in lengths]


def least(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the least cosine of two vectors of the same row."""
    return float(cosine(found, expected).min())
