"""What embedding a dataset will cost, as a table: here, and at hosted services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.cli.display import say, seconds_words, show_table
from embatch.runs.prices import BREAK_EVEN, SHOWN_MODEL, WORTH

if TYPE_CHECKING:
    from embatch.runs.cost import Estimate
    from embatch.runs.prices import Price

_HOSTED: Final = {"gemini": "Gemini", "vertex": "Vertex"}


def _elsewhere(found: Estimate) -> list[tuple[str, Price]]:
    """Return whose prices are shown, and those: the hosted service that was asked, else each of them."""
    asked = found.prices.price(found.provider, found.model)
    if found.provider in _HOSTED:
        return (
            [] if asked is None else [(f"{_HOSTED[found.provider]} {found.model.rpartition('/')[2]}", asked)]
        )
    both = [(name, found.prices.price(provider, SHOWN_MODEL)) for provider, name in _HOSTED.items()]
    return [(name, price) for name, price in both if price is not None]


def cost_table(found: Estimate) -> None:
    """Print what embedding a dataset will cost, to standard output."""
    share = "" if found.counted == found.rows else f" (extrapolated from {found.counted:,})"
    if found.open_end:
        share = " (the first ones alone: the input goes on and does not say how far)"
    say(
        f"{found.rows:,} rows{share}, {found.readable:,} texts, {found.distinct:,} different; "
        f"{found.tokens:,} tokens of {found.model}, {found.distinct_tokens:,} of different texts"
    )
    rows: list[tuple[str, str, str]] = []
    if found.rate is not None:
        rate = found.rate
        hours = rate.cpu_seconds_per_token * found.distinct_tokens / 3600
        measured = f"{rate.tokens_per_second:,.0f} tokens/s measured on {rate.texts} texts"
        seconds = seconds_words(found.distinct_tokens / rate.tokens_per_second)
        rows.append((f"here, as a batch ({measured})", seconds, f"{hours * found.prices.cpu_hour:,.4f}"))
        if rate.alone_cpu_seconds_per_token is not None:
            hours = rate.alone_cpu_seconds_per_token * found.tokens / 3600
            rows.append(("here, one text at a time", "", f"{hours * found.prices.cpu_hour:,.4f}"))
    elsewhere = _elsewhere(found)
    for where, price in elsewhere:
        batch, _ = price.of(found.distinct_tokens, found.distinct_characters)
        _, alone = price.of(found.tokens, found.characters)
        rows.append((f"{where}, batch", "within 24 h", f"{batch:,.4f}"))
        rows.append((f"{where}, interactive", "", f"{alone:,.4f}"))
    show_table(("where", "time>", "price in US$>"), rows)
    if found.uncounted:
        say(f"tokens: {found.uncounted}")
    if not elsewhere:
        say(
            f"the prices of {found.prices.date} do not have {found.provider}/{found.model}: name them in a "
            "file, by --prices FILE"
        )
    if found.unmeasured:
        say(f"work here was not measured: {found.unmeasured}")
    own = f"hosted models count tokens of their own, these are {found.model}'s; "
    own = "" if found.provider in _HOSTED else own
    say(f"prices of {found.prices.date}; {own}CPU time at {found.prices.cpu_hour} an hour")
    low, high = BREAK_EVEN
    advice = "either" if found.readable >= low else "asking interactively"
    advice = "a batch" if found.readable >= WORTH else advice
    say(
        f"break-even by the guide: a batch is worth its setup from {low}-{high} texts, and in any case above "
        f"{WORTH}: with {found.readable:,}, {advice}"
    )
