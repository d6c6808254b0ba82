"""The one writing connection: its own thread, group commit, each queued write in a savepoint of its own.

A write is acknowledged after COMMIT, so what `run` returned survives a power cut. One that fails is undone
alone and harms no neighbour of its group. When COMMIT itself fails with an I/O error its fate is unknown: the
writer marks itself broken, refuses everything from then on, and the service exits (reliability: an fsync
that failed may yet have reached the disk).
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from embatch.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

T = TypeVar("T")
GROUP: Final = 128
"""Most writes of one commit."""


class Writer:
    """Runs writes one after another on one connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self.broken = threading.Event()
        """Set once a commit's fate is unknown."""
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, write: Callable[[Connection], T]) -> T:
        """Run a write in the next group and return its value once the group is durable.

        Raises:
            Unavailable: STORAGE_ERROR (fate unknown, the service must exit) or STORAGE_FULL (nothing changed).
        """
        if self.broken.is_set():
            raise _storage_error()
        future: Future[T] = Future()
        self._queue.put((write, future))
        return future.result()

    def close(self) -> None:
        """Finish what is queued and end the thread. Repeating is safe."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        with self._engine.connect() as connection:
            while True:
                first = self._queue.get()
                if first is None:
                    return
                group = [first]
                ending = False
                while len(group) < GROUP:
                    try:
                        more = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        ending = True
                        break
                    group.append(more)
                self._commit(connection, group)
                if ending:
                    return

    def _commit(
        self, connection: Connection, group: list[tuple[Callable[[Connection], Any], Future[Any]]]
    ) -> None:
        if self.broken.is_set():
            for _, future in group:
                future.set_exception(_storage_error())
            return
        done: list[tuple[Future[Any], Any]] = []
        try:
            with connection.begin():
                for write, future in group:
                    try:
                        with connection.begin_nested():
                            value = write(connection)
                    except DBAPIError as error:
                        if _fatal(error):
                            raise
                        future.set_exception(_full() if _disk_full(error) else error)
                    except BaseException as error:  # noqa: BLE001  (handed to the caller who asked for the write)
                        future.set_exception(error)
                    else:
                        done.append((future, value))
        except DBAPIError as error:
            full = _disk_full(error)
            if not full:
                self.broken.set()
            for _, future in group:
                if not future.done():
                    future.set_exception(_full() if full else _storage_error())
            return
        for future, value in done:
            future.set_result(value)


def _words(error: DBAPIError) -> str:
    return str(error.orig).lower()


def _disk_full(error: DBAPIError) -> bool:
    return "disk is full" in _words(error) or "no space left" in _words(error)


def _fatal(error: DBAPIError) -> bool:
    """Whether the connection or the disk failed, rather than this one statement."""
    words = _words(error)
    return (
        error.connection_invalidated or "disk i/o error" in words or "malformed" in words or _disk_full(error)
    )


def _storage_error() -> Unavailable:
    return Unavailable("the storage reported an error: the service restarts to find out what it holds",
                       reason="STORAGE_ERROR", retry_after=5.0)  # fmt: skip


def _full() -> Unavailable:
    return Unavailable(
        "the disk of the data folder is full: free some space", reason="STORAGE_FULL", retry_after=30.0
    )
