"""A block embedded at once, at full price: the other way to the vectors that its batch would have given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.backoff import meanwhile
from embatch.batch import Batch, BatchStats
from embatch.client.results import ResultBuilder
from embatch.errors import Code, EmbatchError, InvalidArgument, Reason, RequestError
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.client.client import Client
    from embatch.client.providers.provider import Capabilities
    from embatch.client.results import BatchResult
    from embatch.runs.clock import Clock
    from embatch.runs.options import EmbedOptions
    from embatch.vectors import ContentEmbedding

SLICE: Final = 1_000
"""Texts of one try: what is lost, and paid again, where the service cannot be reached meanwhile."""


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Embeds the texts of blocks without a batch."""

    client: Client
    options: EmbedOptions
    model: str
    """As its batches would be said to be worked by."""
    can: Capabilities
    clock: Clock

    def embed(
        self, texts: list[str], tokens: int, told: Callable[[Batch], object]
    ) -> tuple[Batch, BatchResult]:
        """Return what a batch of these texts would have been, nameless, and its result, in order.

        A text that is refused fails alone. Troubles that pass are waited out, however long: somebody who set
        a deadline waits for these texts.

        Args:
            texts: of the block.
            tokens: all together; the replies do not say how many each has.
            told: hears how far it is.
        """
        found: list[ContentEmbedding | RequestError] = []
        for begin in range(0, len(texts), SLICE):
            found += self._slice(texts[begin : begin + SLICE])
            told(self._batch(State.PROCESSING, len(texts), found))
        vectors = [one.values for one in found if not isinstance(one, RequestError)]
        columns = ResultBuilder(len(found), max(map(len, vectors), default=0))
        share = np.array([len(text) for text in texts], np.float64)
        columns.tokens[:] = np.round(share / max(1.0, share.sum()) * tokens)
        for at, one in enumerate(found):
            if isinstance(one, RequestError):
                columns.errors[at], columns.tokens[at] = one, 0
            else:
                columns.widths[at] = len(one.values)
                columns.matrix[at, : len(one.values)] = one.values
        batch = self._batch(State.COMPLETED, len(texts), found)
        return batch, columns.result(batch)

    def _batch(self, state: State, count: int, found: list[ContentEmbedding | RequestError]) -> Batch:
        failed = sum(isinstance(one, RequestError) for one in found)
        stats = BatchStats(count, len(found) - failed, failed, count - len(found))
        return Batch("", self.model, state, None, 0, None, None, None, stats)

    def _slice(self, texts: list[str]) -> list[ContentEmbedding | RequestError]:
        failures = 0
        native = self.can.native_results  # as the batches of the run ask for it
        dimensions = None if native else max(self.options.dimensions, default=None)
        while True:
            try:
                return list(
                    self.client.batch_embed_contents(
                        texts,
                        model=self.options.model,
                        task_type=self.options.task_type,
                        output_dimensionality=dimensions,
                    )
                )
            except InvalidArgument as error:
                if len(texts) == 1:
                    reason = Reason(error.reason) if error.reason in Reason.__members__ else None
                    return [RequestError(Code.INVALID_ARGUMENT, reason, error.message)]
                half = len(texts) // 2
                return self._slice(texts[:half]) + self._slice(texts[half:])
            except EmbatchError as error:
                if not error.retryable:
                    raise
                failures += 1
                self.clock.sleep(meanwhile(error.retry_after or float("inf"), failures))
