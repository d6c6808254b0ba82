"""The states of a job in Vertex's words, and what each means to us; the only place that knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a word means."""

    state: State
    note: str | None = None
    """What the state cannot say; `None` where it says all."""
    partial: bool = False
    """Whether requests may have neither embedding nor error although the job is complete."""


STATES: Final[Mapping[str, Meaning]] = {
    "JOB_STATE_UNSPECIFIED": Meaning(State.PENDING),
    "JOB_STATE_QUEUED": Meaning(State.PENDING, "queued: it has not been taken up yet"),
    "JOB_STATE_PENDING": Meaning(State.PENDING),
    "JOB_STATE_RUNNING": Meaning(State.PROCESSING),
    "JOB_STATE_UPDATING": Meaning(State.PROCESSING, "being updated"),
    "JOB_STATE_PAUSED": Meaning(State.PROCESSING, "paused: it goes on once it is resumed"),
    "JOB_STATE_CANCELLING": Meaning(State.PROCESSING, "being cancelled"),
    "JOB_STATE_SUCCEEDED": Meaning(State.COMPLETED),
    "JOB_STATE_PARTIALLY_SUCCEEDED": Meaning(
        State.COMPLETED, "partially succeeded: some requests have no embedding", partial=True
    ),
    "JOB_STATE_FAILED": Meaning(State.FAILED),
    "JOB_STATE_CANCELLED": Meaning(State.CANCELLED),
    "JOB_STATE_EXPIRED": Meaning(State.EXPIRED),
}
