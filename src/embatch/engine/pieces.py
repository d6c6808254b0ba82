"""How many texts go to an endpoint in one call, and what is kept of a micro-batch that broke off between two.

Endpoints that limit what they take at once, or in a minute, do not all say how much that is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

_CALLS: Final = 64
"""Good calls after which twice as many texts are tried in one."""
_HELD: Final = 2048


class CallSize:
    """Halves after a call that was too large, grows back in time. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most, self._now, self._good = most, most, 0
        self._lock = threading.Lock()

    @property
    def texts(self) -> int:
        """Most texts of the next call."""
        return self._now

    def too_large(self, texts: int) -> None:
        """Note that a call of so many texts was not answered."""
        with self._lock:
            self._now, self._good = max(1, min(self._now, texts // 2)), 0

    def good(self) -> None:
        """Note that a call was answered."""
        with self._lock:
            self._good += 1
            if self._now < self._most and self._good >= _CALLS:
                self._now, self._good = min(self._most, self._now * 2), 0


class HeldVectors:
    """Vectors of texts whose micro-batch was not finished: they are not paid for again. Thread-safe."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, found: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors until their texts are asked for; the oldest go when there are too many."""
        with self._lock:
            self._vectors.update(found)
            while len(self._vectors) > _HELD:
                self._vectors.popitem(last=False)

    def take(self, texts: list[str]) -> dict[int, NDArray[np.float32]]:
        """Return what is held of some texts, by their places, and hold it no longer."""
        if not self._vectors:
            return {}
        with self._lock:
            found = {at: self._vectors[text] for at, text in enumerate(texts) if text in self._vectors}
            for at in found:
                self._vectors.pop(texts[at], None)
            return found
