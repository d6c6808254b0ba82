"""The command `runs`: which there are, what of them is in flight or in doubt, and how people settle that."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from embatch.cli.app import DONE, Data, app, check_range, client, data_folder
from embatch.cli.display import json_line, report, say, show_table

if TYPE_CHECKING:
    from embatch.runs.intents import Intent
    from embatch.runs.ledger import Ledger
    from embatch.runs.overview import LedgerView, RunOverview

Output = Annotated[str, Parameter(name="OUT", help="The output, as `embatch embed --out` has it.")]
Json = Annotated[bool, Parameter(help="One JSON object a line.", negative="")]

runs = App(name="runs", help="List runs; settle by hand what may have been paid and nobody knows of.")
app.command(runs)


@runs.default
def show(
    out: Annotated[
        str | None, Parameter(name="OUT", help="An output: its run, and its open batches.")
    ] = None,
    *,
    data: Data = None,
    limit: Annotated[int, Parameter(help="Most runs to show.")] = 50,
    json: Json = False,
) -> int:
    """List the runs of this data folder, the last one first: what is in flight, in doubt, and what it cost.

    In flight are batches whose rows are not here yet; unknown those that may be there or not, which the run
    looks for; quarantined those that it leaves to you.
    """
    check_range("--limit", limit, 1)
    from embatch.runs.overview import listed, of_output  # noqa: PLC0415  (start-up time of --help)

    folder = data or data_folder()
    if out is None:
        found = listed(folder)[:limit]
        if json:
            for one in found:
                say(json_line(asdict(one)))
        else:
            _table(found)
        return DONE
    run, ledger = of_output(out, folder)
    if json:
        from embatch.runs.intents import as_json  # noqa: PLC0415

        intents = [] if ledger is None else map(as_json, ledger.intents)
        say(json_line({**asdict(run), "intents": [*intents]}))
        return DONE
    _table([run])
    if ledger is not None:
        _open_batches(ledger, out)
    return DONE


@runs.command
def adopt(
    out: Output,
    name: Annotated[str, Parameter(name="NAME", help="`batches/{id}`, as `embatch list --to` shows it.")],
    *,
    block: Annotated[
        int | None, Parameter(help="Number of the rows' block, for a batch that bears no mark of the run.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> int:
    """Say that a batch is the one that a run lost: the same command as before reads it and goes on.

    It is looked up at the provider first; what bears another run's mark, or has another number of requests,
    is refused. Nothing is created or paid.
    """
    from embatch.runs.ledger import folder_of  # noqa: PLC0415
    from embatch.runs.settling import check_target, take_up, to_adopt  # noqa: PLC0415

    with closing(take_up(folder_of(out, data or data_folder()), out)) as ledger:
        with client(str(ledger.about.get("target")), data) as service:
            check_target(service, ledger)
            batch = service.get_batch_status(name)
        intent = to_adopt(ledger, batch, block)
        ledger.created(intent.fingerprint, time.time(), batch)
        settled = ledger.intents.find(intent.fingerprint)
    if json:
        say(json_line(_settled(settled, ledger)))
        return DONE
    say(f"{intent.shown}: {batch.name} ({batch.state.value}) is their batch")
    report(
        f"nothing more is paid for it: {_price(intent.tokens, ledger)} once; the same `embatch embed` goes on"
    )
    return DONE


@runs.command
def abandon(
    out: Output,
    name: Annotated[
        str | None, Parameter(name="NAME", help="The batch, or the mark; all that is quarantined by default.")
    ] = None,
    *,
    unknown: Annotated[
        bool, Parameter(help="Without NAME: also those of unknown fate.", negative="")
    ] = False,
    in_flight: Annotated[
        bool, Parameter(help="Without NAME: also those that are there.", negative="")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> int:
    """Give up batches that a run may have paid for: the same command as before embeds their rows anew.

    That is paid again. What is with the provider goes on there and is paid too, unless it is cancelled.
    """
    from embatch.runs.intents import Fate  # noqa: PLC0415
    from embatch.runs.ledger import folder_of  # noqa: PLC0415
    from embatch.runs.settling import take_up, to_abandon  # noqa: PLC0415

    fates = (
        {Fate.QUARANTINED} | ({Fate.UNKNOWN} if unknown else set()) | ({Fate.CREATED} if in_flight else set())
    )
    with closing(take_up(folder_of(out, data or data_folder()), out)) as ledger:
        chosen = to_abandon(ledger, name, frozenset(fates))
        for intent in chosen:
            ledger.quarantine(intent.fingerprint, time.time(), "given up by hand", abandoned=True)
            settled = ledger.intents.find(intent.fingerprint)
            if json:
                say(json_line(_settled(settled, ledger)))
                continue
            say(f"{intent.shown}: given up{f', with {intent.batch}' if intent.batch else ''}")
            if intent.batch:
                target = ledger.about.get("target")
                report(f"it goes on and is paid too, unless: embatch cancel {intent.batch} --to {target}")
    tokens = sum(intent.tokens for intent in chosen)
    report(f"embedding these rows again costs {_price(tokens, ledger)}; the same `embatch embed` does it")
    return DONE


def _settled(intent: Intent, ledger: Ledger) -> dict[str, object]:
    """Return what was settled, with what the rows cost as one batch, for programs."""
    from embatch.runs.index import dollars  # noqa: PLC0415
    from embatch.runs.intents import as_json  # noqa: PLC0415

    return {
        **as_json(intent),
        "cost": dollars(str(ledger.about.get("target")), ledger.about.get("model"), intent.tokens),
    }


def _price(tokens: int, ledger: Ledger) -> str:
    """Return in words what so many tokens cost as a batch; they are estimated."""
    from embatch.runs.index import dollars  # noqa: PLC0415

    cost = dollars(str(ledger.about.get("target")), ledger.about.get("model"), tokens)
    return f"about {tokens:,} tokens" + ("" if cost is None else f", ${cost:,.4f}")


def _table(found: list[RunOverview]) -> None:
    rows = [
        (
            one.output,
            one.state,
            one.provider,
            f"{one.rows:,}",
            *(
                f"{number:,}"
                for number in (one.batches, one.in_flight, one.unknown, one.quarantined, one.tokens)
            ),
            "" if one.cost is None else f"{one.cost:,.4f}",
            _moment(one.began),
        )
        for one in found
    ]
    heads = ("output", "state", "where", "rows>", "batches>", "in flight>", "unknown>", "quarantined>")
    show_table((*heads, "tokens>", "US$>", "began"), rows)
    for one in found:
        if one.trouble:
            report(f"{one.output}: {one.trouble}")


def _open_batches(ledger: LedgerView, out: str) -> None:
    """Print what may have been paid and is not here yet, and how people settle it."""
    from embatch.runs.intents import OPEN, Fate  # noqa: PLC0415

    found = [intent for intent in ledger.intents if intent.fate in OPEN]
    if not found:
        return
    say("")
    rows = [
        (
            one.batch or "?",
            one.fate.value,
            str(one.number),
            one.shown.removeprefix("rows "),
            *(f"{number:,}" for number in (one.requests, one.tokens)),
            _moment(one.at),
            one.fingerprint,
            one.why,
        )
        for one in found
    ]
    heads = ("batch", "fate", "block>", "rows", "requests>", "tokens>", "since", "mark", "why")
    show_table(heads, rows)
    if any(intent.fate is Fate.QUARANTINED for intent in found):
        report(
            f"`embatch runs adopt {out} BATCH` says which batch of the provider it is, `embatch runs abandon "
            f"{out}` gives up what is quarantined"
        )


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
