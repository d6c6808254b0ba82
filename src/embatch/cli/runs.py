"""The commands about runs: `embed | cost`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from embatch.cli.app import (
    DONE,
    PARTLY,
    SOURCES,
    STAGED,
    CancelOnInterrupt,
    Data,
    Id,
    Model,
    Out,
    Rate,
    StagingFlags,
    Task,
    Text,
    To,
    app,
    check_labels,
    check_name,
    check_range,
    client,
    data_folder,
    saying,
)
from embatch.cli.crowding import crowding
from embatch.cli.display import Display, cost_line, cost_table, report, seconds_words
from embatch.cli.engine_flags import EngineFlags
from embatch.cli.others import Others
from embatch.cli.verifying import budget, report_alignment
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from embatch.runs.progress import RunProgress, Summary


Prices = Annotated[
    Path | None, Parameter(help="JSON file with prices of your own; else the one that EMBATCH_PRICES names.")
]


@app.command
def embed(  # noqa: PLR0913  (one parameter a flag)
    source: Annotated[str, Parameter(name="IN", help=SOURCES)],
    *,
    out: Out,
    text: Text = None,
    id: Id = None,  # noqa: A002  (the flag's name)
    to: To = "local",
    data: Data = None,
    at: StagingFlags = STAGED,
    model: Model = None,
    on: EngineFlags = EngineFlags(),  # noqa: B008  (frozen)
    dim: Annotated[
        list[int] | None,
        Parameter(
            help="Leading dimensions, re-normalised; repeatable, a column each. Native by default.",
            negative="",
        ),
    ] = None,
    dtype: Annotated[
        str, Parameter(name=["--dtype", "--numbers"], help="float32, float16, int8 (with its scale) or bits.")
    ] = "float32",
    task_type: Task = None,
    priority: int = 0,
    name: Annotated[str | None, Parameter(help="Display name of the batches.")] = None,
    retry_failed: Annotated[
        bool, Parameter(help="Only embed the rows again that failed.", negative="")
    ] = False,
    restart: Annotated[bool, Parameter(help="Forget what an earlier call did.", negative="")] = False,
    cache: Annotated[bool, Parameter(help="Answer texts that earlier runs embedded from the cache.")] = True,
    threshold: Annotated[
        float, Parameter(help="Least cosine to the reference path; below it the output is rejected.")
    ] = 0.999,
    block_rows: Annotated[
        int | None,
        Parameter(
            help="Rows of one batch, and of one step of the ledger; 20,000, or what a hosted target takes "
            "well, by default."
        ),
    ] = None,
    verify: Annotated[
        str | None,
        Parameter(
            help="Of a hosted target, how vectors are checked to belong to their texts: full (all rows by "
            "each other, at most 40 texts embedded again at once, which costs), sample (20 random ones "
            "again) or none. full by default."
        ),
    ] = None,
    verify_calls: Annotated[
        int | None,
        Parameter(help="Most texts embedded again for that; 40 (20) and 1 % of the rows by default."),
    ] = None,
    rate: Rate = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    deadline: Annotated[
        str | None,
        Parameter(
            help="gemini, vertex: when to be done, as 6h, 90m or 2026-03-01T18:00:00Z. What no batch has "
            "brought in time is embedded interactively, at full price. Kept for the next call; none ends it."
        ),
    ] = None,
    max_cost: Annotated[
        str | None,
        Parameter(help="gemini, vertex: most US dollars of the whole run. Kept likewise; none ends it."),
    ] = None,
    prices: Prices = None,
    dry_run: Annotated[
        bool, Parameter(help="Only say what it would cost; nothing is embedded.", negative="")
    ] = False,
) -> int:
    """Embed a dataset into one output of id, embedding and error, in the input's order.

    Interrupted or killed, the same command goes on: what is finished stands in OUT.embatch, which goes when
    no row is left that another try could change.
    """
    for one in dim or ():
        check_range("--dim", one, 1)
    check_range("--block-rows", block_rows, 1)
    check_range("--threshold", threshold, -1, 1)
    check_name("--model", model)
    check_labels(name, priority)
    on.check(to)
    folder = data or data_folder()
    stays = partial(_stays, out, folder, None if cancel_on_interrupt else to)
    with saying(stays), client(to, data, at, preload=on.default(model), rate=rate) as service:
        display = Display(notice=crowding(service))
        # Not before the private service has begun to start.
        from embatch.dtypes import Dtype  # noqa: PLC0415
        from embatch.runs.checking import check_run  # noqa: PLC0415
        from embatch.runs.cost import estimate  # noqa: PLC0415
        from embatch.runs.options import EmbedOptions, RunOptions  # noqa: PLC0415
        from embatch.runs.prices import load  # noqa: PLC0415
        from embatch.runs.run import embed_dataset  # noqa: PLC0415
        from embatch.runs.sources import open_source  # noqa: PLC0415

        if dtype not in set(Dtype):
            raise InvalidArgument(f"--dtype is one of {', '.join(Dtype)}", field="--dtype")
        opened = open_source(source, text, id)
        if (served := on.served(service, to, model)) != model:
            display = Display(notice=crowding(service))  # to fetch a model is no work of the run
        embed_options = EmbedOptions(
            served, task_type, tuple(dict.fromkeys(dim or ())), Dtype(dtype), priority, name
        )
        options = RunOptions(
            folder,
            restart,
            retry_failed,
            cache,
            cancel_on_interrupt,
            threshold,
            block_rows,
            deadline,
            max_cost,
            load(prices, os.environ),
            budget=budget(service, verify, verify_calls, opened.rows),
        )
        if dry_run:
            check_run(service, opened, out, embed_options, options)
            cost_table(estimate(service, opened, served, options.prices, None, 0))
            return DONE
        others = Others(service, to, data)

        def show(standing: RunProgress) -> None:
            others.run(standing)
            display.run(standing)

        with display:
            summary = embed_dataset(service, opened, out, embed_options, options, show)
        elapsed = display.elapsed
    _report(summary, elapsed)
    return PARTLY if summary.failed else DONE


def _stays(out: str, data: Path, to: str | None) -> str:
    """Return what stays of a run that is interrupted, and how it goes on; `None`: its batches do not."""
    from embatch.runs.ledger import folder_of  # noqa: PLC0415  (as above)

    ledger = folder_of(out, data)
    if not ledger.exists():
        return "nothing had been handed over; the same command begins anew"
    if to is None:
        return f"finished blocks stay in {ledger}; the same command goes on"
    of_batches = (
        "of those in work the data folder keeps what is embedded so far"
        if to == "local"
        else f"{to} goes on with the blocks that it was handed"
    )
    return f"finished blocks stay in {ledger}; {of_batches}; the same command goes on"


def _report(summary: Summary, elapsed: float) -> None:
    """Print what a run did, and what it cost: processor time, or a provider's price for the tokens."""
    size = "" if summary.bytes is None else f", {summary.bytes / 1e6:,.1f} MB"
    dimensions = " and ".join(map(str, summary.dimensions))
    report(
        f"{summary.rows:,} rows, {summary.failed:,} failed, {dimensions} dimensions, {summary.model}{size} "
        f"in {summary.place}"
    )
    done = summary.rows - summary.earlier
    rate = f" ({done / elapsed:,.0f} rows/s)" if elapsed > 0 and done > 0 else ""
    calls = " in all calls" if summary.earlier else ""
    tokens = f", {summary.tokens:,} tokens{calls}" if summary.tokens else ""
    report(
        f"{seconds_words(elapsed)}{rate}{tokens}, {summary.duplicates:,} duplicates, {summary.cached:,} from "
        f"the cache, {summary.truncated:,} truncated"
    )
    if summary.resumed:
        report(f"{summary.resumed:,} rows had been done or handed over by an earlier call")
    if summary.cpu_seconds:
        report(cost_line(summary.cpu_seconds, summary.interactive_cpu_seconds))
    if summary.bill is not None:
        report(summary.bill.words())
    if summary.sample is not None:
        found = summary.sample
        report(
            f"certificate: {found.count} texts embedded again one by one in float32, cosine at least "
            f"{found.cosine_least:.6f}, {found.cosine_mean:.6f} on average"
        )
    if summary.alignment is not None:
        report_alignment(summary.alignment, summary.alignment_cpu_seconds)
    for note in summary.notes:
        report(f"note: {note}")
    _report_failed(summary)


def _report_failed(summary: Summary) -> None:
    """Print which failed rows can be tried again, and where those are that only their owner can mend."""
    mend = summary.failed - summary.retryable
    if mend:
        more = f" (the first {len(summary.to_mend)})" if mend > len(summary.to_mend) else ""
        report(f"{mend:,} failed rows are to be mended in the input, no other try changes them{more}:")
        for place in summary.to_mend:
            report(f"  {place}")
    if summary.retryable:
        report(f"{summary.retryable:,} failed rows can be tried again: the same command with --retry-failed")


@app.command
def cost(  # noqa: PLR0913  (one parameter a flag)
    source: Annotated[str, Parameter(name="IN", help=SOURCES)],
    *,
    text: Text = None,
    to: To = "local",
    data: Data = None,
    at: StagingFlags = STAGED,
    model: Model = None,
    on: EngineFlags = EngineFlags(),  # noqa: B008  (frozen)
    sample: Annotated[
        int | None,
        Parameter(
            help="Count only so many rows from the beginning; extrapolated for Parquet and Arrow, which say "
            "how many they have."
        ),
    ] = None,
    measure: Annotated[int, Parameter(help="Texts embedded to measure this machine; 0 for none.")] = 256,
    prices: Prices = None,
) -> int:
    """Count the tokens of a dataset before anything is spent, and say what embedding it costs where."""
    check_name("--model", model)
    check_range("--sample", sample, 1)
    check_range("--measure", measure, 0)
    on.check(to)
    from embatch.runs.cost import estimate  # noqa: PLC0415
    from embatch.runs.prices import load  # noqa: PLC0415
    from embatch.runs.sources import open_source  # noqa: PLC0415

    table = load(prices, os.environ)
    opened = open_source(source, text, None)
    with client(to, data, at, preload=on.default(model)) as service:
        model = on.served(service, to, model)
        cost_table(estimate(service, opened, model, table, sample, measure))
    for note in opened.notes:
        report(f"note: {note}")
    return DONE
