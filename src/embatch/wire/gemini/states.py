"""The states of a batch in Google's words, one table both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping

WORDS: Final[Mapping[State, str]] = {
    State.PENDING: "BATCH_STATE_PENDING",
    State.PROCESSING: "BATCH_STATE_RUNNING",
    State.COMPLETED: "BATCH_STATE_SUCCEEDED",
    State.FAILED: "BATCH_STATE_FAILED",
    State.CANCELLED: "BATCH_STATE_CANCELLED",
    State.EXPIRED: "BATCH_STATE_EXPIRED",
}
_STATES: Final = {word: state for state, word in WORDS.items()} | {"BATCH_STATE_UNSPECIFIED": State.PENDING}


def state_of(word: str | None) -> State | None:
    """Return the state that a word means; `None` for a word that is none of them."""
    # The SDK's words for the same states stand in Google's own pages.
    return _STATES.get((word or "").replace("JOB_STATE_", "BATCH_STATE_"))
