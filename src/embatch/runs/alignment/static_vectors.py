"""Texts as the mean of the static vectors of their tokens: what words mean, without asking a model.

The vectors are those that the package `wordllama` carries in its wheel (`l2_supercat_256`: 32,000 tokens of
256 numbers, derived from the token embeddings of Llama 2 and Phi-3). Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from embatch.runs.alignment.ngrams import CHARACTERS
from embatch.runs.alignment.ridge import unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_PACKAGE: Final = "wordllama"
_AT_ONCE: Final = 1_024


@dataclass(frozen=True, slots=True)
class StaticVectors:
    """A table of vectors, one a token."""

    name: str
    """What the table is called in what was kept of earlier runs: another one has other vectors."""
    table: NDArray[np.float32]
    """float32 (tokens, width), each vector by the weight that its token has."""
    tokenizer: Any

    @classmethod
    def installed(cls) -> Self | None:
        """Return the table of the installed package, `None` where it is not installed or carries none."""
        # Importing it sets up the root logger, which is the program's affair, unless that has a handler.
        root, still = logging.getLogger(), logging.NullHandler()
        root.addHandler(still)
        try:
            import wordllama  # noqa: PLC0415  (an optional library)

            # It looks for its tokenizer in another folder than it brings it in, unless that is its cache.
            folder = Path(wordllama.__file__).parent
            loaded = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        except (ImportError, FileNotFoundError):
            return None
        finally:
            root.removeHandler(still)
        loaded.tokenizer.no_padding()
        table = np.asarray(loaded.embedding, np.float32)

        return cls(f"{_PACKAGE}-{importlib.metadata.version(_PACKAGE)}", table, loaded.tokenizer)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.table.shape[1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the mean vector of each text, float32 (n, width), of length one; zeros without a token."""
        found = np.zeros((len(texts), self.width), np.float32)
        for first in range(0, len(texts), _AT_ONCE):
            part = [_encodable(text[:CHARACTERS]) for text in texts[first : first + _AT_ONCE]]
            for at, tokens in enumerate(
                self.tokenizer.encode_batch_fast(part, add_special_tokens=False), first
            ):
                if tokens.ids:
                    found[at] = self.table[tokens.ids].sum(axis=0)
        return unit(found)


def _encodable(text: str) -> str:
    """Return a text without what UTF-8 does not know: the tokenizer takes nothing else."""
    return text.encode(errors="replace").decode()
