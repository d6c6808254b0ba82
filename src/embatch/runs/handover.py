"""How a run's blocks become batches: what is alike on every target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from embatch.client.base import target_of
from embatch.client.flows import RequestDefaults
from embatch.errors import EmbatchError
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.runs.intents import Fate
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.sources import Rows

STOPPED: Final = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})
"""Ends of an earlier call's batch after which another one is made."""


@dataclass(slots=True)
class Handover(ABC):
    """Hands the blocks of one run over."""

    client: Client
    ledger: Ledger
    embed_options: EmbedOptions
    display_name: str
    handed: dict[str, None] = field(default_factory=dict, kw_only=True)
    """Names of the batches that were handed over and not dropped yet, in their order."""

    @abstractmethod
    def batch(self, number: int, rows: Rows, texts: Sequence[str]) -> Batch | Fate:
        """Submit the texts of a block as a batch, or return the batch that an earlier call made of them.

        Where nobody can say whether there is one, its fate is returned: UNKNOWN, and `look` tells when to ask
        again; or QUARANTINED.
        """

    @abstractmethod
    def drop(self, batch: Batch) -> None:
        """Have the provider forget a batch whose rows are in the ledger. Repeating is safe."""

    @abstractmethod
    def drop_last(self) -> None:
        """Drop the batch whose rows were committed just before an earlier call was stopped."""

    def over(self, number: int, batch: Batch) -> None:  # noqa: B027  (a service's key tells it)
        """Take note that a batch ended without rows: another one may be made of its block."""

    @property
    def due(self) -> float:
        """When to `look` next, by the run's monotonic clock; infinite if nothing is in doubt."""
        return math.inf

    def look(self) -> list[int]:
        """Look for what is in doubt; return the blocks of which `batch` may be asked again."""
        return []

    def doubt(self) -> Batch | None:
        """Return a batch of unknown fate as far as it is known, for people; `None` if there is none."""
        return None

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

    def defaults(self) -> RequestDefaults:
        """Return how the texts shall be embedded."""
        native = target_of(self.client).provider.capabilities.native_results
        return RequestDefaults(
            self.embed_options.model,
            self.embed_options.task_type,
            None if native else max(self.embed_options.dimensions, default=None),
        )


def rows_shown(rows: Rows) -> str:
    """Return the numbers of a block's rows, for people."""
    return f"rows {rows.first}-{rows.first + len(rows.texts) - 1}"
