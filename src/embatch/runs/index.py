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
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import orjson

from embatch.client.base import target_of
from embatch.durable import sync, sync_folder, write_whole
from embatch.errors import InvalidArgument
from embatch.ownership import make_folder, open_own
from embatch.runs.locations import local, scheme, shown
from embatch.runs.prices import CHARACTERS, DEFAULT, SHOWN_MODEL
from embatch.runs.progress import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from embatch.client.client import Client
    from embatch.runs.intents import Intent
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block

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


_NAMES: Final = frozenset(one.name for one in fields(IndexedRun))


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where a run works, as the index has it; see `IndexedRun`."""

    ledger: str
    output: str
    provider: str
    target: str

    @classmethod
    def of(cls, client: Client, place: str, ledger: Ledger) -> Self:
        """Return where a run works that embeds by this client into this place."""
        target = target_of(client)
        output = str(local(place)) if scheme(place) == "file" else shown(place)
        return cls(str(ledger.folder.absolute()), output, target.provider.name, shown(target.url))


@dataclass(slots=True)
class RunIndex:
    """What one call of a run tells the index."""

    data: Path
    run: str
    place: RunPlace
    notes: list[str]
    """Gets a line if the index cannot be written, of which no run fails; nothing more is told then."""
    now: Callable[[], float] = time.time
    _begun: bool = field(default=False, init=False)
    _failed: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Tell that the run is about to hand something over; told once."""
        if not self._begun:
            self.tell({"state": "running", "ended": None})

    def handed_over(self, ledger: Ledger, names: Iterable[str]) -> None:
        """Tell how many batches the run has handed over in all its calls, those of these names among them."""
        self.tell({"batches": len({*names, *batches_of(ledger.blocks.values(), ledger.intents)})})

    def end(self, ledger: Ledger, cost: float | None) -> None:
        """Tell how the run stands, its numbers and what it has paid; what never began is not told of."""
        if not self._begun and ledger.verdict is None:
            return
        tally, cpu_seconds = Tally(), 0.0
        for block in ledger.blocks.values():
            tally.add(block)
            cpu_seconds += block.cpu_seconds
        numbers = {**asdict(tally), "cpu_seconds": cpu_seconds, "cost": cost}
        self.tell({"state": ledger.verdict or "stopped", **numbers, "ended": self.now()})

    def tell(self, said: dict[str, Any]) -> None:
        """Write a line: fields of `IndexedRun` by name."""
        if self._failed:
            return
        place = {} if self._begun else asdict(self.place)
        try:
            _append(self.data.expanduser().absolute(), {"run": self.run, "at": self.now(), **place, **said})
        except (OSError, InvalidArgument) as error:
            self._failed = True
            self.notes.append(f"the index of runs in {self.data} is not written: {error}")
        self._begun = True


def dollars(provider: str, model: object, tokens: int) -> float | None:
    """Return what so many tokens cost as a batch, US dollars; `None` where the model has no price.

    `model`: as a run's identity has it, `None` for the provider's own first one.
    """
    price = DEFAULT.price(provider, str(model or SHOWN_MODEL))
    return None if price is None else price.of(tokens, tokens * CHARACTERS)[0]


def batches_of(blocks: Iterable[Block], intents: Iterable[Intent]) -> set[str]:
    """Return the names of the batches that a ledger knows of, those that are over included."""
    return {*(block.batch for block in blocks), *(intent.batch for intent in intents)} - {""}


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
