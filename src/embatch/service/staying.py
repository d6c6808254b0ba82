"""Which models to go on with, so that two that do not fit into memory together are not loaded in turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

STAY_SECONDS: Final = 30.0
"""After an engine had to be loaded, shards of loaded models come first for so long, at equal priority."""


@dataclass(slots=True)
class Staying:
    """Remembers when a shard was last taken whose model had to be loaded. Not for two threads at once."""

    _since: float = -math.inf

    def preferred(self, served: Iterable[str], loaded: Collection[str], now: float) -> Collection[str]:
        """Return the models whose shards come first at equal priority; none: all alike."""
        if now >= self._since + STAY_SECONDS or all(model in loaded for model in served):
            return ()
        return loaded

    def took(self, model: str, loaded: Collection[str], now: float) -> None:
        """Take note of a claim."""
        if model not in loaded:
            self._since = now
