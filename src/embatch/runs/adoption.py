"""How a block becomes a batch by its idempotency key, or finds the one that an earlier call made of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.batch import DISPLAY_NAME
from embatch.client.flows import BatchOptions
from embatch.client.for_runs import ForRuns
from embatch.errors import AlreadyExists, FailedPrecondition, NotFound
from embatch.runs.handover import STOPPED, Handover, rows_shown
from embatch.runs.identity import batch_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Batch
    from embatch.runs.sources import Rows


@dataclass(slots=True)
class Adoption(Handover):
    """Where a submit has an idempotency key: the same one gives the same batch."""

    run: str | None
    """The run's name in the service's cache; `None` leaves the cache out."""

    def batch(self, number: int, rows: Rows, texts: Sequence[str]) -> Batch:
        """Submit the texts of a block as a batch, or return the batch that an earlier call made of them.

        Raises:
            FailedPrecondition: they were handed over before in another way.
        """
        priority, said = self.embed_options.priority, rows_shown(rows)
        key = batch_key(self.ledger, number, priority, texts, cache=self.run is not None)
        options = BatchOptions(f"{self.display_name} {said}"[-DISPLAY_NAME:], priority, key, self.run)
        while True:
            try:
                batch = ForRuns(self.client).submit(texts, self.defaults(), options)
            except AlreadyExists:
                raise FailedPrecondition(
                    f"{said} were handed over before as another batch, by another name, for another model or "
                    "by another version: go on as then, delete that batch, or begin anew with --restart",
                    field="--out",
                ) from None
            if batch.state not in STOPPED:
                self.handed[batch.name] = None
                return batch
            # The earlier call's batch was stopped: drop it, so that the key makes a new one.
            self.client.delete_batch(batch.name)

    def drop(self, batch: Batch) -> None:
        """Have the service forget a batch whose rows are in the ledger."""
        self.client.delete_batch(batch.name)
        self.handed.pop(batch.name, None)

    def drop_last(self) -> None:
        """Drop the batch whose rows were committed just before an earlier call was stopped."""
        last = self.ledger.last
        if last is not None and last.batch:
            with suppress(NotFound):
                self.client.delete_batch(last.batch)
