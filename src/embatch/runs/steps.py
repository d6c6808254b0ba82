"""The points of a run that it announces as it comes to them: whatever stops it there costs nothing twice.

Between any two of them something became durable, here or with the provider. A test ends the process at each.
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """Where a run is, in the order of a block's way."""

    HANDING_OVER = "a block is about to be uploaded"
    UPLOADED = "its input is with the provider, and no intent is written down"
    INTENDED = "its intent is durable, and no create went out"
    CREATED = "the create was answered, and the ledger does not know it"
    KNOWN = "the ledger knows the batch"
    LISTED = "the batches were listed for one of unknown fate, and the ledger does not know what was found"
    SETTLED = "the ledger knows what became of it"
    POLLED = "the batch was looked at"
    ENDED = "the batch has ended, and nothing of it was read"
    FETCHED = "its results are here, in memory"
    STORED = "the block's rows are durable, and the ledger does not say so"
    COMMITTED = "the block is in the ledger"
    INPUT_DROPPED = "the provider has forgotten the input, and has the batch"
    BATCH_DROPPED = "the provider has forgotten the batch too"
    PLACED = "the output is in place, and the ledger does not say so"
    FINISHED = "the ledger says that the run is done"


def pass_by(step: Step) -> None:
    """Hear of a step, and do nothing."""
