"""What processor time the local service has taken, as the system tells it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embatch.client.base import BaseClient


def service_cpu_seconds(client: BaseClient) -> float | None:
    """Return the CPU seconds spent so far by the local service with its engine processes.

    `None` where the client has no local service, or the system does not tell (Linux does).
    """
    attachment = client._connection.attachment  # noqa: SLF001  (the same package)
    if attachment is None:
        return None
    spent: dict[int, tuple[int, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            numbers = (entry / "stat").read_text().rpartition(")")[2].split()
            # After the name: state, parent, …; 11 to 14 are user and system time, own and of ended children.
            spent[int(entry.name)] = (int(numbers[1]), sum(map(int, numbers[11:15])) / tick)
    root = attachment.place.pid
    if root not in spent:
        return None
    family, total = [root], 0.0
    for pid in family:
        total += spent[pid][1]
        family += [child for child, (parent, _) in spent.items() if parent == pid]
    return total
