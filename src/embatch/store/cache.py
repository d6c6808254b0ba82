"""Vectors that earlier runs computed, by content: what was embedded, by what, under what numerics.

Entries come in two steps. While a run lasts, the vectors of each batch it drops are staged; they answer
nobody. When it ends, they are published: sorted by key into a segment, which is never changed again. Small
segments are merged into the next one, so that there are few; the least recently used go when the whole grows
over its limit. Nothing here is the only copy of anything: what is damaged or lost is computed again.

A segment is a folder of numpy arrays, read through memory maps: it costs disk and page cache, no memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.durable import sync, sync_folder
from embatch.errors import InvalidArgument
from embatch.store.trouble import disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

STAGED_SECONDS: Final = 30 * 86400.0
"""A run that has not ended for so long is given up with what it staged."""
_KEY_BYTES: Final = 16
_RUN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_AT_ONCE: Final = 65_536
"""Entries copied at a time."""
_HEAD, _TAIL = "head", "tail"
_COLUMNS: Final[Mapping[str, str]] = {
    _HEAD: "<u8",  # the halves of the key
    _TAIL: "<u8",
    "vectors": "<f4",
    "sums": "<u4",  # CRC-32 of each vector: a flipped bit reads back as another number
    "tokens": "<i4",
    "truncated": "|b1",
}


def key(identity: str, text: str) -> bytes:
    """Return the 16 bytes that stand for a text, prompt in place, under an engine's `identity`."""
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES, key=identity.encode()[:64]).digest()


def check_run(name: str) -> str:
    """Return the name of a run. Raises InvalidArgument where it cannot be one."""
    if not _RUN.fullmatch(name):
        raise InvalidArgument("a run is named by 1 to 128 letters, digits, - and _", field="Embatch-Run")
    return name


@dataclass(frozen=True, slots=True)
class Entries:
    """Vectors with what is known of their texts; row i of each belongs together."""

    keys: Sequence[bytes]
    vectors: NDArray[np.float32]
    """float32 (n, dimensions), the model's native ones."""
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return what a segment holds of them."""
        head, tail = _halves(self.keys)
        return {
            _HEAD: head,
            _TAIL: tail,
            "vectors": self.vectors,
            "sums": np.array([_sum(one) for one in self.vectors], np.uint32),
            "tokens": self.tokens,
            "truncated": self.truncated,
        }


class _Segment:
    """A folder of arrays, sorted by the head of the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, NDArray[Any]] = {
            name: np.load(path / f"{name}.npy", mmap_mode="r") for name in _COLUMNS
        }
        if len({len(column) for column in self.columns.values()}) != 1:
            raise ValueError("arrays of different lengths")
        self.bytes = sum(file.stat().st_size for file in path.iterdir())

    def __len__(self) -> int:
        return len(self.columns[_HEAD])

    @property
    def dimensions(self) -> int:
        return int(self.columns["vectors"].shape[1])

    def find(self, head: NDArray[np.uint64], tail: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Yield the place of a key and its row here, for each key that is here with a sound vector."""
        heads, tails = self.columns[_HEAD], self.columns[_TAIL]
        at = np.minimum(np.searchsorted(heads, head), len(heads) - 1)
        # Two keys with the same head are a chance of 2**-64; the second is not looked for.
        for place in np.flatnonzero((heads[at] == head) & (tails[at] == tail)).tolist():
            row = int(at[place])
            if _sum(self.columns["vectors"][row]) == self.columns["sums"][row]:
                yield place, row


class VectorCache:
    """The cache of a data folder. Safe to use from any thread of one process."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Open it; `limit_bytes` 0 turns it off. What cannot be read is left out, and removed by `prune`."""
        self._folder, self._limit = folder, limit_bytes
        self._lock = threading.Lock()
        self._segments: tuple[_Segment, ...] = ()
        if limit_bytes:
            self._segments = tuple(_opened(sorted(folder.glob("segment-*"))))

    @property
    def empty(self) -> bool:
        """Whether no lookup can find anything."""
        return not self._segments

    def find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], Entries] | None:
        """Return which keys are known, bool (n,), and their entries in that order; `None` if none is."""
        rows: dict[int, tuple[_Segment, int]] = {}
        halves = _halves(keys)
        for segment in self._segments:
            found = {place: (segment, row) for place, row in segment.find(*halves) if place not in rows}
            if found:
                rows |= found
                with contextlib.suppress(OSError):  # the time of its last use, for `prune`
                    os.utime(segment.path)
        if not rows:
            return None
        places = sorted(rows)
        known = np.zeros(len(keys), np.bool_)
        known[places] = True
        # One model has one number of dimensions, and its identity is in every key.
        picked = {
            name: np.array([rows[place][0].columns[name][rows[place][1]] for place in places])
            for name in ("vectors", "tokens", "truncated")
        }
        return known, Entries([keys[place] for place in places], **picked)

    def stage(self, run: str, name: str, entries: Entries) -> None:
        """Keep entries until their run ends; durable on return. Repeating under the same name replaces them.

        Raises:
            Unavailable: the disk is full or fails.
        """
        if not self._limit or not entries.keys:
            return
        folder = self._staged(run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, [entries.columns()])
        except OSError as error:
            raise disk(error) from error

    def publish(self, run: str) -> int:
        """Let what a run staged answer later lookups; return how many entries are new. Repeating is safe.

        Raises:
            Unavailable: the disk is full or fails; what was staged stays.
        """
        folder = self._staged(run)
        with self._lock:
            staged = list(_opened(sorted(folder.glob("[!.]*")))) if self._limit else []
            try:
                count = self._merge(staged) if staged else 0
            except OSError as error:
                raise disk(error) from error
            shutil.rmtree(folder, ignore_errors=True)
        self.prune()
        return count

    def _merge(self, staged: list[_Segment]) -> int:
        size = sum(segment.bytes for segment in staged)
        # Each entry is copied once for every doubling of what came after it: few segments, little work.
        small = [
            one for one in self._segments if one.bytes <= 2 * size and one.dimensions == staged[0].dimensions
        ]
        path = self._folder / f"segment-{time.time_ns():020}-{secrets.token_hex(4)}"
        _write(path, [segment.columns for segment in (*small, *staged)])
        merged = _Segment(path)
        self._segments = (*(one for one in self._segments if one not in small), merged)
        for old in small:
            shutil.rmtree(old.path, ignore_errors=True)
        return len(merged) - sum(map(len, small))

    def prune(self) -> None:
        """Keep the size within its limit and give up runs that never ended. Repeating is safe."""
        if not self._limit:
            return
        with self._lock:
            kept, left = [], self._limit
            for segment in sorted(self._segments, key=_used, reverse=True):
                left -= segment.bytes
                if left >= 0:
                    kept.append(segment)
            self._segments = tuple(one for one in self._segments if one in kept)
            known = {one.path for one in self._segments}
            for path in (*self._folder.glob("segment-*"), *self._folder.glob(".*")):
                if path not in known:
                    shutil.rmtree(path, ignore_errors=True)
        for folder in self._folder.glob("staged/*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > STAGED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _staged(self, run: str) -> Path:
        return self._folder / "staged" / check_run(run)


def _sum(vector: NDArray[np.float32]) -> int:
    return zlib.crc32(vector.tobytes())


def _halves(keys: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    pairs = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _used(segment: _Segment) -> float:
    try:
        return segment.path.stat().st_mtime
    except OSError:
        return 0.0


def _opened(paths: Iterable[Path]) -> Iterator[_Segment]:
    for path in paths:
        # What a failing disk left unreadable is as good as nothing.
        with contextlib.suppress(OSError, ValueError):
            yield _Segment(path)


def _write(path: Path, parts: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Write a segment, each key once, the first part's; it appears whole or not at all, durable on return."""
    heads = np.concatenate([part[_HEAD] for part in parts])
    order = np.argsort(heads, kind="stable")
    first = np.ones(len(order), np.bool_)
    first[1:] = heads[order[1:]] != heads[order[:-1]]
    order = order[first]
    starts = np.cumsum([0, *(len(part[_HEAD]) for part in parts)])
    partial = path.with_name(f".{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, kind in _COLUMNS.items():
        shape = (len(order), *parts[0][name].shape[1:])
        column = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", kind, shape)
        for begin in range(0, len(order), _AT_ONCE):
            at = order[begin : begin + _AT_ONCE]
            which = np.searchsorted(starts, at, side="right") - 1
            for number in np.unique(which).tolist():
                mine = which == number
                column[begin : begin + len(at)][mine] = parts[number][name][at[mine] - starts[number]]
        column.flush()
        with (partial / f"{name}.npy").open("rb") as file:
            sync(file.fileno())
    sync_folder(partial)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    sync_folder(path.parent)
