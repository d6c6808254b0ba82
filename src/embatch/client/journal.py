"""What plain submits have paid for, or may have: written down in the data folder before they go out.

A provider without idempotency keys makes a second batch of a second submit, and both are paid for. So each
submit has a file in `DATA/journal`, named by what tells it from others, and holds its lock while it is under
way. Lines are `{"begun" | "intent" | "missed" | "refused" | "created": …}`, durable one by one; a torn last
one is what a crash leaves. An intent without an outcome, whose lock nobody holds, is a create whose fate is
unknown.

Everything here blocks, and belongs into `work`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import orjson

from embatch.client.unknown_fate import UnknownCreate
from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss, FailedPrecondition
from embatch.ownership import make_folder, open_own

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "journal"
KEPT: Final = 7 * 86_400.0
"""Seconds after its last line for which an entry stays."""
_VERSION: Final = 1
_ENDING: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """What an entry says."""

    fingerprint: str | None = None
    """The mark of its batch and its upload; `None` before the submit began."""
    content: str = ""
    """Digest of what is submitted and how."""
    unknown: UnknownCreate | None = None
    """The create that went out and whose outcome is not known."""
    batch: str | None = None
    """`batches/{id}`, once it is known to have been created."""


def read(data: bytes, name: str) -> tuple[Record, int]:
    """Return what the whole lines of an entry say, and how many bytes they have.

    Raises:
        DataLoss: a whole line makes no sense.
        FailedPrecondition: a later version wrote it.
    """
    record, whole = Record(), 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            said = orjson.loads(line)
            if "begun" in said and said["begun"]["version"] != _VERSION:
                raise FailedPrecondition(
                    f"{name} was written by another version of embatch: nothing was sent"
                )
            record = _after(record, said)
        except (orjson.JSONDecodeError, TypeError, KeyError, ValueError):
            raise DataLoss(
                f"{name} is damaged at line {number}, so nothing was sent: remove it once the list of "
                "batches shows what became of its submit"
            ) from None
        whole += len(line)
    return record, whole


def _after(record: Record, said: dict[str, Any]) -> Record:
    """Return what is known after one more line."""
    match said:
        case {"begun": {"fingerprint": str(fingerprint), "content": str(content)}}:
            return Record(fingerprint, content)
        case {"intent": {"at": float(at) | int(at)}}:
            return replace(record, unknown=UnknownCreate(at))
        case {"missed": {"at": float(at) | int(at)}} if record.unknown is not None:
            return replace(record, unknown=record.unknown.missed(at))
        case {"refused": _}:
            return replace(record, unknown=None)
        case {"created": {"batch": str(batch)}}:
            return replace(record, unknown=None, batch=batch)
        case _:
            raise ValueError("no line of ours")


class Entry:
    """The file of one submit, which nobody else reads or writes until it is closed.

    Attributes:
        record: what it says.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.record, self._whole = read(file.read(), str(path))

    @classmethod
    def take(cls, path: Path, *, make: bool) -> Self | None:
        """Return an entry that nobody holds; `None` if somebody does, or there is none and none is made."""
        while True:
            flags = os.O_RDWR | (os.O_CREAT if make else 0)
            try:
                file = os.fdopen(open_own(path, flags), "r+b", buffering=0)
            except FileNotFoundError:
                return None
            try:
                if not _lock(file.fileno()):
                    file.close()
                    return None
                if _is_at(file.fileno(), path):
                    return cls(path, file)
            except BaseException:
                file.close()
                raise
            file.close()  # whoever held it has removed it

    def begin(self, fingerprint: str, content: str) -> None:
        """Forget what the file held: it is another submit's now."""
        self._whole = 0
        self._write({"begun": {"version": _VERSION, "fingerprint": fingerprint, "content": content}})
        sync_folder(self._path.parent)

    def intend(self, at: float) -> None:
        """The create goes out once this has returned."""
        self._write({"intent": {"at": at}})

    def missed(self, at: float) -> None:
        """A whole list, begun at this time, did not hold the batch."""
        self._write({"missed": {"at": at}})

    def refused(self) -> None:
        """The create was not taken."""
        self._write({"refused": {}})

    def created(self, batch: str) -> None:
        """The batch is there, and goes to whoever submits with that key again."""
        self._write({"created": {"batch": batch}})

    def remove(self) -> None:
        """Forget it: nothing about it is in doubt, and it answers no other submit."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Let others have it. Repeating is safe."""
        if not self._file.closed:
            with suppress(OSError):
                # By itself: closing alone would leave the lock to a child that was forked meanwhile.
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def _write(self, said: dict[str, Any]) -> None:
        line = orjson.dumps(said) + b"\n"
        descriptor = self._file.fileno()
        os.ftruncate(descriptor, self._whole)
        written = os.pwrite(descriptor, line, self._whole)
        if written != len(line):  # the disk is full
            raise OSError(f"{self._path} took {written} of {len(line)} bytes")
        sync(descriptor)
        self._whole += len(line)
        self.record = _after(self.record, said)


def _lock(descriptor: int) -> bool:
    """Return whether nobody else holds it; where the file system knows no locks, nobody is seen."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of a data folder, shared by all clients of a machine that name it."""

    data: Path

    def take(self, match: str, now: float, *, keyed: bool) -> Entry | None:
        """Return the entry for a submit, which whoever takes it closes.

        Args:
            match: what tells this submit from others.
            now: the time, past which old entries are removed.
            keyed: there is one submit of that name for good, so `None` where another call has it in its
                hands. Else one that nobody has in his hands is taken up: its fate is not known, for it would
                not be there any more.

        Raises:
            OSError: the folder cannot be written.
            InvalidArgument: it is not this user's alone.
            DataLoss: an entry is damaged.
        """
        folder = self._made()
        self._sweep(folder, now)
        if keyed:
            return Entry.take(folder / f"{match}-0{_ENDING}", make=True)
        for path in sorted(folder.glob(f"{match}-*{_ENDING}")):
            entry = Entry.take(path, make=False)
            if entry is not None:
                return entry
        for number in count():
            path = folder / f"{match}-{number}{_ENDING}"
            if not path.exists() and (entry := Entry.take(path, make=True)) is not None:
                return entry
        raise AssertionError("there is always a number left")

    def _made(self) -> Path:
        data = self.data.expanduser().absolute()
        make_folder(data)
        folder = data / FOLDER
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(data)
        return folder

    @staticmethod
    def _sweep(folder: Path, now: float) -> None:
        """Remove what nobody needs any more."""
        with os.scandir(folder) as found:
            old = [one.name for one in found if one.name.endswith(_ENDING) and _age(one, now) > KEPT]
        for name in old:
            try:
                entry = Entry.take(folder / name, make=False)
            except (DataLoss, FailedPrecondition):
                (folder / name).unlink(missing_ok=True)
                continue
            if entry is not None:
                entry.remove()
                entry.close()


def _age(file: os.DirEntry[str], now: float) -> float:
    try:
        return now - file.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0
