"""An input file as it is read: hashed, counted and bounded, in turns with others.

What a small file may decode to, or how many lines say nothing, its size does not tell: both have limits.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from embatch.errors import DataLoss, InvalidArgument
from embatch.store.faults import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    import pyarrow as pa

READ_BYTES: Final = 1 << 20
TURN_SECONDS: Final = 0.2


class FileTurns:
    """Lets one of several threads go on, in the order they asked, for a while each."""

    def __init__(self, seconds: float = TURN_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        """Who has the turn, then who waits."""
        self._end = 0.0

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        with self._changed:
            return max(0, len(self._line) - 1)

    def begin(self) -> None:
        """Return when it is the caller's turn."""
        mine = object()
        with self._changed:
            self._line.append(mine)
            while self._line[0] is not mine:
                self._changed.wait()
            self._end = self._clock() + self._seconds

    def end(self) -> None:
        """Let the next one go on. Only for who has the turn."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    def look(self) -> None:
        """Go on, unless the turn has been long enough and others wait: then wait for the next one."""
        if self._clock() < self._end:
            return
        with self._changed:
            alone = len(self._line) == 1
            self._end = self._clock() + self._seconds
        if not alone:
            self.end()
            self.begin()


def decoded(given: Iterable[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    """Yield what a file holds; raise InvalidArgument when that has more bytes than a file may have.

    A small one that is compressed may decode to anything.
    """
    size = 0
    for piece in given:
        size += sum(column.nbytes for column in piece.columns if column.null_count < piece.num_rows)
        if size > most:
            raise InvalidArgument(
                f"the file holds more than {most} bytes once it is decompressed: split it",
                reason="TOO_MANY_BYTES",
            )
        yield piece


class CheckedFile(io.RawIOBase):
    """A file whose bytes are hashed and whose lines are counted as they are read."""

    def __init__(self, file: BinaryIO, look: Callable[[], None], lines_at_most: float) -> None:
        """Take an open file; `look` is called before each piece, and may raise."""
        self._file, self._look = file, look
        self._lines, self._most = 0, lines_at_most
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """As a file's."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # any writable buffer
        """As a file's. Raises Unavailable if it cannot be read just now, InvalidArgument beyond its lines."""
        self._look()
        try:
            content = self._file.read(len(buffer))
        except OSError as error:  # to a reader of Arrow an OSError is a torn stream
            raise unreadable(error) from error
        buffer[: len(content)] = content
        self._hash.update(content)
        if not math.isinf(self._most):
            self._lines += content.count(b"\n")
            if self._lines > self._most:
                raise InvalidArgument(
                    f"a file holds at most {self._most:.0f} lines, blank ones among them: leave them out",
                    reason="TOO_MANY_LINES",
                )
        return len(content)

    def check(self, digest: str) -> None:
        """Read the rest and compare. Raises DataLoss."""
        while content := self._file.read(READ_BYTES):
            self._look()
            self._hash.update(content)
        if self._hash.hexdigest() != digest:
            raise DataLoss("the input file is not what was uploaded: upload it again")
