"""Whether other work holds the machine on which the local service computes: its engines give way to all."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.client.client import Client

_EVERY: Final = 10.0
"""Seconds over which the engines' share is measured."""
_LITTLE: Final = 0.5
"""Less than so much of one core is hardly anything; texts keep a core busy each."""


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:  # a system that does not tell
        return 0.0


@dataclass
class Crowding:
    """Says once, in a line, that the engines starve. Call it while something is worked."""

    cpu_seconds: Callable[[], float | None]
    """CPU seconds that the service and its engines have spent; `None` where the system does not tell."""
    clock: Callable[[], float] = time.monotonic
    load: Callable[[], float] = _load
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    _since: tuple[float, float | None] | None = None
    _said: bool = False

    def __call__(self) -> str | None:
        """Return the line, or `None` while there is nothing to say."""
        now = self.clock()
        if self._said or (self._since is not None and now < self._since[0] + _EVERY):
            return None
        since, spent = self._since, self.cpu_seconds()
        self._since = (now, spent)
        if since is None or since[1] is None or spent is None:
            return None
        share, load = (spent - since[1]) / (now - since[0]), self.load()
        if share >= _LITTLE or load < self.cores:
            return None
        self._said = True
        return (
            f"other work holds this machine (load {load:.1f} on {self.cores} cores): embedding gets "
            f"{max(0.0, share):.1f} of a core, and gives way (EMBATCH_BULK_NICE)"
        )


def crowding(client: Client) -> Callable[[], str | None]:
    """Return what watches the machine of a client's service: only the local one's can be seen from here."""
    from embatch.client.for_runs import ForRuns  # noqa: PLC0415  (start-up time of --help)

    service = ForRuns(client)
    return Crowding(service.cpu_seconds) if service.local else lambda: None
