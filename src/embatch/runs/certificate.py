"""What a finished batch makes of its block: counts, the sample of the certificate, and the model it was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from embatch.client.for_runs import ForRuns
from embatch.errors import ConnectionFailed, EmbatchError, FailedPrecondition, Unavailable
from embatch.runs import parity
from embatch.runs.ledger_lines import Block
from embatch.runs.progress import total

if TYPE_CHECKING:
    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.part import Part
    from embatch.runs.sources import Rows


@dataclass(slots=True)
class Sent:
    """A block that was handed over."""

    number: int
    rows: Rows
    part: Part
    batch: Batch | None
    """`None` where no row of the block can be read."""
    places: dict[int, int]
    """Row of the block to the request that has its text."""
    texts: list[str]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Judges the batches of one run."""

    client: Client
    ledger: Ledger
    embed_options: EmbedOptions
    threshold: float

    def prepare(self) -> None:
        """Let the reference path get ready while batches run: it may need an engine of its own."""
        with suppress(EmbatchError):  # what it is comes again when texts are compared
            ForRuns(self.client).embed_reference([], model=self.embed_options.model)

    def native(self) -> int:
        """Ask the service, and return its model's dimensions where the run wants some of them; 0: not known.

        Returns once the engine is loaded, for only then is it known; one that does not come up says so to
        the batch that waits for it.

        Raises:
            ConnectionFailed: the service cannot be reached.
        """
        if self.embed_options.dimensions:
            try:
                said = ForRuns(self.client).embed_reference([], model=self.embed_options.model)
            except ConnectionFailed:
                raise
            except Unavailable:
                return 0
            if said is not None:
                return said.dimensions or 0
        next(self.client.list_batches(page_size=1), None)
        return 0

    def block(self, sent: Sent, batch: Batch | None, result: BatchResult | None) -> Block:
        """Return the block that a batch made, compared to the reference path; not committed yet.

        `None` for batch and result: no row of the block can be read.

        Raises:
            FailedPrecondition: the model is not the one the run began with.
        """
        part, earlier = sent.part, self.ledger.blocks.get(sent.number)
        failed = part.failed
        block = Block(
            number=sent.number,
            first=sent.rows.first,
            rows=len(part.errors),
            failed=int(failed.sum()),
            retryable=int((failed & part.readable).sum()),
            duplicates=len(sent.places) - len(sent.texts),
            cached=0,
            tokens=0,
            truncated=int((part.truncated & ~failed).sum()),
            cpu_seconds=0.0,
            native=part.vectors.shape[1],
            model="",
        )
        if batch is not None and result is not None:
            sample, engine = self._sample(sent, result)
            block = replace(
                block,
                cached=batch.usage.cached_request_count,
                tokens=int(result.tokens.sum()),
                cpu_seconds=batch.usage.cpu_seconds,
                interactive_cpu_seconds=batch.usage.interactive_cpu_seconds,
                model=batch.worked_by,
                batch=batch.name,
                notes=batch.notes,
                sample=sample,
                engine=engine,
            )
        self._check_model(block)
        if earlier is None:
            return block
        return replace(
            block,
            duplicates=earlier.duplicates,
            cached=earlier.cached + block.cached,
            tokens=earlier.tokens + block.tokens,
            cpu_seconds=earlier.cpu_seconds + block.cpu_seconds,
            interactive_cpu_seconds=total([earlier.interactive_cpu_seconds, block.interactive_cpu_seconds]),
            native=block.native or earlier.native,
            model=block.model or earlier.model,
            engine=block.engine or earlier.engine,
            sample=parity.together([earlier.sample, block.sample]),
        )

    def _sample(self, sent: Sent, result: BatchResult) -> tuple[parity.Sample | None, dict[str, object]]:
        """Embed some texts of a batch again by the reference path and compare."""
        found = result.to_numpy(failed="nan")
        good = np.flatnonzero(result.widths > 0)
        chosen = [int(good[at]) for at in parity.choose(len(good), sent.number)]
        if not chosen:
            return None, {}
        said = ForRuns(self.client).embed_reference(
            [sent.texts[at] for at in chosen],
            model=self.embed_options.model,
            task_type=self.embed_options.task_type,
        )
        if said is None:
            return None, {}
        pairs = [(at, one.values) for at, one in zip(chosen, said.embeddings, strict=True) if one is not None]
        if not pairs:
            return None, said.engine
        mine, reference = found[[at for at, _ in pairs]], np.stack([values for _, values in pairs])
        return parity.compare(mine, reference, said.tokens, said.cpu_seconds), said.engine

    def sound(self, block: Block) -> bool:
        """Return whether the certificate finds nothing wrong with a block."""
        return block.sample is None or block.sample.sound(self.threshold)

    def _check_model(self, block: Block) -> None:
        """Refuse to mix vectors of two models, or of one whose files changed meanwhile."""
        mine = (block.engine.get("identity"), block.native)
        others = self.ledger.model
        if any(own and other and own != other for own, other in zip(mine, others, strict=True)):
            raise FailedPrecondition(
                "the model is not the one the run began with (weights or numerics): --restart begins anew",
                field="--out",
            )
