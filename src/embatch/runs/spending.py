"""What a run was asked to keep to, and what it spent: durable beside its ledger, in `spending.jsonl`.

The first line says the version. Each further one is one of these:

    {"terms": {"deadline", "max cost", "said"}}     the last one counts
    {"paid": {"key", "way", "tokens", "dollars", "open"}}
        `open` while it is under way: written before it begins, at its full estimate. A later line of a key
        takes the place of an earlier one.

So whatever stops a run, the next call knows of every dollar that may have been spent. A torn last line is
what a crash leaves, and nothing had begun of what it says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.durable import sync, sync_folder
from embatch.errors import DataLoss, InvalidArgument
from embatch.runs.budget import Budget
from embatch.runs.deadline import Terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAME: Final = "spending.jsonl"
VERSION: Final = 1
BATCH, AT_ONCE, GIVEN_UP, CHECKED = "batch", "interactive", "abandoned", "checked"
"""What is paid for: batches, texts embedded at once, batches that were given up for these, and texts that are
embedded again to see whether vectors belong to them."""


@dataclass(frozen=True, slots=True)
class Paid:
    """One thing that money went into, or may go into."""

    key: str
    """What it is: the block's number, the way, and a count."""
    way: str
    tokens: int
    dollars: float
    open: bool = True
    """Whether it is under way: tokens and dollars are then estimates."""


@dataclass(slots=True)
class Spending:
    """The money of one run. Not for two processes at once: whoever holds the ledger holds it."""

    file: Path | None = None
    """`None` keeps nothing."""
    terms: Terms = field(default_factory=Terms)
    budget: Budget = field(default_factory=Budget)
    _paid: dict[str, Paid] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, *, fresh: bool) -> Spending:
        """Return what the calls before this one spent.

        Args:
            folder: the ledger's.
            fresh: whether the run begins: nothing of an earlier one counts.

        Raises:
            DataLoss: the file is damaged.
            InvalidArgument: a newer version wrote it.
        """
        spending = cls(folder / NAME)
        if fresh:
            (folder / NAME).unlink(missing_ok=True)
        else:
            spending._read(folder / NAME)
        return spending

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        where = f"{path.parent.name}/{NAME}"
        for number, line in enumerate(whole.splitlines()):
            try:
                said = orjson.loads(line)
                if not number and said["v"] != VERSION:
                    raise InvalidArgument(
                        f"{where} was written by a newer version of embatch: go on with that one",
                        field="--out",
                    )
                if number:
                    self._take(said)
            except (orjson.JSONDecodeError, TypeError, KeyError, ValueError):
                raise DataLoss(f"{where} is damaged at line {number + 1}: it says what was paid") from None
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def _take(self, said: Mapping[str, Any]) -> None:
        if "terms" in said:
            self.terms = Terms.of(said["terms"])
            self.budget.cap = self.terms.max_cost
        else:
            paid = Paid(**said["paid"])
            self._paid[paid.key] = paid
            self.budget.settle(paid.key, paid.dollars)

    def keep(self, terms: Terms) -> None:
        """Keep to other terms from now on. Durable on return, for later calls of the run too."""
        if terms != self.terms:
            self._append({"terms": terms.record()})
            self.terms = terms
        self.budget.cap = terms.max_cost

    def begin(self, number: int, way: str, tokens: int, dollars: float) -> bool:
        """Count what is about to be begun for a block; return whether the cap has room for it.

        Durable before it begins. What an earlier call began and left open in this way is the same.
        """
        mine = [paid for paid in self._paid.values() if paid.key.startswith(f"{number}.{way}.")]
        last = mine[-1] if mine else None
        if last is not None and last.open and way == BATCH:
            return True
        if not self.budget.fits(dollars):
            return False
        self._put(Paid(f"{number}.{way}.{len(mine)}", way, tokens, dollars))
        return True

    def keep_back(self, tokens: int, dollars: float) -> None:
        """Count what all checks of the run may cost together, or what they have cost, all told so far."""
        if (paid := self._paid.get(CHECKED)) is None or paid.dollars != dollars:
            self._put(Paid(CHECKED, CHECKED, tokens, dollars))

    def settle(self, number: int, way: str, tokens: int, dollars: float) -> None:
        """Say what the last thing of a block in some way has cost, all told."""
        paid = self._last(number, way)
        if paid is not None:
            self._put(Paid(paid.key, paid.way, tokens, dollars, open=False))

    def give_up(self, number: int, share: float) -> None:
        """Count the batch of a block as given up, with the share of its estimate that it still costs."""
        paid = self._last(number, BATCH)
        if paid is not None:
            way = replace(paid, way=GIVEN_UP, open=False)
            self._put(replace(way, tokens=round(paid.tokens * share), dollars=paid.dollars * share))

    def take_back(self, number: int) -> None:
        """Count a batch that was to be given up, and came back meanwhile, as under way again."""
        mine = [paid for paid in self._paid.values() if paid.key.startswith(f"{number}.{BATCH}.")]
        if mine:
            self._put(replace(mine[-1], way=BATCH, open=True))

    def _last(self, number: int, way: str) -> Paid | None:
        mine = [paid for paid in self._paid.values() if paid.key.startswith(f"{number}.{way}.") and paid.open]
        return mine[-1] if mine else None

    def _put(self, paid: Paid) -> None:
        self._append({"paid": asdict(paid)})
        self._paid[paid.key] = paid
        self.budget.settle(paid.key, paid.dollars)

    def by_way(self) -> dict[str, tuple[int, float]]:
        """Return tokens and dollars of each way that was gone."""
        found: dict[str, tuple[int, float]] = {}
        for paid in self:
            tokens, dollars = found.get(paid.way, (0, 0.0))
            found[paid.way] = (tokens + paid.tokens, dollars + paid.dollars)
        return found

    def __iter__(self) -> Iterator[Paid]:
        return iter(self._paid.values())

    def _append(self, said: Mapping[str, object]) -> None:
        if self.file is None:
            return
        begins = not self.file.exists() or not self.file.stat().st_size
        with self.file.open("ab") as file:
            if begins:
                file.write(orjson.dumps({"v": VERSION}) + b"\n")
            file.write(orjson.dumps(said) + b"\n")
            file.flush()
            sync(file.fileno())
        if begins:
            sync_folder(self.file.parent)
