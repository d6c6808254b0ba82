"""What the command line shows: a progress bar on a terminal, one line per interval elsewhere, tables.

Progress goes to standard error; standard output is for what another program reads. What is shown was said by
somebody else, so what a terminal would obey, or draw as nothing, is shown as an escape. Where nobody reads it
nothing is shown, and the work goes on.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TextIO, cast

import orjson

from embatch.batch import WAITS
from embatch.errors import Unavailable
from embatch.escapes import json_visible, visible
from embatch.runs.prices import BREAK_EVEN, SHOWN_MODEL, WORTH
from embatch.runs.progress import RunProgress, finished
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from rich.progress import Progress
    from rich.table import Table

    from embatch.batch import Batch
    from embatch.runs.cost import Estimate
    from embatch.runs.prices import Price

_LINE_SECONDS: Final = 5.0
_PIPED: Final = 2000
"""Characters of a line for another program, which gets a batch in each."""
_SURE_SECONDS: Final = (5.0, 30.0)
"""So much work seen makes an estimate: the first where it is a fair part of the whole, else the second."""
_FAIR: Final = 0.02
_HOSTED: Final = {"gemini": "Gemini", "vertex": "Vertex"}
_NOBODY: Final = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What writing to a pipe or terminal gives whose other end has gone."""


def json_line(record: Mapping[str, object]) -> str:
    """Return a record as one line of JSON, with JSON's own escapes for what `visible` shows as escapes."""
    try:
        text = orjson.dumps(record).decode()
    except TypeError:  # a name that is not UTF-8
        text = json.dumps(record)
    line = json_visible(text)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a stream of few characters would write escapes that JSON has not
        return json.dumps(orjson.loads(text))
    return line


def report(line: str) -> None:
    """Print one line to standard error, as `visible` shows it."""
    _print(sys.stderr, visible(line) + "\n")


def say(line: str) -> None:
    """Print one line to standard output, as `visible` shows it.

    Raises:
        Unavailable: it cannot be written, as on a full disk. Where nobody reads it any more, nothing happens.
    """
    _write(visible(line) + "\n")


def _write(text: str) -> None:
    trouble = _print(sys.stdout, text)
    if trouble is not None and trouble.errno not in _NOBODY:
        raise Unavailable(f"standard output cannot be written: {trouble.strerror or trouble}")


def _print(stream: TextIO | None, text: str) -> OSError | None:
    """Write to a stream; one that fails leads nowhere from then on, and what was wrong is returned."""
    try:
        if stream is not None and not stream.closed:
            stream.write(text)
            stream.flush()
    except OSError as error:
        silence(stream)
        return error
    return None


def silence(stream: TextIO | None) -> None:
    """Let a stream lead nowhere, with what it still holds: nothing fails on it later, the exit included."""
    with suppress(OSError, ValueError, AttributeError):  # it has no number of its own
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


class _Gentle(io.TextIOBase):
    """Standard error for a library that draws on it: where it cannot be written any more, nothing happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        _print(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def seconds_words(seconds: float) -> str:
    """Return a duration for people: `8.3 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def state_words(batch: Batch) -> str:
    """Return the state of a batch, and in brackets what it cannot say, such as that a service paused it."""
    return batch.state.value if batch.note is None else f"{batch.state} ({batch.note.partition(':')[0]})"


def batch_table(batches: Sequence[Batch]) -> None:
    """Print batches as a table to standard output."""
    from rich.table import Table  # noqa: PLC0415  (0.2 s that `embed` in a script need not pay)

    table = Table(box=None, pad_edge=False)
    for head in ("name", "state", "done", "failed", "of", "priority", "display name"):
        right = head in ("done", "failed", "of", "priority")
        # A name is there to be copied.
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=head == "name")
    for batch in batches:
        stats = batch.batch_stats
        _add(
            table,
            batch.name,
            state_words(batch),
            str(stats.successful_request_count),
            str(stats.failed_request_count),
            str(stats.request_count),
            str(batch.priority),
            batch.display_name or "",
        )
    _show(table, width=None if sys.stdout.isatty() else _PIPED)


def _add(table: Table, *cells: str) -> None:
    """Add a row of texts, none of which is markup."""
    from rich.text import Text  # noqa: PLC0415  (as above)

    table.add_row(*(Text(visible(cell)) for cell in cells))


def _show(table: Table, *, width: int | None = None) -> None:
    from rich.console import Console  # noqa: PLC0415  (as above)

    drawn = io.StringIO()
    Console(file=drawn, force_terminal=sys.stdout.isatty(), width=width, soft_wrap=True).print(table)
    _write(drawn.getvalue())


class Display:
    """Shows how far a batch or a run is, with its rate and the time that remains."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, notice: Callable[[], str | None] = lambda: None
    ) -> None:
        """Begin. `notice` is asked at every poll of work for a line about the machine, if there is one."""
        self._clock, self._notice = clock, notice
        self._started = clock()
        self._said = self._started
        self._first: tuple[float, int, int] | None = None
        """When the first work of this call was seen, and how many rows and tokens it was."""
        self._waits = ""
        self._bar: Progress | None = None
        if _is_terminal(sys.stderr):
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
        self.run(RunProgress(done, total, tokens, estimate, stats.failed_request_count, batch))

    def run(self, standing: RunProgress) -> None:
        """Show how far a run is: by its tokens, which take equal time each, or by rows without them.

        The rate is of this call, and leaves out what passed before its first work was done.
        """
        for note in standing.batch.notes:
            if note.startswith(WAITS) and note != self._waits:  # each reason once, when it comes up
                self._waits = note
                report(note)
        if standing.said:
            report(standing.said)
        if standing.batch.state is State.PROCESSING and (line := self._notice()):
            report(line)
        by_tokens = bool(standing.total_tokens)
        done = standing.tokens if by_tokens else standing.rows
        total = standing.total_tokens if by_tokens else standing.total_rows
        rate = self._rate(standing, by_tokens=by_tokens)
        now = self._clock()
        sure = rate and total and self._sure(now, rate, total)
        left = seconds_words((total - done) / rate) if sure and total and done < total else ""
        unit = "tokens" if by_tokens else "rows"
        rows = f"{standing.rows:,}/{'?' if standing.total_rows is None else f'{standing.total_rows:,}'}"
        state = state_words(standing.batch)
        speed = f"{rate:,.0f} {unit}/s" if rate else ""
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(state, total=total, rows="", rate="", left="")
            task = self._bar.tasks[0].id
            self._bar.update(
                task, description=state, completed=done, total=total, rows=rows, rate=speed, left=left
            )
        elif (standing.batch.done and standing.settled) or now - self._said >= _LINE_SECONDS:
            self._said = now
            said = (f"{state} {rows}", f"{standing.failed:,} failed", speed, left and f"{left} left")
            report(", ".join(filter(None, said)))

    def _rate(self, standing: RunProgress, *, by_tokens: bool) -> float:
        """Return the tokens or rows that this call does in a second; 0 while nobody can tell."""
        now = self._clock()
        rows, tokens = standing.rows - standing.earlier_rows, standing.tokens - standing.earlier_tokens
        if self._first is None and (rows > 0 or tokens > 0):
            # Of both: which one is shown changes once the length of the input is known.
            self._first = (now, rows, tokens)
        since, first_rows, first_tokens = self._first or (now, 0, 0)
        done = tokens - first_tokens if by_tokens else rows - first_rows
        return done / (now - since) if now > since and done > 0 else 0.0

    def _sure(self, now: float, rate: float, total: int) -> bool:
        """Return whether enough was seen for an estimate of what remains."""
        seen = now - (self._first or (now,))[0]
        early, late = _SURE_SECONDS
        return seen >= late or (seen >= early and seen * rate >= _FAIR * total)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415  (as above)
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]}  {task.fields[rate]}  {task.fields[left]}", markup=False),
        console=Console(file=cast("TextIO", _Gentle(sys.stderr))),
    )


def download_bar() -> Progress:
    """Return a bar of bytes on standard error, a terminal; start it."""
    from rich.console import Console  # noqa: PLC0415  (as above)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        console=Console(file=cast("TextIO", _Gentle(sys.stderr))),
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
    from rich.table import Table  # noqa: PLC0415  (as above)

    share = "" if found.counted == found.rows else f" (extrapolated from {found.counted:,})"
    if found.open_end:
        share = " (the first ones alone: the input goes on and does not say how far)"
    say(
        f"{found.rows:,} rows{share}, {found.readable:,} texts, {found.distinct:,} different; "
        f"{found.tokens:,} tokens of {found.model}, {found.distinct_tokens:,} of different texts"
    )
    table = Table(box=None, pad_edge=False)
    for head in ("where", "time", "price in US$"):
        table.add_column(head, justify="left" if head == "where" else "right")
    if found.rate is not None:
        rate = found.rate
        hours = rate.cpu_seconds_per_token * found.distinct_tokens / 3600
        _add(
            table,
            f"here, as a batch ({rate.tokens_per_second:,.0f} tokens/s measured on {rate.texts} texts)",
            seconds_words(found.distinct_tokens / rate.tokens_per_second),
            f"{hours * found.prices.cpu_hour:,.4f}",
        )
        if rate.alone_cpu_seconds_per_token is not None:
            hours = rate.alone_cpu_seconds_per_token * found.tokens / 3600
            _add(table, "here, one text at a time", "", f"{hours * found.prices.cpu_hour:,.4f}")
    elsewhere = _elsewhere(found)
    for where, price in elsewhere:
        batch, _ = price.of(found.distinct_tokens, found.distinct_characters)
        _, alone = price.of(found.tokens, found.characters)
        _add(table, f"{where}, batch", "within 24 h", f"{batch:,.4f}")
        _add(table, f"{where}, interactive", "", f"{alone:,.4f}")
    _show(table)
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
    advice = (
        "a batch"
        if found.readable >= WORTH
        else "either"
        if found.readable >= low
        else "asking interactively"
    )
    say(
        f"break-even by the guide: a batch is worth its setup from {low}-{high} texts, and in any case above "
        f"{WORTH}: with {found.readable:,}, {advice}"
    )
