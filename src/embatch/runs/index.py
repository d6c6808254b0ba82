"""Which runs there were on this machine: where their ledgers lie, what they handed over, what they cost.

`DATA/runs/index.jsonl` is for people who look for a run; what counts stands in its ledger. A run tells three
times: that it begins, how many batches it has handed over, and how it ended. Each is one line, durable and
written under a lock of its own file, so that several processes may do it; a torn last line is dropped by the
next one. Later lines of a run add to earlier ones. When the file has doubled it is put together anew, and
what ended a year ago is left out. A run whose index cannot be written goes on, with a note.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

from embatch.durable import sync, sync_folder, write_whole
from embatch.errors import InvalidArgument
from embatch.ownership import make_folder, open_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

FOLDER: Final = "runs"
_INDEX: Final = "index.jsonl"
_LOCK: Final = "index.lock"
_VERSION: Final = 1
KEPT: Final = 365 * 86_400.0
"""Seconds for which a run stays after its last line."""
LEAST: Final = 256 << 10
"""Bytes below which the index is not put together anew."""


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """What the index says of one run. Times are seconds since 1970."""

    run: str
    """A name of its own; the same output embedded anew has another."""
    ledger: str = ""
    """Folder of its ledger, which may be gone."""
    output: str = ""
    """Where its output goes, without passwords."""
    provider: str = ""
    target: str = ""
    """Address of the provider."""
    state: str = "running"
    """`running`, `stopped` (interrupted or failed: the same command goes on), `done` or `rejected`. A run
    that was killed is still `running` here."""
    batches: int = 0
    """That it handed over, in all its calls."""
    rows: int = 0
    failed: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0
    cost: float | None = None
    """US dollars, by the prices that the run had; `None` where the provider has none, or it has not ended."""
    began: float = 0.0
    at: float = 0.0
    """When its last line was written."""
    ended: float | None = None


_NAMES: Final = frozenset(field.name for field in fields(IndexedRun))


class RunIndex:
    """What one run tells the index.

    Attributes:
        trouble: why the index could not be written; `None` while it could.
    """

    def __init__(self, data: Path, run: str, now: Callable[[], float] = time.time) -> None:
        self.trouble: str | None = None
        self._data, self._run, self._now = data.expanduser().absolute(), run, now

    def begin(self, *, ledger: Path, output: str, provider: str, target: str) -> None:
        """Tell that a call of the run begins, the first or another one."""
        said = {"ledger": str(ledger.absolute()), "output": output, "provider": provider, "target": target}
        self._tell({**said, "state": "running", "ended": None})

    def handed_over(self, batches: int) -> None:
        """Tell how many batches the run has handed over, in all its calls."""
        self._tell({"batches": batches})

    def end(self, state: str, **numbers: float | None) -> None:
        """Tell that this call has ended, and what the run came to: any of `IndexedRun`'s numbers, by name."""
        self._tell({"state": state, **numbers, "ended": self._now()})

    def _tell(self, said: dict[str, Any]) -> None:
        if self.trouble is not None:
            return
        try:
            _append(self._data, {"run": self._run, "at": self._now(), **said})
        except (OSError, InvalidArgument) as error:
            self.trouble = f"the index of runs in {self._data} is not written: {error}"


def read(data: Path) -> list[IndexedRun]:
    """Return the runs of a data folder, the last one first; what cannot be read of the index is left out."""
    path = data.expanduser().absolute() / FOLDER / _INDEX
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        os.fdopen(open_own(path, os.O_RDONLY), "rb") as file,
    ):
        return sorted(_runs(file), key=lambda run: -run.at)
    return []


def _runs(lines: Iterable[bytes]) -> list[IndexedRun]:
    """Return the runs that lines tell of, in the order in which they began."""
    told: dict[str, dict[str, Any]] = {}
    for line in lines:
        with suppress(orjson.JSONDecodeError, TypeError, KeyError, ValueError):
            said = orjson.loads(line)
            if "v" in said or not line.endswith(b"\n"):
                continue
            known = told.get(said["run"], {"began": said["at"]})
            merged = {**known, **{name: value for name, value in said.items() if name in _NAMES}}
            IndexedRun(**merged)
            told[said["run"]] = merged
    return [IndexedRun(**one) for one in told.values()]


def _append(data: Path, said: dict[str, Any]) -> None:
    make_folder(data)
    folder = data / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    with _locked(folder / _LOCK):
        path = folder / _INDEX
        fresh = not path.exists()
        with os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file:
            head = _header(file)
            size = _cut(file)
            line = orjson.dumps(said) + b"\n"
            if not size:
                line = _head(0) + line
            if os.pwrite(file.fileno(), line, size) != len(line):
                raise OSError("the disk is full")
            sync(file.fileno())
            size += len(line)
        if fresh:
            sync_folder(folder)
            sync_folder(data)
        if size > max(LEAST, 2 * head):
            _put_together(path, said["at"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others from writing; where the file system knows no locks, nobody is kept."""
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            # By itself: closing alone would leave the lock to a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _header(file: BinaryIO) -> int:
    """Return how many bytes the index had when it was put together."""
    file.seek(0)
    with suppress(orjson.JSONDecodeError, TypeError, KeyError):
        return int(orjson.loads(file.readline(200))["bytes"])
    return 0


def _head(size: int) -> bytes:
    return orjson.dumps({"v": _VERSION, "bytes": size}) + b"\n"


def _cut(file: BinaryIO) -> int:
    """Drop a torn last line; return the bytes that are left."""
    size = end = file.seek(0, os.SEEK_END)
    while size:
        first = max(0, size - 4096)
        tail = os.pread(file.fileno(), size - first, first)
        if (at := tail.rfind(b"\n")) >= 0:
            size = first + at + 1
            break
        size = first
    if size != end:
        file.truncate(size)
    return size


def _put_together(path: Path, now: float) -> None:
    """Write one line for each run that is not over for a year."""
    with path.open("rb") as file:
        runs = [one for one in _runs(file) if now - one.at < KEPT]
    lines = [orjson.dumps(one) + b"\n" for one in runs]
    write_whole(path, _head(sum(map(len, lines))) + b"".join(lines))
