"""What a run has done, durable beside its output: a log of what happened, and part files with finished rows.

`OUT.embatch/ledger.jsonl` begins with a line that says which run it is (`version` is the ledger's), and under
`begun` what its first call decided for all later ones; `ledger_lines` says what stands in the others. The
line of a block is written once its part file is durable. A line counts once it is whole: a torn last line is
what a crash leaves, and what it would have said is found out again.

One process holds a ledger at a time, by `flock`; a file system that has none lets two have it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, Self

import orjson
import pyarrow as pa

from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss, FailedPrecondition, InvalidArgument, printable
from embatch.ownership import make_folder
from embatch.runs.identity import differences
from embatch.runs.intents import Intents
from embatch.runs.ledger_lines import Block, take
from embatch.runs.locations import SUFFIX, local, scheme
from embatch.runs.steps import Step, pass_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from embatch.batch import Batch
    from embatch.runs.intents import Intent

_LOG: Final = "ledger.jsonl"
_BEGUN: Final = "begun"
_VERSION: Final = "version"
VERSION: Final = 2
_KNOWN: Final = (1, VERSION)
_SHOWN: Final = 5
"""Batches that a refusal names."""


class PartLost(DataLoss):
    """The part of a block is missing or not what was written; the block does not count any more."""


class Ledger:
    """The log of one run. One process holds it at a time."""

    def __init__(
        self, folder: Path, file: Any, about: Mapping[str, object], begun: Mapping[str, object]
    ) -> None:
        self.about = dict(about)
        self.begun = dict(begun)
        """What the first call gave to be kept; empty in a ledger from before anything was."""
        self.fresh = False
        """Whether this call begins the run."""
        self.blocks: dict[int, Block] = {}
        self.intents = Intents()
        self.reached: Callable[[Step], object] = pass_by
        """Told of a block's steps here."""
        self.verdict: str | None = None
        """`done` or `rejected` once the output is in place."""
        self.last: Block | None = None
        """The block committed last, whose batch may still be there."""
        self.lost: dict[int, Block] = {}
        """Blocks that were done and whose parts are missing or damaged: they have to be worked again."""
        self.model: tuple[object, int] = (None, 0)
        """Identity of the engine and native dimensions of all blocks; `None` and 0 while none tells."""
        self._folder, self._file = folder, file

    @property
    def folder(self) -> Path:
        """`OUT.embatch`, where other things of the run stand too."""
        return self._folder

    @classmethod
    def open(
        cls,
        folder: Path,
        about: Mapping[str, object],
        begun: Mapping[str, object] | None = None,
        *,
        restart: bool = False,
        unsaid: Collection[str] = (),
    ) -> Self:
        """Take up the run that a folder remembers, or begin one. Durable on return.

        Args:
            folder: `OUT.embatch`; its parent must exist.
            about: what the run is, as JSON: the same words mean the same blocks.
            begun: what else is kept if this call begins the run, as JSON; one that takes it up finds in
                `Ledger.begun` what the first call gave. A mapping under a name of `about` says what that
                consists of, so that a refusal can name it.
            restart: forget what is there.
            unsaid: names of `about` that the caller left open: what the first call had stands.

        Raises:
            InvalidArgument: the folder remembers another run, and it says what differs and the remedy; or a
                file is in its place.
            FailedPrecondition: another process writes the same output now, it is a ledger of a later version,
                or what shall be forgotten may have been paid.
            DataLoss: the log is damaged.
        """
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise InvalidArgument(
                f"{folder} is a file, and the run needs a folder of that name: move it, or give the output "
                "another name",
                field="--out",
            ) from None
        file = (folder / _LOG).open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise FailedPrecondition(
                f"another embatch is writing this output ({folder.name} is locked): wait for it",
                field="--out",
            ) from None
        ledger = cls(folder, file, about, begun or {})
        try:
            if restart:
                ledger._check_paid()
                ledger._clear()
            ledger._read(unsaid)
        except BaseException:
            file.close()
            raise
        return ledger

    def _check_paid(self) -> None:
        """Refuse to forget what may have been paid. Raises FailedPrecondition."""
        intents = Intents()
        self._file.seek(0)
        for number, line in enumerate(self._file):
            with suppress(orjson.JSONDecodeError, TypeError, KeyError):  # of what is damaged nothing is known
                said = orjson.loads(line)
                if number:
                    take(said, intents)
                else:
                    self._check_version(said)
        if paid := intents.open():
            found = "; ".join(f"{one.shown}: {one.batch or 'not known which'}" for one in paid[:_SHOWN])
            more = f"; and {len(paid) - _SHOWN:,} more" if len(paid) > _SHOWN else ""
            raise FailedPrecondition(
                f"{self._folder.name} has {len(paid):,} batches that may have been paid and are not read "
                f"({found}{more}): without --restart the same command goes on with them; what `embatch runs "
                "adopt` or `embatch runs abandon` has settled, --restart forgets",
                field="--restart",
            )

    def _clear(self) -> None:
        for part in self._folder.glob("part-*"):
            part.unlink()
        self._file.truncate(0)

    def _drop(self, block: Block) -> None:
        """Let a block have to be worked again; the run is not done any more."""
        self.lost[block.number] = self.blocks.pop(block.number, block)
        self.verdict = None
        if not self.blocks:
            self.model = (None, 0)

    def _keep(self, block: Block) -> None:
        self.blocks[block.number] = self.last = block
        self.verdict = None
        identity, native = self.model
        self.model = (identity or block.engine.get("identity"), native or block.native)

    def _missing(self, block: Block) -> bool:
        """Return whether a part is not there, or not all of it: what a look at the folder tells."""
        try:
            size = (self._folder / block.part).stat().st_size
        except FileNotFoundError:
            return True
        return size != (block.size or size)

    def _read(self, unsaid: Collection[str]) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                said = orjson.loads(line)
                if number:
                    self._take(said)
            except (orjson.JSONDecodeError, TypeError, KeyError):
                raise DataLoss(
                    f"{self._folder.name}/{_LOG} is damaged at line {number + 1}: --restart begins anew"
                ) from None
            if not number:
                self._compare(said, unsaid)
            whole += len(line)
        self._file.truncate(whole)
        for left in self._folder.glob("sent-*"):
            left.unlink()
        for block in filter(self._missing, list(self.blocks.values())):
            self._drop(block)
        self.fresh = not whole
        if not whole:
            self._append({**self.about, _BEGUN: self.begun})
            sync_folder(self._folder)
            sync_folder(self._folder.parent)

    def _take(self, said: dict[str, Any]) -> None:
        if "verdict" in said:
            self.verdict = said["verdict"]
        elif (block := take(said, self.intents)) is not None:
            self._keep(block)

    def _check_version(self, said: object) -> None:
        version = said.get(_VERSION, 1) if isinstance(said, dict) else 1
        if version not in _KNOWN:
            raise FailedPrecondition(
                f"{self._folder.name} was written by another version of embatch (its ledger has version "
                f"{printable(str(version), 20)}, this one reads up to {VERSION}): go on with that one, for "
                "what was paid stands in it",
                field="--out",
            )

    def _compare(self, said: object, unsaid: Collection[str]) -> None:
        self._check_version(said)
        other = dict(said) if isinstance(said, dict) else {}
        mine, self.begun = self.begun, other.pop(_BEGUN, {})
        left = {_VERSION, *(name for name in unsaid if name in other)}
        if other.get(_VERSION, 1) < VERSION:  # it does not say what a run is known by since
            left |= self.about.keys() - other.keys()
        then, now = (
            {name: value for name, value in one.items() if name not in left} for one in (other, self.about)
        )
        # What a batch is known by is made of the words of the call that began the run.
        self.about = other
        differing = differences(then, now, self.begun, mine)
        if differing:
            raise InvalidArgument(
                f"{self._folder.name} remembers an unfinished run of another {' and '.join(differing)}: give "
                "that run's input and options to go on with it, or --restart to forget it and begin anew",
                field="--out",
            )

    def commit(self, block: Block, rows: pa.RecordBatch) -> Block:
        """Keep a block's rows; durable on return. Repeating is safe; the last one counts."""
        earlier = self.blocks.get(block.number) or self.lost.pop(block.number, None)
        again = 0 if earlier is None else int(earlier.part.rsplit("-", 1)[1].partition(".")[0]) + 1
        name = f"part-{block.number:06}-{again}.arrow"
        path = self._folder / name
        with path.open("wb") as file:
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_batch(rows)
            file.flush()
            sync(file.fileno())
        sync_folder(self._folder)
        self.reached(Step.STORED)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept = replace(block, part=name, size=path.stat().st_size, sha256=digest)
        self._append({"block": asdict(kept)})
        self._keep(kept)
        self.intents.done(kept.number)
        self.reached(Step.COMMITTED)
        if earlier is not None:
            (self._folder / earlier.part).unlink(missing_ok=True)
        return kept

    def parked(self, number: int) -> Path:
        """Return where the rows of a block lie while its batch is in flight: of use to this call alone."""
        return self._folder / f"sent-{number:06}.arrow"

    def rows(self, block: Block) -> pa.RecordBatch:
        """Return the rows of a block as they were committed, memory-mapped.

        Raises:
            PartLost: the part is missing or not what was written: the block is now one of `lost`.
        """
        path = self._folder / block.part
        try:
            with path.open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == block.sha256
            if sound:
                return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowException):
            pass
        self._drop(block)
        raise PartLost(
            f"{self._folder.name}/{block.part} is missing or damaged: the same command without "
            "--retry-failed works its rows again, --restart begins anew"
        )

    def id_type(self, block: Block) -> pa.DataType | None:
        """Return the type of a block's ids, `None` where its part cannot be read: it is lost."""
        try:
            with pa.memory_map(str(self._folder / block.part)) as stored:
                kind: pa.DataType = pa.ipc.open_file(stored).schema.field("id").type
        except (OSError, pa.ArrowException):
            return None
        return kind

    def intend(self, intent: Intent) -> None:
        """Write down that a create is about to go out. Durable on return."""
        self._tell({"intent": intent.line()})

    def created(self, fingerprint: str, at: float, batch: Batch | None, why: str | None = None) -> None:
        """Write down what came of a create: its batch, one that ended without rows (`why`), or none.

        Durable on return. Raises KeyError where there is no such intent.
        """
        name, file = (None, None) if batch is None else (batch.name, batch.input_file)
        said = {"fingerprint": fingerprint, "at": at, "batch": name, "file": file, "why": why}
        self._tell({"created": said})

    def quarantine(self, fingerprint: str, at: float, why: str, *, abandoned: bool = False) -> None:
        """Leave an intent to people, or give it up as they say. Durable on return.

        Raises KeyError where there is no such intent.
        """
        said = {"fingerprint": fingerprint, "at": at, "why": why, "abandoned": abandoned}
        self._tell({"quarantine": said})

    def _tell(self, said: dict[str, Any]) -> None:
        self._append(said)
        take(said, self.intents)

    def end(self, verdict: str) -> None:
        """Note that the output is in place: `done` or `rejected`. Durable on return."""
        self._append({"verdict": verdict})
        self.verdict = verdict

    def _append(self, said: Mapping[str, object]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(orjson.dumps(said) + b"\n")
        self._file.flush()
        sync(self._file.fileno())

    def close(self) -> None:
        """Let others have it. Repeating is safe."""
        with suppress(OSError):  # what a full disk did not take was an error before
            self._file.close()

    def remove(self) -> None:
        """Forget the run: the output holds all there is to know."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.close()


def folder_of(place: str, data: Path) -> Path:
    """Return where the ledger of an output is: beside a file, in the data folder for any other place.

    Args:
        place: path or address of the output.
        data: the data folder; its `runs` is made if it is needed.

    Raises:
        InvalidArgument: the data folder is needed and not this user's alone.
    """
    if scheme(place) == "file":  # one folder, and so one lock, however the file is spelled
        path = local(place)
        return path.with_name(path.name + SUFFIX)
    data = data.expanduser().absolute()
    make_folder(data)
    runs = data / "runs"
    runs.mkdir(mode=0o700, exist_ok=True)
    return runs / (hashlib.sha256(place.encode()).hexdigest()[:32] + SUFFIX)
