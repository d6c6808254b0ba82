"""How a run ends: its output is put in place, under its own name or as one that was rejected."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

from embatch.client.for_runs import ForRuns
from embatch.errors import DataLoss, FailedPrecondition, InvalidArgument
from embatch.runs import parity
from embatch.runs.alignment import record
from embatch.runs.identity import request_note
from embatch.runs.intents import Fate
from embatch.runs.part import Part, to_mend
from embatch.runs.progress import SHOWN, Summary
from embatch.runs.sources.whereabouts import placed, whereabouts
from embatch.runs.steps import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.client.client import Client
    from embatch.runs.counts import Counts
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import RunOptions
    from embatch.runs.output import Output
    from embatch.runs.pacing import Pacing


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one run."""

    client: Client
    ledger: Ledger
    output: Output
    options: RunOptions
    counts: Counts
    pacing: Pacing
    name: str
    """The run's, in the service's cache."""
    notes: list[str]
    """What handing over found, for people; it may still grow."""

    def check_left(self, left: Sequence[int]) -> None:
        """Refuse to end without the blocks that are left to people. Raises FailedPrecondition."""
        if left:
            found = [one for one in self.ledger.intents if one.fate is Fate.QUARANTINED]
            raise FailedPrecondition(
                f"all is done but {len(found):,} batches of which nobody can tell whether they were paid: "
                f"{'; '.join(f'{one.shown}: {one.why}' for one in found[:SHOWN])}. "
                "`embatch runs` shows them, `embatch runs adopt` and `embatch runs abandon` settle them, and "
                "the same command goes on",
                field="--out",
            )

    def finish(self) -> Summary:
        """Put the output in place; keep the ledger only for rows that can be tried again."""
        summary = self._summary()
        summary.to_mend = self._to_mend()
        written = self.output.finish(self.ledger, summary)
        self.options.reached(Step.PLACED)
        self.ledger.end("done")
        self.options.reached(Step.FINISHED)
        if self.options.cache:
            ForRuns(self.client).publish(self.name)
        if not summary.retryable:
            self.ledger.remove()
        summary.place, summary.bytes = written.place, written.bytes
        summary.dimensions = self.output.dimensions
        return summary

    def _summary(self) -> Summary:
        blocks = [self.ledger.blocks[number] for number in sorted(self.ledger.blocks)]
        summary = Summary.of(blocks, parity.together(block.sample for block in blocks))
        summary.resumed, (summary.earlier, _) = self.counts.resumed, self.counts.earlier
        if again := sum(self.counts.again.values()):
            summary.notes.append(f"{again:,} rows were done before and worked again: the ledger was damaged")
        summary.notes += [*self.notes, *self.counts.source.notes]
        summary.request = request_note(self.client, self.ledger.about, summary.model)
        summary.bill = self.pacing.bill(blocks, self.options)
        if not any(block.native for block in blocks):
            why = Part.read(self.ledger.rows(blocks[0])).errors[0] if blocks else "there is none"
            self.ledger.remove()
            raise InvalidArgument(f"the input holds no row that can be embedded: {why}", field="IN")
        return summary

    def _to_mend(self) -> list[str]:
        """Return the first rows that only the user can mend: where each is, and what is wrong with it."""
        blocks = self.ledger.blocks
        faulty = (number for number in sorted(blocks) if blocks[number].failed > blocks[number].retryable)
        rows = (
            row
            for number in faulty
            for row in to_mend(self.ledger.rows(blocks[number]), blocks[number].first)
        )
        found = dict(islice(rows, SHOWN))
        return [placed(where, found[row]) for row, where in whereabouts(self.counts.source, found).items()]

    def reject(self) -> NoReturn:
        """Put the output in place under another name. Raises DataLoss that says why."""
        written = self.output.finish(self.ledger, self._summary(), rejected=True)
        self.ledger.end("rejected")
        self._refuse_misplaced(written.place)
        found = parity.together(block.sample for block in self.ledger.blocks.values())
        raise DataLoss(
            f"the vectors are not those of the reference path and stand in {written.place}: least cosine "
            f"{found.cosine_least if found else 0.0} of {found.count if found else 0} texts, wanted "
            f"{self.options.threshold}. Nothing else was written; --restart begins anew"
        )

    def _refuse_misplaced(self, place: str) -> None:
        """Say which rows have vectors of other texts, or may have. Raises DataLoss where any has."""
        bad = [block for block in self.ledger.blocks.values() if record.damaged(block.alignment)]
        if not bad:
            return
        proved = [one["row"] for block in bad for one in (block.alignment or {})["again"] if not one["equal"]]
        rows = sum((block.alignment or {})["failed"] for block in bad)
        stands = "nothing of them was written" if self.output.direct else f"all that came stands in {place}"
        raise DataLoss(
            f"vectors came at wrong texts: {rows:,} rows failed for it or are in doubt, and of "
            f"{len(proved):,} that is certain (rows {', '.join(map(str, proved[:SHOWN]))}, counted from 0); "
            f"{stands}. --retry-failed embeds these rows again and goes on, --restart begins anew"
        )
