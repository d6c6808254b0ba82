"""A block between being read and being in the ledger: what of it is with the provider, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.runs.certificate import Sent
from embatch.runs.part import Part, distinct
from embatch.runs.progress import finished
from embatch.runs.sources.cutting import text_bytes

if TYPE_CHECKING:
    from embatch.batch import Batch
    from embatch.runs.ledger import Ledger
    from embatch.runs.sources import Rows

TOKEN_BYTES: Final = 3
"""Bytes of text that are one token, reckoned low: English has four and more, Chinese about three."""


@dataclass(slots=True)
class InFlight:
    """One block."""

    sent: Sent
    failed: int
    """Rows with an error that are not sent."""
    tokens: int
    """Estimated, of the texts that are sent."""
    earlier: tuple[int, int] = (0, 0)
    """Rows and tokens of the batch that were finished when this call found it."""
    polled: Batch | None = None
    """The batch as it was when it was asked for last; `None`: not yet."""
    polls: int = 0
    due: float = 0.0
    """When it is asked for next, by the run's monotonic clock."""

    @classmethod
    def of(cls, number: int, rows: Rows, ledger: Ledger) -> InFlight:
        """Return a block that was read: what of it is sent, and what stays as an earlier try left it."""
        earlier = ledger.blocks.get(number)
        part = Part.of(rows) if earlier is None else Part.read(ledger.rows(earlier))
        wanted = np.flatnonzero(part.readable & (part.failed | (earlier is None))).tolist()
        texts, places = distinct(rows.texts, wanted)
        tokens = sum(1 + text_bytes(text) // TOKEN_BYTES for text in texts)
        return cls(Sent(number, rows, part, None, places, texts), len(part.to_mend), tokens)

    def finished(self, requests: int) -> int:
        """Return the rows that are finished once so many requests are: so is each that was not sent."""
        sent, texts = len(self.sent.places), len(self.sent.texts)
        return len(self.sent.rows.texts) - sent + (sent * requests // texts if texts else 0)

    def found(self, batch: Batch) -> None:
        """Take note that the batch is an earlier call's, and how far it is."""
        requests, tokens = finished(batch)
        self.earlier = (self.finished(requests), tokens)
