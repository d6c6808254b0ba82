"""Judges the blocks of a run on a hosted service, where no reference path says what a vector should be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from embatch.client.base import target_of
from embatch.errors import EmbatchError, FailedPrecondition, Unavailable
from embatch.runs.alignment import record
from embatch.runs.alignment.check import Check
from embatch.runs.alignment.earlier import EarlierFile, about
from embatch.runs.alignment.features import Features
from embatch.runs.alignment.sampling import Verify
from embatch.runs.part import distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.certificate import Certificate, Sent
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.options import EmbedOptions, RunOptions


@dataclass
class BlockVerdict:
    """The judge of one run: counts as the certificate does, and checks that vectors belong to their texts."""

    certificate: Certificate
    client: Client
    ledger: Ledger
    embed_options: EmbedOptions
    options: RunOptions
    rows: int | None
    """Of the run's input; `None`: not known."""

    def prepare(self) -> None:
        """As `Verdict.prepare`: the features are loaded while batches run."""
        if self.options.budget.verify is Verify.FULL:
            _ = self._features

    @cached_property
    def _features(self) -> Features:
        return Features.installed()

    def native(self) -> int:
        """As `Verdict.native`."""
        return self.certificate.native()

    def sound(self, block: Block) -> bool:
        """As `Verdict.sound`. A block that `--retry-failed` is about to work again is in nobody's way."""
        taken_up = self.options.retry_failed and self.ledger.blocks.get(block.number) is block
        return taken_up or not record.damaged(block.alignment)

    def block(self, sent: Sent, batch: Batch | None, result: BatchResult | None) -> Block:
        """As `Verdict.block`. Rows whose vectors are of other texts, or may be, fail and can be retried.

        Raises:
            FailedPrecondition: the model is not the one the run began with, or the service refuses to embed a
                few texts again.
            Unavailable: it does not do so now; the same command goes on.
        """
        found = None if batch is None else self._checked(sent, batch)
        block = self.certificate.block(sent, batch, result)
        if found is None:
            earlier = self.ledger.blocks.get(sent.number)
            return block if earlier is None else replace(block, alignment=earlier.alignment)
        return replace(block, alignment=found)

    def _checked(self, sent: Sent, batch: Batch) -> dict[str, Any] | None:
        """Check all rows of a block that have a vector, those of earlier tries too; return the record."""
        part = sent.part
        good = np.flatnonzero(~part.failed)
        texts, places = distinct(sent.rows.texts, good.tolist())
        if not texts:
            return None
        first = np.full(len(texts), -1, np.intp)
        for row, at in places.items():
            first[at] = row if first[at] < 0 else first[at]
        everything = len(first) == len(part.errors)
        vectors = part.vectors if everything else part.vectors[first]
        checked = self._check(batch, vectors.shape[1]).block(
            texts, vectors, self._budget(sent, len(texts)), sent.number
        )
        for row, at in places.items():
            if (fault := checked.faults.get(at)) is not None:
                part.errors[row] = fault
        tokens = sum(int(part.tokens[first[one.row]]) for one in checked.comparison.compared)
        return record.of_block(checked, (first + sent.rows.first).tolist(), tokens)

    def _budget(self, sent: Sent, rows: int) -> int:
        """Return how many texts of a block may be embedded again, not counting its earlier tries."""
        others = [block for block in self.ledger.blocks.values() if block.number != sent.number]
        return self.options.budget.of_block(
            rows,
            sum(block.rows for block in others),
            sum(record.calls(block.alignment) for block in others),
            self.rows,
        )

    def _check(self, batch: Batch, dimensions: int) -> Check:
        task = self.embed_options.task_type
        features = self._features if self.options.budget.verify is Verify.FULL else Features(None)
        kept = about(
            target_of(self.client).provider.name,
            batch.worked_by,
            task and task.value,
            dimensions,
            features.name,
        )
        data = self.options.data.expanduser().absolute()
        return Check(
            self.options.budget.verify, features, EarlierFile(data, kept), self._embedded, self.ledger.folder
        )

    def _embedded(self, texts: list[str]) -> list[NDArray[np.float32] | None]:
        """Embed a few texts at once, as the batch was asked to."""
        try:
            found = self.client.batch_embed_contents(
                texts,
                model=self.embed_options.model,
                task_type=self.embed_options.task_type,
                output_dimensionality=max(self.embed_options.dimensions, default=None),
            )
        except EmbatchError as error:
            said = f"what came is not checked: {len(texts)} texts could not be embedded again: {error}"
            if error.retryable:
                raise Unavailable(f"{said}. The same command goes on, with --verify none unchecked") from None
            raise FailedPrecondition(
                f"{said}. With --verify none the same command goes on unchecked", field="--verify"
            ) from None
        return [one.values for one in found]
