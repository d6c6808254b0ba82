"""What is refused of a run before anything is written, sent or paid."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from embatch.client.base import target_of
from embatch.client.for_runs import ForRuns
from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument, Unavailable
from embatch.runs.deadline import Terms
from embatch.runs.locations import scheme
from embatch.runs.overlap import check_apart
from embatch.runs.sinks import check_sink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embatch.client.client import Client
    from embatch.runs.options import EmbedOptions, RunOptions
    from embatch.runs.prices import Price
    from embatch.runs.sources import Source

_DIMENSIONS: Final = 3072
"""Of vectors whose number of dimensions nobody asked for."""
_BESIDE: Final = 64
"""Bytes of a row beside its vector: id, error, counts."""


def check_run(
    client: Client, source: Source, place: str, embed_options: EmbedOptions, options: RunOptions
) -> Price | None:
    """Refuse what no run can do, before anything is written or sent; return the price of what it would use.

    Raises:
        InvalidArgument: as `embed_dataset`.
    """
    check_sink(place, embed_options.dimensions, embed_options.dtype or Dtype.FLOAT32, source.ids)
    check_apart(source, place)
    return check_terms(client, embed_options, options)


def check_room(place: str, folder: Path, rows: int | None, dimensions: Sequence[int]) -> None:
    """Refuse to begin or go on with what the disk has no room for: the results are paid before they are here.

    Args:
        place: the output.
        folder: the run's ledger; what stands in it already needs no room.
        rows: of the input; `None` asks nothing, as where the same costs no money another time.
        dimensions: of the vectors, as they were asked for; none counts as the largest number.

    Raises:
        Unavailable: there is too little.
    """
    if rows is None:
        return
    vectors = rows * 4 * (sum(dimensions) or _DIMENSIONS)
    native = rows * 4 * max(dimensions, default=_DIMENSIONS)
    need = native + (vectors if scheme(place) == "file" else 0) + rows * _BESIDE
    there = sum(file.stat().st_size for file in folder.glob("part-*")) if folder.is_dir() else 0
    free = shutil.disk_usage(folder.parent).free
    if free < need - there:
        raise Unavailable(
            f"{folder.parent} has {free / 1e9:,.1f} GB free, and the results need about "
            f"{(need - there) / 1e9:,.1f} GB there: make room first. Nothing was sent"
        )


def model_of(client: Client, embed_options: EmbedOptions) -> str:
    """Return the name of the model that a run will use; empty where only the service knows."""
    return ForRuns(client).model_name(embed_options.model) or target_of(client).provider.model or ""


def check_terms(client: Client, embed_options: EmbedOptions, options: RunOptions) -> Price | None:
    """Return the price of what a run will use; `None` where it has none.

    Raises:
        InvalidArgument: a deadline or a cap is wrong, or is asked of what has no price.
    """
    provider = target_of(client).provider.name
    model = model_of(client, embed_options)
    price = options.prices.price(provider, model)
    Terms().moved(options.deadline, options.max_cost, datetime.fromtimestamp(options.clock.now(), UTC))
    if price is None and not (options.deadline is options.max_cost is None):
        flag = "--max-cost" if options.deadline is None else "--deadline"
        own = target_of(client).provider.capabilities.idempotency_keys
        remedy = (
            "an embatch service has none: leave it out"
            if own
            else f"the table has none of {provider}/{model}: leave it out, or name the price in a file, by "
            "--prices FILE"
        )
        raise InvalidArgument(f"{flag} is for what has a price, and {remedy}", field=flag)
    return price
