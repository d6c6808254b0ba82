"""How a block becomes a batch, or finds the one that an earlier call of the run made of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embatch.batch import DISPLAY_NAME
from embatch.client.base import target_of
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns
from embatch.errors import AlreadyExists, EmbatchError, FailedPrecondition
from embatch.runs.identity import batch_key
from embatch.states import State

if TYPE_CHECKING:
    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.sources import Rows


@dataclass(frozen=True, slots=True)
class Adoption:
    """Hands the blocks of one run over."""

    client: Client
    ledger: Ledger
    embed_options: EmbedOptions
    display_name: str
    run: str | None
    """The run's name in the service's cache; `None` leaves the cache out."""
    handed: dict[str, None] = field(default_factory=dict)
    """Names of the batches that were handed over and not dropped yet, in their order."""

    def batch(self, number: int, rows: Rows, texts: list[str]) -> Batch:
        """Submit the texts of a block as a batch, or return the batch that an earlier call made of them.

        Raises:
            FailedPrecondition: they were handed over before in another way.
        """
        embed_options = self.embed_options
        native = target_of(self.client).provider.capabilities.native_results
        said = f"rows {rows.first}-{rows.first + len(rows.texts) - 1}"
        while True:
            try:
                batch = ForRuns(self.client).submit(
                    texts,
                    RequestDefaults(
                        embed_options.model,
                        embed_options.task_type,
                        None if native else max(embed_options.dimensions, default=None),
                    ),
                    BatchOptions(
                        f"{self.display_name} {said}"[-DISPLAY_NAME:],
                        embed_options.priority,
                        batch_key(
                            self.ledger, number, embed_options.priority, texts, cache=self.run is not None
                        ),
                        self.run,
                    ),
                )
            except AlreadyExists:
                raise FailedPrecondition(
                    f"{said} were handed over before as another batch, by another name, for another model or "
                    "by another version: go on as then, delete that batch, or begin anew with --restart",
                    field="--out",
                ) from None
            if batch.state not in (State.FAILED, State.CANCELLED, State.EXPIRED):
                self.handed[batch.name] = None
                return batch
            # The earlier call's batch was stopped: drop it, so that the key makes a new one.
            self.client.delete_batch(batch.name)

    def drop(self, batch: Batch) -> None:
        """Have the service forget a batch whose rows are in the ledger."""
        self.client.delete_batch(batch.name)
        self.handed.pop(batch.name, None)

    def cancel(self) -> str:
        """Cancel what is handed over; return in words what came of it."""
        cancelled = 0
        for name in self.handed:
            with suppress(EmbatchError):
                self.client.cancel_batch(name)
                cancelled += 1
        failed = len(self.handed) - cancelled
        said = f"{cancelled} {'batch' if cancelled == 1 else 'batches'} in work cancelled"
        return f"{said}, {failed} not: see `embatch list`" if failed else said
