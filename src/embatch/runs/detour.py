"""How a block leaves its batch, and its texts are embedded at once: the money is counted before each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.client.base import target_of
from embatch.errors import Code
from embatch.runs.at_once import AtOnce
from embatch.runs.checking import model_of
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

    def go(self, block: InFlight, show: Callable[[Batch], object]) -> tuple[Batch, BatchResult]:
        """Give a block's batch up, embed at once what it has not done, and return the result of both.

        Killed anywhere, the next call knows of the money, and of the batch that was given up. What had been
        embedded at once by then is embedded, and paid, again. The batch that is returned has no name, unless
        the block's own one was done at this very moment.

        Args:
            block: what has to go.
            show: hears how far it is.

        Raises:
            FailedPrecondition: the cap has no room for it.
        """
        pacing, texts = self.pacing, block.sent(self.ledger).texts
        pacing.move(block, block.batch)
        whole, left = self._given_up(block), list(range(len(texts)))
        if whole is not None:
            left = [index for index, _ in whole.failed_responses]
            if not any(error.code is Code.CANCELLED for _, error in whole.failed_responses):
                pacing.came_back(block)
                pacing.ended(block, whole.batch, whole)
                return whole.batch, whole
        if block.batch is not None:
            pacing.given_up(block, whole.batch if whole is not None else block.batch)
            self.handover.over(block.number, block.batch)
        can = target_of(self.client).provider.capabilities
        model = f"models/{model_of(self.client, self.embed_options)}"
        model = model if block.batch is None else block.batch.worked_by
        at_once = AtOnce(self.client, self.embed_options, model, can, pacing.clock)
        began, tokens = pacing.clock.monotonic(), pacing.tokens(block) * len(left) // max(1, len(texts))
        nameless, result = at_once.embed([texts[index] for index in left], tokens, show)
        pacing.moved(block, result, pacing.clock.monotonic() - began)
        return nameless, result if whole is None else whole.fill(result)

    def _given_up(self, block: InFlight) -> BatchResult | None:
        """Cancel a block's batch; return what it had done, if that can be read."""
        if block.batch is None:
            return None
        block.batch = self.client.cancel_batch(block.batch.name)
        if block.batch.state is not State.COMPLETED:
            return None
        # One that is cancelled while it runs may end COMPLETED, with errors for what it had not reached.
        return self.client.get_batch_embeddings(block.batch, partial=True)
