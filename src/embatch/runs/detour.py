"""How a block leaves its batch, and its texts are embedded at once: the money is counted before each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.client.base import target_of
from embatch.runs.at_once import AtOnce
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.handover import Handover
    from embatch.runs.in_flight import InFlight
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.pacing import Pacing


@dataclass(frozen=True, slots=True)
class Detour:
    """The other way of one run."""

    client: Client
    embed_options: EmbedOptions
    ledger: Ledger
    pacing: Pacing
    handover: Handover

    def go(self, block: InFlight, show: Callable[[Batch], object]) -> tuple[Batch, BatchResult | None]:
        """Give a block's batch up and embed its texts at once.

        Killed anywhere, the next call knows of the money, and of the batch that was given up. What had been
        embedded at once by then is embedded, and paid, again.

        Returns a batch without a name and its result; or the block's own batch, and no result, where that was
        done at this very moment.

        Args:
            block: what has to go.
            show: hears how far it is.

        Raises:
            FailedPrecondition: the cap has no room for it.
        """
        batch, clock = block.batch, self.pacing.clock
        self.pacing.move(block, batch)
        if batch is not None:
            batch = self.client.cancel_batch(batch.name)
            if batch.state is State.COMPLETED:
                self.pacing.came_back(block)
                return batch, None
            self.pacing.given_up(block, batch)
            self.handover.over(block.number, batch)
        can = target_of(self.client).provider.capabilities
        at_once = AtOnce(self.client, self.embed_options, can, clock)
        began, texts = clock.monotonic(), block.sent(self.ledger).texts
        nameless, result = at_once.embed(texts, self.pacing.tokens(block), show)
        self.pacing.moved(block, result, clock.monotonic() - began)
        return nameless, result
