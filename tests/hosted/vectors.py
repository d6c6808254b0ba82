"""From a text to its vector: the same on every machine, of unit length at the native width.

    Vectors("hash")("a text", "gemini-embedding-001", 3072)     # fast; texts have nothing in common
    Vectors("local")("a text", "gemini-embedding-001", 3072)    # texts that share words lie near each other

A vector below the native width is the beginning of the native one: not of unit length, unless the model
says so.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOKEN = re.compile(r"\w+|[^\w\s]")
_BUCKETS = 2048
_OWN = 0.35
"""Share of a local vector that only its own text explains."""


@dataclass(frozen=True)
class Embedder:
    """One model."""

    native: int
    tokens: int
    """Most tokens of a text; the rest of a longer one is not read."""
    keeps_length: bool = False
    """Vectors below the native width are of unit length, too."""
    reads_task: bool = True
    legacy: bool = False
    """Of Vertex, with instances and predictions."""


EMBEDDERS = {
    "gemini-embedding-001": Embedder(3072, 2048),
    "gemini-embedding-2": Embedder(3072, 8192, keeps_length=True, reads_task=False),
    "text-embedding-005": Embedder(768, 2048, legacy=True),
    "text-multilingual-embedding-002": Embedder(768, 2048, legacy=True),
}


def tokens(text: str) -> list[str]:
    """Split a text as the stand-ins count it: words, and signs one by one."""
    return _TOKEN.findall(text)


@dataclass(frozen=True)
class Vectors:
    """Embeds texts; `seed` makes another family of models."""

    kind: Literal["hash", "local"] = "hash"
    seed: int = 0
    _tables: dict[int, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(
        self, text: str, model: str, dimensions: int | None = None, task: str = "", title: str = ""
    ) -> NDArray[np.float32]:
        """Return the vector of one text: float32, `dimensions` long, the native width by default."""
        embedder = EMBEDDERS[model]
        width = dimensions or embedder.native
        manner = f"{task}|{title}" if embedder.reads_task and (task or title) else ""
        found = (
            self._hashed(text, model, manner, embedder.native, width)
            if self.kind == "hash"
            else self._local(text, model, manner, embedder.native)[:width]
        )
        return found / np.linalg.norm(found) if embedder.keeps_length else found

    def noisy(self, vector: NDArray[np.float32], length: float, salt: str) -> NDArray[np.float32]:
        """Return the vector with noise of a length relative to it."""
        if not length:
            return vector
        noise = np.random.default_rng(_digest(self.seed, salt)).standard_normal(len(vector))
        scaled = noise * (length * np.linalg.norm(vector) / np.linalg.norm(noise))
        return (vector + scaled).astype(np.float32)

    def _hashed(self, text: str, model: str, manner: str, native: int, width: int) -> NDArray[np.float32]:
        # All components are as large, so that the length is known without those that are cut off.
        said = f"{self.seed}|{model}|{manner}|{text}".encode()
        bits = np.unpackbits(np.frombuffer(hashlib.shake_128(said).digest((width + 7) // 8), np.uint8))[
            :width
        ]
        return (bits.astype(np.float32) * 2 - 1) / np.float32(native**0.5)

    def _local(self, text: str, model: str, manner: str, native: int) -> NDArray[np.float32]:
        if native not in self._tables:
            drawn = np.random.default_rng(self.seed).standard_normal((_BUCKETS, native), np.float32)
            self._tables[native] = drawn / np.float32(native**0.5)
        words = tokens(text.lower())
        grams = [word[at : at + 4] for word in words for at in range(len(word) - 3)]
        places = np.array([_bucket(f"{model}|{one}") for one in [*words, *words, *grams]], np.int64)
        shared = np.zeros(native, np.float32)
        if len(places):
            found, counts = np.unique(places, return_counts=True)
            shared = np.sqrt(counts).astype(np.float32) @ self._tables[native][found]
            shared /= np.linalg.norm(shared)
        own = np.random.default_rng(_digest(self.seed, f"{model}|{manner}|{text}"))
        alone = own.standard_normal(native, np.float32) / np.float32(native**0.5)
        whole = (1 - _OWN) * shared + _OWN * alone
        return np.asarray(whole / np.linalg.norm(whole), np.float32)


@lru_cache(maxsize=1 << 18)
def _bucket(gram: str) -> int:
    return _digest(0, gram) % _BUCKETS


def _digest(seed: int, said: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}|{said}".encode(), digest_size=8).digest())
