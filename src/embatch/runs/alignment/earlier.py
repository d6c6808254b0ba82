"""Rows that were verified before, kept for batches that are too small to judge themselves.

`DATA/alignment/` has one file for each model, task type, number of dimensions and kind of features. A file
holds features and vectors in half precision and no text; it is the owner's alone, and replaced as a whole.
What is there can be deleted at any time: small batches are judged less well until there are rows again.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from embatch.durable import write_whole
from embatch.errors import EmbatchError
from embatch.ownership import make_folder
from embatch.runs.alignment.fit import EarlierRows
from embatch.runs.alignment.ridge import MOST as DIMENSIONS
from embatch.runs.alignment.ridge import leading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.runs.alignment.spool import Spool

FOLDER: Final = "alignment"
MOST: Final = 10_000
"""Rows of a model that are kept."""
_NEW: Final = MOST // 2
"""Most rows that one block puts in the place of others: other kinds of text shall stay known."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class EarlierFile:
    """The kept rows of one kind."""

    data: Path
    """The data folder."""
    about: Mapping[str, object]
    """What the vectors are of, as JSON: provider, model, task type, dimensions, features."""

    @property
    def path(self) -> Path:
        """Where they are."""
        digest = hashlib.sha256(orjson.dumps(self._about, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return self.data / FOLDER / f"{digest[:32]}.rows"

    @property
    def _about(self) -> dict[str, object]:
        return {**self.about, "v": _VERSION}

    def read(self) -> EarlierRows | None:
        """Return the rows; `None` where there are none, or what is there is damaged or another version's."""
        try:
            head, _, body = self.path.read_bytes().partition(b"\n")
            said = orjson.loads(head)
            if said["about"] != self._about or hashlib.sha256(body).hexdigest() != said["sha256"]:
                return None
            file = io.BytesIO(body)
            return EarlierRows(*(np.load(file, allow_pickle=False) for _ in range(2)))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, features: Spool, vectors: NDArray[np.float32], seed: int = 0) -> None:
        """Keep some rows that were verified now beside those that were before. Durable on return.

        A run does not end for what it cannot keep: a full disk or a strange folder leaves what was there.

        Args:
            features: of the rows.
            vectors: float32 (n, any), row i of features i.
            seed: draws those that are kept.
        """
        random = np.random.default_rng([seed, 3])
        known = self.read()
        room = MOST if known is None else max(_NEW, MOST - len(known))
        chosen = np.sort(random.permutation(len(features))[:room])
        kept = features.take(chosen).astype(np.float16), leading(vectors[chosen]).astype(np.float16)
        if known is not None:
            old = np.sort(random.permutation(len(known))[: MOST - len(chosen)])
            kept = np.vstack([known.features[old], kept[0]]), np.vstack([known.vectors[old], kept[1]])
        body = io.BytesIO()
        for array in kept:
            np.save(body, array, allow_pickle=False)
        digest = hashlib.sha256(body.getbuffer()).hexdigest()
        head = orjson.dumps({"about": self._about, "rows": len(kept[0]), "sha256": digest})
        with suppress(OSError, EmbatchError):
            make_folder(self.data)
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(self.path, head + b"\n" + body.getvalue())


def about(
    provider: str, model: str, task_type: str | None, dimensions: int, features: str
) -> dict[str, object]:
    """Return what the kept rows of a run are of."""
    return {
        "provider": provider,
        "model": model,
        "task type": task_type,
        "dimensions": min(dimensions, DIMENSIONS),
        "features": features,
    }
