"""What there is to say of a run from outside, while it works or long after: its ledger, and the index."""

from __future__ import annotations

import fcntl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from embatch.runs.identity import name_of
from embatch.runs.index import IndexedRun, batches_of, dollars, read
from embatch.runs.intents import OPEN, Fate, Intents
from embatch.runs.ledger import LOG, check_version, folder_of
from embatch.runs.ledger_lines import Block, take
from embatch.runs.locations import shown
from embatch.runs.spending import Spending

if TYPE_CHECKING:
    from collections.abc import Mapping

GONE: Final = "gone"
"""State of a run that was stopped and whose ledger is not there any more."""


@dataclass(slots=True)
class LedgerView:
    """What a ledger says, read while another process may write it."""

    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    begun: Mapping[str, Any] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    intents: Intents = field(default_factory=Intents)
    verdict: str | None = None
    held: bool = False
    """Whether a process has it: the run is at work."""

    @property
    def provider(self) -> str:
        """Whose batches these are, by name."""
        return str(self.about.get("target") or "")

    def name(self, place: str) -> str:
        """Return the run's name, as the index has it; `place` is that of its output."""
        return name_of(self.about, self.begun, place)

    @property
    def state(self) -> str:
        """`running`, `stopped`, `done` or `rejected`, as of `IndexedRun`."""
        return "running" if self.held else self.verdict or "stopped"


def view(folder: Path) -> LedgerView | None:
    """Return what a ledger says; `None` where there is none.

    Raises:
        DataLoss: it is damaged.
        FailedPrecondition: a later version wrote it.
    """
    found = LedgerView(folder)
    try:
        with (folder / LOG).open("rb") as file:
            found.held = _held(file.fileno())
            lines = [line for line in file if line.endswith(b"\n")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    for number, line in enumerate(lines, 1):
        try:
            said = orjson.loads(line)
            if number == 1:
                check_version(folder, said)
                found.begun = said.pop("begun", {})
                found.about = said
            elif "verdict" in said:
                found.verdict = said["verdict"]
            elif (block := take(said, found.intents)) is not None:
                found.blocks[block.number], found.verdict = block, None
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
            raise DataLoss(f"{folder.name}/{LOG} is damaged at line {number}") from None
    return found if lines else None


def _held(descriptor: int) -> bool:
    """Return whether a process has the ledger."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # At once: a run that starts is trying to take it. Closing alone would leave it to a forked child.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True, slots=True)
class RunOverview:
    """One run, for people and programs; the names are those of the JSON."""

    run: str
    output: str
    ledger: str
    provider: str
    target: str
    state: str
    """`running`, `stopped`, `done`, `rejected`, or `gone`: stopped, and its ledger is not there any more."""
    rows: int
    failed: int
    batches: int
    """Handed over, in all calls."""
    in_flight: int
    """Batches that are handed over and whose rows are not in the ledger."""
    unknown: int
    """Creates of which nobody knows yet whether there is a batch."""
    quarantined: int
    """Those that are left to people."""
    tokens: int
    """Of the finished rows."""
    open_tokens: int
    """Estimated, of what is in flight, unknown or quarantined."""
    cost: float | None
    """US dollars paid, without what is under way; `None` where the provider has no price."""
    cpu_seconds: float
    began: float | None
    """Seconds since 1970, as the other times; `None` where the index does not know the run."""
    ended: float | None
    trouble: str | None = None
    """Why its ledger cannot be read."""

    @classmethod
    def of(cls, indexed: IndexedRun, ledger: LedgerView | None, trouble: str | None = None) -> RunOverview:
        """Put together what the index and the ledger say; of two the ledger is right."""
        state, rows, failed = indexed.state, indexed.rows, indexed.failed
        tokens, cpu_seconds, cost = indexed.tokens, indexed.cpu_seconds, indexed.cost
        fates: Counter[Fate] = Counter()
        open_tokens = 0
        in_flight, batches = 0, indexed.batches
        if ledger is not None:
            blocks = ledger.blocks.values()
            state, rows = ledger.state, sum(block.rows for block in blocks)
            failed, tokens = sum(block.failed for block in blocks), sum(block.tokens for block in blocks)
            cpu_seconds = sum(block.cpu_seconds for block in blocks)
            cost = _paid(ledger, indexed.provider, tokens)
            fates = Counter(intent.fate for intent in ledger.intents)
            # A run that was killed may not have told of its last one.
            batches = max(batches, len(batches_of(blocks, ledger.intents)))
            open_tokens = sum(intent.tokens for intent in ledger.intents if intent.fate in OPEN)
            in_flight = fates[Fate.CREATED]
            if not any(True for _ in ledger.intents) and ledger.verdict is None:
                in_flight = max(0, indexed.batches - sum(1 for block in blocks if block.batch))
        elif trouble is None and state in ("running", "stopped"):
            state = GONE
        return cls(
            run=indexed.run,
            output=indexed.output,
            ledger=indexed.ledger,
            provider=indexed.provider,
            target=indexed.target,
            state=state,
            rows=rows,
            failed=failed,
            batches=batches,
            in_flight=in_flight,
            unknown=fates[Fate.UNKNOWN],
            quarantined=fates[Fate.QUARANTINED],
            tokens=tokens,
            open_tokens=open_tokens,
            cost=cost,
            cpu_seconds=cpu_seconds,
            began=indexed.began or None,
            ended=None if state == "running" else indexed.ended,
            trouble=trouble,
        )


def _paid(ledger: LedgerView, provider: str, tokens: int) -> float | None:
    """Return what a run has paid, from its own books; one without any is reckoned by its tokens."""
    with suppress(DataLoss, InvalidArgument):
        if (spending := Spending.seen(ledger.folder)) is not None:
            return spending.settled
    return dollars(provider, ledger.about.get("model"), tokens)


def overview(indexed: IndexedRun) -> RunOverview:
    """Return a run of the index as its ledger has it now."""
    try:
        ledger = view(Path(indexed.ledger))
    except (DataLoss, FailedPrecondition) as error:
        return RunOverview.of(indexed, None, error.message)
    if ledger is not None and ledger.name(indexed.output) != indexed.run:
        ledger = None  # the output was begun anew: that is another run
    return RunOverview.of(indexed, ledger)


def listed(data: Path) -> list[RunOverview]:
    """Return the runs of a data folder's index, the last one first, but for those that came to nothing."""
    found = map(overview, read(data))
    return [one for one in found if one.state != GONE or one.batches or one.rows]


def of_output(place: str, data: Path) -> tuple[RunOverview, LedgerView | None]:
    """Return the run of an output, and its ledger; `None` where that has served its time.

    Raises:
        NotFound: neither ledger nor index know of one.
        DataLoss: the ledger is damaged.
        FailedPrecondition: a later version wrote it.
    """
    folder = folder_of(place, data)
    ledger, ours = view(folder), str(folder.absolute())
    known = [one for one in read(data) if one.ledger == ours]
    if ledger is not None:
        name = ledger.name(place)
        blank = IndexedRun(
            name, ours, shown(place), ledger.provider, str(ledger.about.get("base address") or "")
        )
        return RunOverview.of(next((one for one in known if one.run == name), blank), ledger), ledger
    if not known:
        raise NotFound(
            f"no run of {shown(place)} is known: `embatch runs` lists those of this data folder", field="OUT"
        )
    return RunOverview.of(known[0], None), None
