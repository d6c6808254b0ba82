"""Vectors that earlier runs computed, by content: what was embedded, by what, under what numerics.

Entries come in two steps. While a run lasts, the vectors of each batch it drops are staged; they answer
nobody. When it ends, they are published: sorted by key into segments, which are never changed again. Small
segments are merged into the next one, so that there are few; the least recently used go when the whole grows
over its limit. What is staged may take as much again, and no more: the rest is not kept. Nothing here is the
only copy of anything: what is damaged or lost is computed again.
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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.errors import InvalidArgument
from embatch.events import CacheFull, emit
from embatch.store.faults import disk
from embatch.store.segments import (
    HEAD,
    HEADER_BYTES,
    TAIL,
    Segment,
    Staged,
    array_bytes,
    checksum,
    opened,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

STAGED_SECONDS: Final = 30 * 86400.0
"""A run that has not ended for so long is given up with what it staged."""
_KEY_BYTES: Final = 16
_RUN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHARE: Final = 8
"""Merging makes no segment larger than this part of the limit, so that little of the cache goes at once."""
MERGED_AT_ONCE: Final = 256
"""Staged shards merged at once, at most: each is opened anew for every block that is written."""


def key(identity: str, text: str) -> bytes:
    """Return the 16 bytes that stand for a text, prompt in place, under an engine's `identity`."""
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES, key=identity.encode()[:64]).digest()


def check_run(name: str) -> str:
    """Return the name of a run. Raises InvalidArgument where it cannot be one."""
    if not _RUN.fullmatch(name):
        raise InvalidArgument("a run is named by 1 to 128 letters, digits, - and _", field="run")
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
            HEAD: head,
            TAIL: tail,
            "vectors": self.vectors,
            "sums": np.array([checksum(one) for one in self.vectors], np.uint32),
            "tokens": self.tokens,
            "truncated": self.truncated,
        }


class VectorCache:
    """The cache of a data folder. Safe to use from any thread of one process."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Open it; `limit_bytes` 0 turns it off. What cannot be read is left out, and removed by `prune`."""
        self._folder, self._limit = folder, limit_bytes
        self._lock = threading.Lock()
        self._segments: tuple[Segment, ...] = ()
        self._room = threading.Lock()
        self._staged: dict[str, int] = {}
        """Bytes that each run has staged."""
        self._told = False
        """Whether it was said that no more fits; until a run ends."""
        if limit_bytes:
            self._segments = tuple(opened(Segment, folder.glob("segment-*")))
            self._staged = {path.name: array_bytes(path) for path in folder.glob("staged/*")}

    @property
    def empty(self) -> bool:
        """Whether no lookup can find anything."""
        return not self._segments

    def find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], Entries] | None:
        """Return which keys are known, bool (n,), and their entries in that order; `None` if none is."""
        rows: dict[int, tuple[Segment, int]] = {}
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
            name: np.array([rows[place][0].column(name)[rows[place][1]] for place in places])
            for name in ("vectors", "tokens", "truncated")
        }
        return known, Entries([keys[place] for place in places], **picked)

    def stage(self, run: str, name: str, entries: Entries) -> None:
        """Keep entries until their run ends; durable on return. Repeating under the same name replaces them.

        Where they do not fit, beside what else is staged, they are not kept.

        Raises:
            Unavailable: the disk is full or fails.
        """
        if not self._limit or not entries.keys:
            return
        folder, columns = self._place(run), entries.columns()
        if not self._takes(run, folder / name, columns):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / name, [columns.__getitem__])
        except OSError as error:
            self._count(run)
            raise disk(error) from error

    def _takes(self, run: str, place: Path, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Make room for what is to be staged; `False`: it does not fit, which is said once."""
        size = sum(column.nbytes + HEADER_BYTES for column in columns.values())
        with self._room:
            more = size - array_bytes(place)
            if sum(self._staged.values()) + more <= self._limit:
                self._staged[run] = self._staged.get(run, 0) + more
                return True
            told, self._told = self._told, True
        if not told:
            emit(CacheFull(run=run, limit_bytes=self._limit))
        return False

    def _count(self, run: str) -> None:
        """Find out what a run has staged now."""
        with self._room:
            self._staged[run] = array_bytes(self._place(run))
            if not self._staged[run]:
                del self._staged[run]
            self._told = False

    def publish(self, run: str) -> int:
        """Let what a run staged answer later lookups; return how many entries are new. Repeating is safe.

        Raises:
            Unavailable: the disk is full or fails; what was not published yet stays staged.
        """
        folder = self._place(run)
        fresh: dict[Segment, int] = {}
        """New entries in each segment."""
        try:
            with self._lock:
                for shards in self._groups(folder):
                    small = self._small(shards)
                    merged = self._merge(small, shards)
                    fresh[merged] = merged.count - sum(one.count - fresh.pop(one, 0) for one in small)
                    for shard in shards:
                        shutil.rmtree(shard.path, ignore_errors=True)
                    self._evict()
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise disk(error) from error
        finally:
            self._count(run)
        return sum(new for segment, new in fresh.items() if segment in self._segments)

    def _groups(self, folder: Path) -> Iterator[list[Staged]]:
        """Yield what a run staged, as much at a time as a segment may hold, all of the same dimensions."""
        groups: dict[int, list[Staged]] = {}
        for shard in opened(Staged, folder.glob("[!.]*")):
            if shard.bytes > self._limit:
                continue
            group = groups.get(shard.dimensions, [])
            if group and (len(group) == MERGED_AT_ONCE or not self._fits((*group, shard))):
                yield group
                group = []
            groups[shard.dimensions] = [*group, shard]
        yield from groups.values()

    def _fits(self, shards: Iterable[Staged]) -> bool:
        return sum(shard.bytes for shard in shards) <= self._limit // _SHARE

    def _small(self, shards: Sequence[Staged]) -> list[Segment]:
        """Return the segments to merge new ones with.

        The smallest first, while they are no larger than twice what they join: the sizes of those that stay
        double at least. Each entry is copied once for every doubling of what came after it: few segments,
        little work.
        """
        small: list[Segment] = []
        for one in sorted(self._segments, key=lambda segment: segment.bytes):
            if one.dimensions != shards[0].dimensions:
                continue
            joined = sum(part.bytes for part in (*shards, *small))
            if one.bytes > 2 * joined or not self._fits((*shards, *small, one)):
                break
            small.append(one)
        return small

    def _merge(self, small: Sequence[Segment], shards: Sequence[Staged]) -> Segment:
        path = self._folder / f"segment-{time.time_ns():020}-{secrets.token_hex(4)}"
        write(path, [part.column for part in (*small, *shards)])
        merged = Segment(path)
        self._segments = (*(one for one in self._segments if one not in small), merged)
        for old in small:
            shutil.rmtree(old.path, ignore_errors=True)
        return merged

    def prune(self) -> None:
        """Keep the size within its limit and give up runs that never ended. Repeating is safe."""
        if not self._limit:
            return
        with self._lock:
            self._evict()
        for folder in self._folder.glob("staged/*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > STAGED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                    self._count(folder.name)

    def _evict(self) -> None:
        kept, left = [], self._limit
        for segment in sorted(self._segments, key=_used, reverse=True):
            # One that is too large for the limit costs the others nothing.
            if segment.bytes <= left:
                kept.append(segment)
                left -= segment.bytes
        self._segments = tuple(one for one in self._segments if one in kept)
        known = {one.path for one in kept}
        for path in (*self._folder.glob("segment-*"), *self._folder.glob(".*")):
            if path not in known:
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, run: str) -> Path:
        return self._folder / "staged" / check_run(run)


def _halves(keys: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    pairs = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _used(segment: Segment) -> tuple[int, str]:
    """Return when a segment was last used; the name decides between two of the same tick of the clock."""
    try:
        return segment.path.stat().st_mtime_ns, segment.path.name
    except OSError:
        return 0, segment.path.name
