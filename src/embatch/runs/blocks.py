"""Which blocks a run has to work: those that are not in the ledger, or those with rows to be tried again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING

from embatch.errors import FailedPrecondition
from embatch.runs.locations import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.runs.block_size import BlockSize
    from embatch.runs.counts import Counts
    from embatch.runs.intents import Intent
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.options import RunOptions
    from embatch.runs.sources import Rows, Source


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one run."""

    source: Source
    ledger: Ledger
    options: RunOptions
    counts: Counts
    place: str
    """The output's."""
    size: BlockSize

    def todo(self) -> Iterator[tuple[int, Rows]]:
        """Yield the blocks that have to be worked, with their numbers."""
        blocks, lost = self.ledger.blocks, self.ledger.lost
        if self.options.retry_failed:
            rejected = self.ledger.verdict == "rejected"
            again = self._failed()
            # A run that was rejected ended before its time: what it had not worked is worked now.
            missing = next(number for number in count() if number not in blocks)
            first, last = min(again), max(again)
            within = self._from(min(first, missing) if rejected else first)
            for number, rows in within if rejected else takewhile(lambda block: block[0] <= last, within):
                if number in again:
                    yield number, rows
                elif rejected and number not in blocks:
                    self.counts.read += len(rows.texts)
                    yield number, rows
        elif self.ledger.verdict != "done":
            # From the first that is not there on: behind it others may be, for what ends is committed.
            for number, rows in self._from(next(number for number in count() if number not in blocks)):
                if number in lost:
                    self.counts.again[number] = len(rows.texts)
                if number not in blocks:
                    self.counts.read += len(rows.texts)
                    yield number, rows

    def _from(self, number: int) -> Iterator[tuple[int, Rows]]:
        """Yield the blocks from one on; those that the ledger knows are the rows that it says."""
        known: dict[int, Block | Intent] = {**self.ledger.intents.blocks(), **self.ledger.lost}
        known |= self.ledger.blocks
        lengths = [known[at].rows for at in takewhile(known.__contains__, count())]
        skipped, following = sum(lengths[:number]), lengths[number:]
        return enumerate(self.source.blocks(self.size.rows, skipped, following, self.size.bytes), number)

    def _failed(self) -> set[int]:
        """Return the blocks with rows that another try can change. Raises FailedPrecondition without any."""
        if not self.ledger.fresh and self.ledger.verdict not in ("done", "rejected"):
            raise FailedPrecondition(
                "the run is not finished: the same command without --retry-failed goes on with it",
                field="--retry-failed",
            )
        again = {number for number, block in self.ledger.blocks.items() if block.retryable}
        if not again:
            if self.ledger.fresh:
                self.ledger.remove()
            raise FailedPrecondition(
                f"no failed row of {shown(self.place)} is remembered that another try could change",
                field="--retry-failed",
            )
        return again
