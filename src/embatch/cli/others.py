"""What the local service works beside a command: batches that an interrupted one left, or another one's."""

from __future__ import annotations

import shlex
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from embatch.cli.display import report
from embatch.errors import EmbatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.runs.progress import RunProgress

_NAMED: Final = 3
_LOOKED_AT: Final = 1000
"""Batches, the newest ones, among which others are looked for."""


class Others:
    """Tells once, when work is seen for the first time, which other batches the local service has."""

    def __init__(self, service: Client, to: str, data: Path | None) -> None:
        """Say nothing yet; and nothing at all of another target, whose batches are not this user's alone."""
        self._service, self._data = service, data
        self._told = to != "local"

    def run(self, standing: RunProgress) -> None:
        """Tell which batches are not the run's."""
        self._tell({standing.batch.name, *standing.handed}, standing.batch.priority)

    def batch(self, batch: Batch) -> None:
        """Tell which batches there are beside this one."""
        self._tell({batch.name}, batch.priority)

    def _tell(self, own: Collection[str], priority: int) -> None:
        if self._told:
            return
        self._told = True
        with suppress(EmbatchError):  # the work goes on without these lines
            found = islice(self._service.list_batches(), _LOOKED_AT)
            where = "" if self._data is None else f" --data {shlex.quote(str(self._data))}"
            for line in lines(found, own, priority, where):
                report(line)


def lines(batches: Iterable[Batch], own: Collection[str], priority: int, where: str) -> list[str]:
    """Return what to say of those batches that are unfinished and not among `own`.

    Args:
        batches: what the service has.
        own: names of those that are expected.
        priority: of those.
        where: what a command needs to find the service, with a blank before it.
    """
    others = [batch for batch in batches if not batch.done and batch.name not in own]
    others.sort(key=lambda batch: -batch.priority)
    said = [_line(batch, priority, where) for batch in others[:_NAMED]]
    if len(others) > _NAMED:
        said.append(f"and {len(others) - _NAMED:,} batches more: embatch list{where}")
    return said


def _line(batch: Batch, priority: int, where: str) -> str:
    if batch.priority == priority:
        how = "also working"
    else:
        how = "worked before it" if batch.priority > priority else "waiting behind it"
    stats = batch.batch_stats
    left = stats.pending_request_count - stats.uncommitted_request_count
    size = f"{left:,} left" if stats.request_count else "its file is being read"
    name = f" ({batch.display_name})" if batch.display_name else ""
    return f"{how}: {batch.name}{name}, {size}; embatch cancel {batch.name}{where}"
