"""What the command line shows: a progress bar on a terminal, one line per interval elsewhere, tables.

Progress goes to standard error; standard output is for what another program reads.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from embatch.batch import WAITS
from embatch.runs.prices import BREAK_EVEN, WORTH
from embatch.runs.standing import Standing, finished

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from rich.progress import Progress

    from embatch.batch import Batch
    from embatch.runs.cost import Estimate

_LINE_SECONDS = 5.0
_PIPED = 2000
"""Characters of a line for another program, which gets a batch in each."""


def report(line: str) -> None:
    """Print one line to standard error, as it is."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def seconds_words(seconds: float) -> str:
    """Return a duration for people: `8.3 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def batch_table(batches: Sequence[Batch]) -> None:
    """Print batches as a table to standard output."""
    from rich.console import Console  # noqa: PLC0415  (0.2 s that `embed` in a script need not pay)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for head in ("name", "state", "done", "failed", "of", "priority", "display name"):
        right = head in ("done", "failed", "of", "priority")
        # A name is there to be copied.
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=head == "name")
    for batch in batches:
        stats = batch.batch_stats
        table.add_row(
            batch.name,
            batch.state.value,
            str(stats.successful_request_count),
            str(stats.failed_request_count),
            str(stats.request_count),
            str(batch.priority),
            Text(batch.display_name or ""),
        )
    Console(width=None if sys.stdout.isatty() else _PIPED, soft_wrap=True).print(table)


class Display:
    """Shows how far a batch or a run is, with its rate and the time that remains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._said = self._started
        self._first: tuple[float, int, int] | None = None
        """When the first work of this call was seen, and how many rows and tokens it was."""
        self._waits = ""
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()

    @property
    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return self._clock() - self._started

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def batch(self, batch: Batch) -> None:
        """Show one poll of a batch."""
        stats, (done, tokens) = batch.batch_stats, finished(batch)
        total = stats.request_count
        estimate = round(tokens / done * total) if done and tokens else None
        self.run(Standing(done, total, tokens, estimate, stats.failed_request_count, batch))

    def run(self, standing: Standing) -> None:
        """Show how far a run is: by its tokens, which take equal time each, or by rows without them.

        The rate is of this call, and leaves out what passed before its first work was done.
        """
        for note in standing.batch.notes:
            if note.startswith(WAITS) and note != self._waits:  # each reason once, when it comes up
                self._waits = note
                report(note)
        by_tokens = bool(standing.total_tokens)
        done = standing.tokens if by_tokens else standing.rows
        total = standing.total_tokens if by_tokens else standing.total_rows
        rate = self._rate(standing, by_tokens=by_tokens)
        now = self._clock()
        left = seconds_words((total - done) / rate) if rate and total and done < total else ""
        unit = "tokens" if by_tokens else "rows"
        rows = f"{standing.rows:,}/{'?' if standing.total_rows is None else f'{standing.total_rows:,}'}"
        state = standing.batch.state.value
        speed = f"{rate:,.0f} {unit}/s" if rate else ""
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(state, total=total, rows="", rate="", left="")
            task = self._bar.tasks[0].id
            self._bar.update(
                task, description=state, completed=done, total=total, rows=rows, rate=speed, left=left
            )
        elif standing.batch.done or now - self._said >= _LINE_SECONDS:
            self._said = now
            said = (f"{state} {rows}", f"{standing.failed:,} failed", speed, left and f"{left} left")
            report(", ".join(filter(None, said)))

    def _rate(self, standing: Standing, *, by_tokens: bool) -> float:
        """Return the tokens or rows that this call does in a second; 0 while nobody can tell."""
        now = self._clock()
        rows, tokens = standing.rows - standing.earlier_rows, standing.tokens - standing.earlier_tokens
        if self._first is None and (rows > 0 or tokens > 0):
            # Of both: which one is shown changes once the length of the input is known.
            self._first = (now, rows, tokens)
        since, first_rows, first_tokens = self._first or (now, 0, 0)
        done = tokens - first_tokens if by_tokens else rows - first_rows
        return done / (now - since) if now > since and done > 0 else 0.0


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415  (as above)
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]}  {task.fields[rate]}  {task.fields[left]}"),
        console=Console(stderr=True),
    )


def usage_lines(batch: Batch) -> list[str]:
    """Return what a batch took, for people; nothing where the target does not say."""
    usage = batch.usage
    if not usage.token_count:
        return []
    cached = f", {usage.cached_request_count:,} requests from the cache" if usage.cached_request_count else ""
    return [
        f"{usage.token_count:,} tokens{cached}",
        cost_line(usage.cpu_seconds, usage.interactive_cpu_seconds),
    ]


def cost_line(cpu_seconds: float, alone: float | None) -> str:
    """Return what work took in the engine, and what it had cost one text at a time where that is known."""
    beside = "" if alone is None else f"; one text at a time it would have been {seconds_words(alone)}"
    return f"cost: {seconds_words(cpu_seconds)} of CPU time in the engine{beside}"


def cost_table(found: Estimate) -> None:
    """Print what embedding a dataset will cost, to standard output."""
    from rich.console import Console  # noqa: PLC0415  (as above)
    from rich.table import Table  # noqa: PLC0415

    console = Console(soft_wrap=True, highlight=False)
    share = "" if found.counted == found.rows else f" (extrapolated from {found.counted:,})"
    if found.open_end:
        share = " (the first ones alone: the input goes on and does not say how far)"
    console.print(
        f"{found.rows:,} rows{share}, {found.readable:,} texts, {found.distinct:,} different; "
        f"{found.tokens:,} tokens of {found.model}, {found.distinct_tokens:,} of different texts"
    )
    table = Table(box=None, pad_edge=False)
    for head in ("where", "time", "price in US$"):
        table.add_column(head, justify="left" if head == "where" else "right")
    batch, alone = found.prices.gemini(found.tokens)
    if found.rate is not None:
        rate = found.rate
        hours = rate.cpu_seconds_per_token * found.distinct_tokens / 3600
        table.add_row(
            f"here, as a batch ({rate.tokens_per_second:,.0f} tokens/s measured on {rate.texts} texts)",
            seconds_words(found.distinct_tokens / rate.tokens_per_second),
            f"{hours * found.prices.cpu_hour:,.4f}",
        )
        if rate.alone_cpu_seconds_per_token is not None:
            hours = rate.alone_cpu_seconds_per_token * found.tokens / 3600
            table.add_row("here, one text at a time", "", f"{hours * found.prices.cpu_hour:,.4f}")
    table.add_row("Gemini, batch", "within 24 h", f"{batch:,.4f}")
    table.add_row("Gemini, interactive", "", f"{alone:,.4f}")
    console.print(table)
    if found.unmeasured:
        console.print(f"work here was not measured: {found.unmeasured}")
    console.print(
        f"prices of {found.prices.date}; Gemini counts tokens of its own, these are {found.model}'s; "
        f"CPU time at {found.prices.cpu_hour} an hour"
    )
    low, high = BREAK_EVEN
    advice = (
        "a batch"
        if found.readable >= WORTH
        else "either"
        if found.readable >= low
        else "asking interactively"
    )
    console.print(
        f"break-even by the guide: a batch is worth its setup from {low}-{high} texts, and in any case above "
        f"{WORTH}: with {found.readable:,}, {advice}"
    )
