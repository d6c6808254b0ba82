"""Results of a finished batch that come late: hosted services write them after they say that it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.backoff import POLL, Backoff
from embatch.client import readers
from embatch.errors import Unavailable
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.batch import Batch
    from embatch.client.calls import Flow, Sender
    from embatch.wire.google.rows import ResponseRow

_LATE: Final = Backoff(first=2.0, limit=60.0, attempts=24)
"""How long results are waited for that a finished batch does not have yet: ten minutes, at most twenty."""
_LOOKS: Final = 2
"""How often more results that have gaps are looked at again: they may still be written."""


def awaited(
    sender: Sender,
    batch: Batch,
    read: Callable[[float], Flow[list[ResponseRow] | None]],
    *,
    gaps: bool = False,
) -> Flow[list[ResponseRow]]:
    """Return the rows of a batch in a final state, once they are there.

    They are waited for, patiently and not for ever; a few that are missing are looked for twice more.

    Args:
        sender: with its clock and patience.
        batch: in a final state.
        read: returns what there is after so many seconds; `None` for nothing.
        gaps: whether the service said that some will never come.

    Raises:
        Unavailable: they are not there yet, or not any more.
    """
    patience = _LATE if sender.poll == POLL else sender.poll
    failures, after = 0, 0.0
    while True:
        rows = yield from read(after)
        # What was stopped, or has expired, seldom has any.
        if batch.state is not State.COMPLETED or (rows and (gaps or readers.whole(batch, rows))):
            return rows or []
        failures += 1
        delay = patience.delay(failures, sender.outside.chance())
        if rows and (failures > _LOOKS or delay is None):
            return rows
        if delay is None:
            raise Unavailable(
                f"{batch.name} is {batch.state}, but its results are not there yet, or not any more: "
                "come back later"
            )
        after = delay
