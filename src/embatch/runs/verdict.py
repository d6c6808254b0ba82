"""Who judges the blocks of a run before they count, by what the target can be compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from embatch.client.base import target_of
from embatch.runs.alignment.block_verdict import BlockVerdict
from embatch.runs.certificate import Certificate

if TYPE_CHECKING:
    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.certificate import Sent
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.options import EmbedOptions, RunOptions


class Verdict(Protocol):
    """Judges the batches of one run, each block before it is committed."""

    def prepare(self) -> None:
        """Get ready while batches run. Never raises."""
        ...

    def native(self) -> int:
        """Return the model's dimensions where the run wants some of them; 0: not known. See `Certificate`."""
        ...

    def block(self, sent: Sent, batch: Batch | None, result: BatchResult | None) -> Block:
        """Return the block that a batch made, with what was found of it; not committed yet.

        `None` for batch and result: no row of the block can be read.

        Raises:
            FailedPrecondition: the model is not the one the run began with.
        """
        ...

    def sound(self, block: Block) -> bool:
        """Return whether nothing wrong was found with a block."""
        ...


def verdict_of(
    client: Client, ledger: Ledger, embed_options: EmbedOptions, options: RunOptions, rows: int | None
) -> Verdict:
    """Return what judges a run of so many rows on this client's target; `None`: nobody knows how many."""
    certificate = Certificate(client, ledger, embed_options, options.threshold)
    if target_of(client).provider.capabilities.reference_path:
        return certificate
    return BlockVerdict(certificate, client, ledger, embed_options, options, rows)
