"""What a run has done so far, counted as blocks come and go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embatch.runs.progress import RunProgress, Tally, finished

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embatch.batch import Batch
    from embatch.runs.in_flight import InFlight
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.sources import Source


@dataclass(slots=True)
class Counts:
    """Rows and tokens of one run, in this call and in those before it."""

    source: Source
    tally: Tally
    resumed: int
    """Rows that an earlier call had finished or handed over."""
    read: int
    """Rows of all blocks that were read or are in the ledger."""
    earlier: tuple[int, int]
    """Rows and tokens that were finished when this call began."""
    exhausted: bool
    """Whether the end of the input was seen."""
    again: dict[int, int] = field(default_factory=dict)
    """Rows of each block that had to be worked again, for its part was lost."""

    @classmethod
    def of(cls, source: Source, ledger: Ledger) -> Counts:
        """Return the counts of a call that begins."""
        tally = Tally()
        for block in ledger.blocks.values():
            tally.add(block)
        return cls(
            source, tally, tally.rows, tally.rows, (tally.rows, tally.tokens), ledger.verdict == "done"
        )

    def begin(self, block: InFlight, ledger: Ledger) -> None:
        """Count what an earlier call finished of a block, or of the try before, as it is watched now."""
        earlier = ledger.blocks.get(block.number)
        if earlier is not None:
            self.tally.take(earlier)
        rows, tokens = self.earlier
        self.earlier = (rows + block.earlier[0], tokens + block.earlier[1])

    def uncount(self, lost: Iterable[Block]) -> None:
        """Take blocks that were finished for not finished."""
        for block in lost:
            self.tally.take(block)
            self.read, self.resumed = self.read - block.rows, max(0, self.resumed - block.rows)
            self.earlier = (self.earlier[0] - block.rows, self.earlier[1] - block.tokens)

    def standing(
        self,
        batch: Batch,
        working: Sequence[InFlight],
        handed: Iterable[str],
        *,
        settled: bool,
        said: str = "",
    ) -> RunProgress:
        """Return how far the run is.

        Args:
            batch: the one that was asked for.
            working: the blocks whose batches are watched, as far as they were asked for.
            handed: names of the batches that are handed over and not dropped yet.
            settled: whether the rows of `batch` are committed.
            said: what is new for people.
        """
        tally, source = self.tally, self.source
        total = source.rows if source.rows is not None else self.read if self.exhausted else None
        rows, tokens, failed = tally.rows, tally.tokens, tally.failed
        new = 0
        for one in working:
            if one.polled is not None:
                requests, worked = finished(one.polled)
                done = one.finished(requests)
                rows, tokens, new = rows + done, tokens + worked, new + done - one.finished(0)
                failed += one.failed + one.polled.batch_stats.failed_request_count
        known = (tally.rows, tally.tokens) if tally.rows else (new, tokens - tally.tokens)
        estimate = round(known[1] / known[0] * total) if total and all(known) else None
        return RunProgress(
            min(rows, total or rows),
            total,
            tokens,
            None if estimate is None else max(estimate, tokens),
            failed,
            batch,
            *self.earlier,
            handed=tuple(handed),
            said=said,
            settled=settled,
        )
