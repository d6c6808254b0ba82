"""How far a run is, and what it did: plain numbers for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from embatch.runs.alignment import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from embatch.batch import Batch
    from embatch.runs.bill import Bill
    from embatch.runs.ledger_lines import Block
    from embatch.runs.parity import Sample


SHOWN: Final = 5
"""Rows to be mended that a summary names."""


def total(seconds: Iterable[float | None]) -> float | None:
    """Return the sum; `None` where there is nothing, or one is not known."""
    found = list(seconds)
    known = [one for one in found if one is not None]
    return sum(known) if known and len(known) == len(found) else None


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is. Rows and tokens of earlier calls count as done."""

    rows: int
    """Finished, durable or not."""
    total_rows: int | None
    """`None` while the end of the input is not in sight."""
    tokens: int
    """Of the texts that were sent, equal ones once; 0 where the target does not say."""
    total_tokens: int | None
    """Estimated from the rows so far; `None` where there is nothing to estimate from."""
    failed: int
    batch: Batch
    """The one that is awaited now."""
    earlier_rows: int = 0
    """Of `rows`, those that were finished when this call began: no rate counts them."""
    earlier_tokens: int = 0
    """The same of `tokens`."""
    handed: tuple[str, ...] = ()
    """Names of the run's batches that are handed over and not dropped yet, the awaited one among them."""
    said: str = ""
    """What is new for people, in a line, such as a full quota; empty where nothing is."""
    settled: bool = True
    """Whether no more is to come of a batch that has ended: its rows are counted, duplicates and all."""


@dataclass(slots=True)
class Tally:
    """What the finished blocks of a run add up to, kept as they come and go: no poll walks through them."""

    rows: int = 0
    failed: int = 0
    tokens: int = 0

    def add(self, block: Block) -> None:
        """Count a block."""
        self.rows, self.failed = self.rows + block.rows, self.failed + block.failed
        self.tokens += block.tokens

    def take(self, block: Block) -> None:
        """Count it no more."""
        self.rows, self.failed = self.rows - block.rows, self.failed - block.failed
        self.tokens -= block.tokens


def between_polls(texts: int, blocks: int) -> float:
    """Return the seconds between polls: lively for a few texts and at first, rarer as the run grows."""
    return min(0.05 + texts / 1000, 5.0, 0.25 * (1 + blocks))


def finished(batch: Batch) -> tuple[int, int]:
    """Return the requests and tokens of a batch that are finished, durable or not."""
    stats, usage = batch.batch_stats, batch.usage
    done = stats.successful_request_count + stats.failed_request_count + stats.uncommitted_request_count
    return done, usage.token_count + usage.uncommitted_token_count


class Progress(Protocol):
    """Told about a run's way with every poll."""

    def __call__(self, standing: RunProgress) -> None:
        """Show it."""
        ...


@dataclass(slots=True)
class Summary:
    """What a run did, earlier calls of it included. Counts are rows."""

    place: str = ""
    rows: int = 0
    failed: int = 0
    retryable: int = 0
    """Failed rows that another try might change."""
    to_mend: list[str] = field(default_factory=list)
    """The first of the other failed rows, as people find them: file and line, and what is wrong."""
    duplicates: int = 0
    """Rows whose text stood in their block before: answered without work."""
    cached: int = 0
    """Texts answered from what earlier runs had embedded."""
    truncated: int = 0
    tokens: int = 0
    """Of the texts that were sent, equal ones once."""
    resumed: int = 0
    """Rows that an earlier call had finished or handed over."""
    earlier: int = 0
    """Rows that were finished when this call began: no rate counts them."""
    cpu_seconds: float = 0.0
    """Of the engine, for all calls of the run."""
    interactive_cpu_seconds: float | None = None
    """What the same tokens cost that engine one text at a time, as the service measured; in float32 also by
    the certificate's sample. `None` without either."""
    dimensions: tuple[int, ...] = ()
    bytes: int | None = None
    """Size of the output; `None` where it is no file."""
    model: str = ""
    sample: Sample | None = None
    bill: Bill | None = None
    """`None` where what was embedded has no price."""
    alignment: Mapping[str, Any] | None = None
    """Whether vectors belong to their texts, as JSON; `None` where the certificate says it."""
    request: Mapping[str, Any] | None = None
    """What was asked of the model, as JSON."""
    alignment_cpu_seconds: float = 0.0
    """Of this machine, to find that out."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, blocks: Sequence[Block], sample: Sample | None) -> Summary:
        """Return what the blocks of a ledger add up to."""
        summary = cls(sample=sample, alignment=record.of_run(block.alignment for block in blocks))
        worked = [block for block in blocks if block.tokens]
        summary.interactive_cpu_seconds = total(block.interactive_cpu_seconds for block in worked)
        for block in blocks:
            summary.rows += block.rows
            summary.failed += block.failed
            summary.retryable += block.retryable
            summary.duplicates += block.duplicates
            summary.cached += block.cached
            summary.truncated += block.truncated
            summary.tokens += block.tokens
            summary.cpu_seconds += block.cpu_seconds
            summary.model = block.model or summary.model
            summary.alignment_cpu_seconds += (block.alignment or {}).get("cpu_seconds", 0.0)
        summary.notes = list(dict.fromkeys(note for block in blocks for note in block.notes))
        exact = all(block.engine.get("precision") == "f32" for block in worked)  # as the sample is
        if summary.interactive_cpu_seconds is None and exact and sample is not None and sample.cpu_seconds:
            summary.interactive_cpu_seconds = sample.cpu_seconds / sample.tokens * summary.tokens
        return summary
