"""Who hands the blocks of a run over, by what a submit can be known by on its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embatch.client.base import target_of
from embatch.runs.adoption import Adoption
from embatch.runs.pay_once import PayOnce

if TYPE_CHECKING:
    from embatch.client.client import Client
    from embatch.runs.handover import Handover
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions, RunOptions


def handover_of(  # noqa: PLR0913, PLR0917  (the parts of a run, as its beginning has them)
    client: Client,
    ledger: Ledger,
    embed_options: EmbedOptions,
    options: RunOptions,
    display_name: str,
    run: str | None,
    notes: list[str],
) -> Handover:
    """Return what hands over on this client's target.

    Args:
        client: the target's.
        ledger: of the run.
        embed_options: what is done with every row.
        options: how.
        display_name: what the batches are called by.
        run: the run's name in the service's cache; `None` leaves the cache out.
        notes: takes what people should know in the end.
    """
    if target_of(client).provider.capabilities.idempotency_keys:
        return Adoption(client, ledger, embed_options, display_name, run)
    return PayOnce(client, ledger, embed_options, display_name, options.clock, options.reached, notes=notes)
