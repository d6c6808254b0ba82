"""What a run has done, durable beside its output: a log of finished blocks, and part files with their rows.

`OUT.embatch/ledger.jsonl` begins with a line that says which run it is, and what its first call decided for
all later ones; each further line is one finished block. A line is written once its part file is durable, and
counts once it is whole: a torn last line is what a crash leaves, and its block is worked again. A later line
of a block takes the place of an earlier one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import orjson
import pyarrow as pa

from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss, FailedPrecondition, InvalidArgument
from embatch.ownership import make_folder
from embatch.runs.identity import differences
from embatch.runs.locations import SUFFIX, local, scheme
from embatch.runs.parity import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LOG: Final = "ledger.jsonl"
_BEGUN: Final = "begun"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of the input whose outcome is durable."""

    number: int
    first: int
    """0-based row number of its first row."""
    rows: int
    failed: int
    retryable: int
    """Failed rows whose text can be read: the only ones that another try can change."""
    duplicates: int
    """Rows whose text stood in the block before: equal texts were sent once."""
    cached: int
    """Texts answered from what earlier runs had embedded."""
    tokens: int
    """Tokens the model saw of the texts that were sent."""
    truncated: int
    cpu_seconds: float
    """Of the engine, for all tries of this block."""
    native: int
    """Dimensions of the vectors; 0 where no row has one."""
    model: str
    engine: Mapping[str, object] = field(default_factory=dict)
    """What computed the vectors: `identity` and the files it covers; empty where the target does not say."""
    notes: tuple[str, ...] = ()
    interactive_cpu_seconds: float | None = None
    """What its tokens cost that engine one text at a time; `None` where the service has not measured it."""
    sample: Sample | None = None
    """What the certificate found; `None` where nothing could be compared."""
    batch: str = ""
    """The batch that worked it last, dropped from the service once this is durable; empty: none did."""
    part: str = ""
    size: int = 0
    """Bytes of the part; 0 in a ledger from before they were kept."""
    sha256: str = ""


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
    ) -> Self:
        """Take up the run that a folder remembers, or begin one. Durable on return.

        Args:
            folder: `OUT.embatch`; its parent must exist.
            about: what the run is, as JSON: the same words mean the same blocks.
            begun: what else is kept if this call begins the run, as JSON; one that takes it up finds in
                `Ledger.begun` what the first call gave. A mapping under a name of `about` says what that
                consists of, so that a refusal can name it.
            restart: forget what is there.

        Raises:
            InvalidArgument: the folder remembers another run, and it says what differs and the remedy; or a
                file is in its place.
            FailedPrecondition: another process writes the same output now.
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
                ledger._clear()
            ledger._read()
        except BaseException:
            file.close()
            raise
        return ledger

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

    def _read(self) -> None:
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
                self._compare(said)
            whole += len(line)
        self._file.truncate(whole)
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
            return
        sample = None if said["sample"] is None else Sample(**said["sample"])
        block = Block(**{**said, "notes": tuple(said["notes"]), "sample": sample})
        self._keep(block)

    def _compare(self, said: object) -> None:
        other = dict(said) if isinstance(said, dict) else {}
        mine, self.begun = self.begun, other.pop(_BEGUN, {})
        differing = differences(other, self.about, self.begun, mine)
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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept = replace(block, part=name, size=path.stat().st_size, sha256=digest)
        self._append(asdict(kept))
        self._keep(kept)
        if earlier is not None:
            (self._folder / earlier.part).unlink(missing_ok=True)
        return kept

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
