"""The one writing connection: its own thread, group commit, each queued write in a savepoint of its own.

Writes run in the order they were queued. What `run` returns is known after COMMIT: it survives a power cut.
A write that fails is undone alone and harms no neighbour of its group. When COMMIT itself fails with an I/O
error its fate is unknown: an fsync that failed may yet have reached the disk. The writer then marks itself
broken and refuses everything; the service exits, and the next start finds out.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from embatch.store.faults import Trouble, storage_error, storage_full, trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

    from embatch.store.ballast import Ballast

T = TypeVar("T")
GROUP: Final = 128
"""Most writes of one commit."""


@dataclass(slots=True)
class _Write:
    work: Callable[[Connection], Any]
    makes_room: bool
    answer: Future[Any] = field(default_factory=Future)
    value: Any = None
    failure: Exception | None = None

    def settle(self) -> None:
        if self.failure is None:
            self.answer.set_result(self.value)
        else:
            self.answer.set_exception(self.failure)


class Writer:
    """Runs writes one after another on one connection.

    `between` is called between two groups, when everybody has been answered and no transaction is open.
    """

    def __init__(
        self, engine: Engine, *, ballast: Ballast | None = None, between: Callable[[], None] = lambda: None
    ) -> None:
        self._engine, self._ballast, self._between = engine, ballast, between
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._closed = False
        self.broken = threading.Event()
        """Set once a commit's fate is unknown."""
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many writes wait for the next group, about: others come and go."""
        return self._queue.qsize()

    def run(self, work: Callable[[Connection], T], *, makes_room: bool = False) -> T:
        """Run a write in the next group; return its value, or raise its error, once the group is durable.

        `makes_room` marks a write that is let through on a full disk: it ends or deletes something.

        Raises:
            Unavailable: STORAGE_ERROR (fate unknown, the service must exit), STORAGE_FULL or STORAGE_BUSY
                (nothing changed).
        """
        write = _Write(work, makes_room)
        with self._door:
            if self._closed or self.broken.is_set():
                raise storage_error()
            self._queue.put(write)
        answer: Future[T] = write.answer
        return answer.result()

    def close(self) -> None:
        """Finish what is queued and end the thread. Repeating is safe."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while group := self._next_group():
            try:
                self._settle(group)
                self._between()
            except Exception as error:  # noqa: BLE001  (an unknown error is an unknown fate, and nobody may wait for ever)
                self.broken.set()
                for write in group:
                    if not write.answer.done():
                        write.failure = storage_error()
                        write.failure.__cause__ = error
                        write.settle()

    def _next_group(self) -> list[_Write]:
        """Wait for a write and take all that are queued with it; empty at the end."""
        group: list[_Write] = []
        following = self._queue.get()
        while following is not None:
            group.append(following)
            if len(group) == GROUP:
                return group
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)  # nothing can stand behind it: it is still the end
        return group

    def _settle(self, group: Sequence[_Write]) -> None:
        """Commit a group and answer everybody in it."""
        refused: list[_Write] = []
        if self._ballast is not None and self._ballast.missing:
            self._ballast.fill()
            if self._ballast.missing:
                refused, group = _parted(group)
        kind = self._commit(group)
        if kind is Trouble.FULL and self._ballast is not None:
            needing, making = _parted(group)
            if making and self._ballast.free():
                refused, group = [*refused, *needing], making
                kind = self._commit(group)
        if kind is not None:
            for write in group:
                write.failure = kind.error
        for write in refused:
            write.failure = storage_full()
        for write in (*group, *refused):
            write.settle()

    def _commit(self, group: Sequence[_Write]) -> Trouble | None:
        """Run and commit a group; return what kept it from being committed as a whole."""
        if not group:
            return None
        if self.broken.is_set():
            return Trouble.BROKEN
        committing = False
        try:
            with self._engine.connect() as connection:
                connection.begin()
                for write in group:
                    _in_savepoint(connection, write)
                committing = True
                connection.commit()
        except DBAPIError as error:
            kind = trouble(error) or Trouble.BROKEN
            unknown = committing and kind is Trouble.LOST
            if unknown or kind in (Trouble.BROKEN, Trouble.DAMAGED):
                self.broken.set()
            return kind
        return None


def _in_savepoint(connection: Connection, write: _Write) -> None:
    connection.exec_driver_sql("SAVEPOINT queued")
    write.failure = None
    try:
        write.value = write.work(connection)
    except DBAPIError as error:
        if trouble(error) is not None:
            raise
        write.failure = error
    except Exception as error:  # noqa: BLE001  (it is handed to the caller who asked for the write)
        write.failure = error
    if write.failure is not None:
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT queued")
    connection.exec_driver_sql("RELEASE SAVEPOINT queued")


def _parted(group: Sequence[_Write]) -> tuple[list[_Write], list[_Write]]:
    """Return (those that need room, those that make room)."""
    return [w for w in group if not w.makes_room], [w for w in group if w.makes_room]
