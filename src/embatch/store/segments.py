"""Segments of the vector cache: folders of numpy arrays, one for each column, with a row for each entry.

Arrays are read through memory maps: they cost disk and page cache, no memory, and a descriptor each. A folder
appears whole or not at all, and is never changed again.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from embatch.durable import sync, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

HEAD: Final = "head"
TAIL: Final = "tail"
COLUMNS: Final[Mapping[str, str]] = {
    HEAD: "<u8",  # the halves of the key
    TAIL: "<u8",
    "vectors": "<f4",
    "sums": "<u4",  # CRC-32 of each vector: a flipped bit reads back as another number
    "tokens": "<i4",
    "truncated": "|b1",
}
HEADER_BYTES: Final = 128
"""What numpy writes before an array."""
_BLOCK_BYTES: Final = 8 << 20
"""What is written at a time."""


class Staged:
    """A folder that is read once, an array at a time: there may be more of these than could be open."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, array_bytes(path)
        shapes = {name: _load(path, name).shape for name in COLUMNS}
        if len({shape[:1] for shape in shapes.values()}) != 1:
            raise ValueError("arrays of different lengths")
        self.count, self.dimensions = shapes["vectors"]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column; its map is closed when it is let go."""
        return _load(self.path, name)


class Segment(Staged):
    """A folder that is sorted by the head of the key and stays open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns = {name: _load(path, name) for name in COLUMNS}

    def column(self, name: str) -> NDArray[Any]:
        """Return a column."""
        return self._columns[name]

    def find(self, head: NDArray[np.uint64], tail: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Yield the place of a key and its row here, for each key that is here with a sound vector."""
        heads, tails, vectors, sums = map(self.column, (HEAD, TAIL, "vectors", "sums"))
        at = np.minimum(np.searchsorted(heads, head), len(heads) - 1)
        # Two keys with the same head are a chance of 2**-64; the second is not looked for.
        for place in np.flatnonzero((heads[at] == head) & (tails[at] == tail)).tolist():
            row = int(at[place])
            if checksum(vectors[row]) == sums[row]:
                yield place, row


_Folder = TypeVar("_Folder", bound=Staged)


def opened(kind: type[_Folder], paths: Iterable[Path]) -> Iterator[_Folder]:
    """Yield the folders that can be read, by name: what a failing disk left is as good as nothing."""
    for path in sorted(paths):
        with contextlib.suppress(OSError, ValueError, EOFError):
            yield kind(path)


def checksum(vector: NDArray[np.float32]) -> int:
    """Return the CRC-32 of a vector."""
    return zlib.crc32(vector.tobytes())


def array_bytes(folder: Path) -> int:
    """Return the bytes of the arrays in a folder and below; 0 where there is none."""
    total = 0
    for file in folder.rglob("*.npy"):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += file.stat().st_size
    return total


def write(path: Path, parts: Sequence[Callable[[str], NDArray[Any]]]) -> None:
    """Write a folder from parts, each of which gives its columns by name; durable on return.

    A key is taken once, from the first part that has it. Only the keys are held in memory.

    Raises:
        OSError: the disk is full or fails; what stood there stays.
    """
    partial = path.with_name(f".{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _fill(partial, parts)
        sync_folder(partial)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    sync_folder(path.parent)


def _fill(folder: Path, parts: Sequence[Callable[[str], NDArray[Any]]]) -> None:
    keys = [np.array(part(HEAD)) for part in parts]
    starts = np.cumsum([0, *map(len, keys)])
    heads = np.concatenate(keys)
    order = np.argsort(heads, kind="stable")
    first = np.ones(len(order), np.bool_)
    first[1:] = heads[order[1:]] != heads[order[:-1]]
    order = order[first]
    for name, kind in COLUMNS.items():
        shape = (len(order), *parts[0](name).shape[1:])
        rows = max(1, _BLOCK_BYTES // (np.dtype(kind).itemsize * math.prod(shape[1:])))
        # Not through a map: a full disk ends the process that writes to one.
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for begin in range(0, len(order), rows):
                at = order[begin : begin + rows]
                block = np.empty((len(at), *shape[1:]), kind)
                which = np.searchsorted(starts, at, side="right") - 1
                for number in np.unique(which).tolist():
                    mine = which == number
                    block[mine] = parts[number](name)[at[mine] - starts[number]]
                file.write(block.data)
            file.flush()
            sync(file.fileno())


def _load(folder: Path, name: str) -> NDArray[Any]:
    column: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return column
