"""What calls of `forward` borrow: one thing for each stream, and nothing once the engine is closed."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from embatch.errors import EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_T = TypeVar("_T")


class Streams(Generic[_T]):
    """As many calls at once as there are things to borrow; others wait for their turn."""

    def __init__(self, things: Iterable[_T]) -> None:
        self._things = list(things)
        self._idle: queue.SimpleQueue[_T | None] = queue.SimpleQueue()
        for thing in self._things:
            self._idle.put(thing)
        self._closing = threading.Lock()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[_T]:
        """Lend one for the length of a `with`.

        Raises:
            EngineTrouble: the engine is closed.
        """
        thing = self._idle.get()
        if thing is None:
            self._idle.put(None)  # passed on from one waiting call to the next
            raise EngineTrouble("the engine is closed")
        try:
            yield thing
        finally:
            self._idle.put(thing)

    def close(self) -> bool:
        """Wait for running calls and refuse further ones. Returns whether this call closed it."""
        with self._closing:
            if self._closed:
                return False
            self._closed = True
            for _ in self._things:
                self._idle.get()
            self._things.clear()
            self._idle.put(None)
            return True
