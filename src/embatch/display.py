"""What the command line shows: a progress bar on a terminal, one line per interval elsewhere, tables.

Progress goes to standard error; standard output is for what another program reads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from embatch.batch import Batch

_LINE_SECONDS = 5.0


def report(line: str) -> None:
    """Print one line to standard error, as it is: a name may hold what rich would take for markup."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(line))


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
    table = Table(box=None, pad_edge=False)
    for head in ("name", "state", "done", "failed", "of", "priority", "display name"):
        right = head in ("done", "failed", "of", "priority")
        table.add_column(head, justify="right" if right else "left", overflow="fold")
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
    Console(soft_wrap=True).print(table)


class Display:
    """Shows how far a batch or a run is, with its rate and the time that remains."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._said = self._started
        self._first: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
            )

    @property
    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return time.monotonic() - self._started

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
        stats = batch.batch_stats
        done = stats.successful_request_count + stats.failed_request_count + stats.uncommitted_request_count
        self.rows(done, stats.request_count, batch)

    def rows(self, done: int, total: int, batch: Batch) -> None:
        """Show `done` of `total` rows; the rate leaves out what passed before the first row."""
        now = time.monotonic()
        if self._first is None and done:
            self._first = (now, done)
        since, base = self._first or (now, 0)
        rate = (done - base) / (now - since) if now > since and done > base else 0.0
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(batch.state.value, total=total, rate="")
            words = f"{rate:,.0f}/s" if rate else ""
            task = self._bar.tasks[0].id
            self._bar.update(task, description=batch.state.value, completed=done, total=total, rate=words)
        elif batch.done or now - self._said >= _LINE_SECONDS:
            self._said = now
            left = f", {seconds_words((total - done) / rate)} left" if rate and done < total else ""
            failed = batch.batch_stats.failed_request_count
            report(f"{batch.state.value} {done}/{total}, {failed} failed, {rate:,.0f}/s{left}")
