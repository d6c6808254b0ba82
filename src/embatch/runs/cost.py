"""What embedding a dataset will cost, before anything is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.client.base import target_of
from embatch.errors import BatchFailed, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from embatch.runs.part import distinct
from embatch.runs.tokens import FEWEST, MOST
from embatch.runs.tokens import estimate as estimate_tokens
from embatch.states import State

if TYPE_CHECKING:
    from embatch.client.client import Client
    from embatch.runs.prices import Prices
    from embatch.runs.sources import Source

_NO_COUNT: Final = (FailedPrecondition, InvalidArgument, NotFound, PermissionDenied)
"""What a hosted service answers where its embedding model counts no tokens."""
_SHORTEST: Final = 64
"""Fewer texts measure the start more than the machine."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What this machine, or the service asked, does with a batch of texts of this dataset."""

    texts: int
    """That were embedded to measure it."""
    tokens_per_second: float
    cpu_seconds_per_token: float
    alone_cpu_seconds_per_token: float | None
    """One text at a time; `None` where it was not measured."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A dataset in numbers. Where a sample was counted and the length is known, the rest is extrapolated."""

    rows: int
    readable: int
    distinct: int
    """Texts that have to be embedded: equal ones of a block once."""
    tokens: int
    """Of every readable row, as the target's model counts them, or as they are reckoned: see `uncounted`."""
    distinct_tokens: int
    counted: int
    """Rows that were read; fewer than `rows` for an extrapolation."""
    model: str
    open_end: bool
    """Whether the input goes on behind what was counted and does not say how far: the rest is left out."""
    distinct_characters: int
    """Of the texts that have to be embedded."""
    characters: int
    """Of every readable row."""
    uncounted: str
    """Why the tokens are not counted but reckoned, and how far that can be off; empty where they are."""
    provider: str
    """Where the dataset shall go."""
    rate: Rate | None
    """`None` where nothing was measured."""
    unmeasured: str
    """Why nothing was measured; empty where something was, or nothing was asked for."""
    prices: Prices


def estimate(
    client: Client, source: Source, model: str | None, prices: Prices, sample: int | None, measure: int
) -> Estimate:
    """Count a dataset's tokens and measure what embedding them takes.

    Args:
        client: whose model counts, and embeds to measure.
        source: the dataset.
        model: `None` for the target's default.
        prices: for the table.
        sample: rows to count from the beginning; `None` counts all.
        measure: texts to embed as a batch for the rate; fewer than 64 measure nothing.

    Raises:
        InvalidArgument: the dataset holds no text.
    """
    rows = readable = tokens = unlike = unlike_tokens = characters = unlike_characters = 0
    counter, kept = _Counter(client, model), list[str]()
    behind = False
    for block in source.blocks():
        behind = rows == sample
        if behind:
            break
        part = block.texts if sample is None else block.texts[: sample - rows]
        rows += len(part)
        texts, places = distinct(part, range(len(part)))
        again = _repeated(texts, list(places.values()))
        counted, length = counter.count(texts), sum(map(len, texts))
        unlike, unlike_tokens = unlike + len(texts), unlike_tokens + counted
        unlike_characters, characters = unlike_characters + length, characters + length + sum(map(len, again))
        tokens += counted + counter.count(again)
        readable += len(places)
        kept += texts[: max(0, measure - len(kept))]
        behind = len(part) < len(block.texts)
        if behind:
            break
    if not readable:
        raise InvalidArgument("the input holds no text", field="IN")
    provider = target_of(client).provider
    # A source that does not know its length is read to the end, or stands for what was read.
    whole = source.rows if source.rows is not None and sample is not None else rows
    factor = whole / rows
    unmeasured = _unmeasured(client, len(kept), measure)
    measured = _measured(client, kept, model) if measure and not unmeasured else None
    return Estimate(
        whole,
        round(readable * factor),
        round(unlike * factor),
        round(tokens * factor),
        round(unlike_tokens * factor),
        rows,
        model or provider.model or next(client.list_models()).name,
        behind and source.rows is None,
        round(unlike_characters * factor),
        round(characters * factor),
        counter.reason,
        provider.name,
        measured,
        unmeasured,
        prices,
    )


@dataclass(slots=True)
class _Counter:
    """Counts tokens by the target's model, and reckons them once that is refused."""

    client: Client
    model: str | None
    reason: str = ""

    def count(self, texts: list[str]) -> int:
        """Return the tokens of texts, all together."""
        if texts and not self.reason:
            try:
                return self.client.count_tokens(texts, model=self.model)
            except _NO_COUNT as error:
                if target_of(self.client).provider.capabilities.cpu_accounting:  # our own service counts
                    raise
                self.reason = (
                    f"the target does not count them ({error}): they are reckoned from the texts' bytes, and "
                    f"may be {FEWEST:g} to {MOST:g} times as many"
                )
        return estimate_tokens(texts) if texts else 0


def _repeated(texts: list[str], of: list[int]) -> list[str]:
    """Return the text of every row whose text another row before it has."""
    seen: set[int] = set()
    again = []
    for which in of:
        if which in seen:
            again.append(texts[which])
        seen.add(which)
    return again


def _unmeasured(client: Client, texts: int, measure: int) -> str:
    """Return why the rate is not measured; empty where it is, or nobody asked for it."""
    if not measure:
        return ""
    if not target_of(client).provider.capabilities.cpu_accounting:
        return "the target is no service of embatch's"
    if texts < _SHORTEST:
        found = f"there are {texts}" if measure >= _SHORTEST else f"--measure gives {measure}"
        return f"that takes {_SHORTEST} different texts, and {found}"
    return ""


def _measured(client: Client, texts: list[str], model: str | None) -> Rate:
    # The engine is loaded: it has counted. What remains is the work itself.
    batch = client.async_batch_embed_contents(texts, display_name="embatch cost", model=model)
    batch = client.await_batch_completion(batch.name, timeout=math.inf, poll_interval=0.1)
    if batch.state is not State.COMPLETED or batch.create_time is None or batch.end_time is None:
        raise BatchFailed(f"{batch.name} is {batch.state}: {batch.error or 'no reason was given'}")
    client.delete_batch(batch.name)
    tokens = max(1, batch.usage.token_count)
    alone = batch.usage.interactive_cpu_seconds
    seconds = max(1e-9, (batch.end_time - batch.create_time).total_seconds())
    return Rate(
        len(texts),
        tokens / seconds,
        batch.usage.cpu_seconds / tokens,
        None if alone is None else alone / tokens,
    )
