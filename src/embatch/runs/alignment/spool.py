"""Numbers of very many rows in bounded memory: a few stay there, more go to a file that has no name."""

from __future__ import annotations

import tempfile
from typing import IO, TYPE_CHECKING, Final, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

CHUNK: Final = 4_096
"""Rows that are looked at together."""
HELD: Final = 24_576
"""Rows that are kept in memory; a file takes over from there."""


class Spool:
    """Rows of one width, appended in order and read again as often as needed; half precision in between."""

    def __init__(self, width: int, folder: Path | None = None, held: int = HELD) -> None:
        """Args: `folder` is where the file is made, `None` for the system's; `held` rows stay in memory."""
        self.width, self._folder, self._most = width, folder, held
        self._held: list[NDArray[np.float16]] = []
        self._file: IO[bytes] | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows, float32 (n, width)."""
        kept = rows.astype(np.float16)
        self._rows += len(kept)
        if self._file is None and self._rows > self._most:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (`close`)
            for earlier in self._held:
                self._file.write(earlier.tobytes())
            self._held = []
        if self._file is None:
            self._held.append(kept)
        else:
            self._file.write(kept.tobytes())

    def chunks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield consecutive rows, float32 (at most CHUNK, width), with the number of their first."""
        for first in range(0, self._rows, CHUNK):
            yield first, self.take(np.arange(first, min(self._rows, first + CHUNK)))

    def take(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some rows, float32 (len(rows), width), in the order given."""
        if self._file is None:
            if len(self._held) > 1:
                self._held = [np.concatenate(self._held)]
            whole = self._held[0] if self._held else np.zeros((0, self.width), np.float16)
            return whole[rows].astype(np.float32)
        found = np.empty((len(rows), self.width), np.float16)
        size = self.width * found.itemsize
        self._file.flush()
        order = np.argsort(rows, kind="stable")
        ranked = rows[order]
        breaks = np.flatnonzero(np.diff(ranked) != 1) + 1
        for part in np.split(np.arange(len(ranked)), breaks):  # what stands together is read together
            if len(part):
                self._file.seek(int(ranked[part[0]]) * size)
                read = self._file.read(len(part) * size)
                found[order[part]] = np.frombuffer(read, np.float16).reshape(len(part), self.width)
        self._file.seek(0, 2)
        return found.astype(np.float32)

    def close(self) -> None:
        """Give memory and file back. Repeating is safe."""
        self._held = []
        if self._file is not None:
            self._file.close()
