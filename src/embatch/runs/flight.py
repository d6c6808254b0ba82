"""How much of a run may be in flight at once: batches, and the tokens in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Hashable

    from embatch.client.providers.provider import Capabilities
    from embatch.errors import EmbatchError

AHEAD: Final = 2
"""Batches handed over beside the oldest where a provider names no number: it never waits for the file."""


@dataclass(frozen=True, slots=True)
class FlightLimits:
    """The most that is in flight at once."""

    batches: int
    tokens: int | None
    """`None`: as many as there are."""

    @classmethod
    def of(cls, can: Capabilities) -> Self:
        """Return what a provider allows."""
        return cls(can.batches_in_flight or 1 + AHEAD, can.tokens_in_flight)


@dataclass(slots=True)
class Flight:
    """Counts what is in flight. Times are seconds of the caller's clock."""

    limits: FlightLimits
    _tokens: dict[Hashable, int] = field(default_factory=dict)

    def may_begin(self, tokens: int, now: float) -> bool:  # noqa: ARG002  (what others need)
        """Return whether a batch of so many tokens may be handed over; one that is alone always may."""
        if not self._tokens:
            return True
        if len(self._tokens) >= self.limits.batches:
            return False
        return self.limits.tokens is None or sum(self._tokens.values()) + tokens <= self.limits.tokens

    def begun(self, key: Hashable, tokens: int, now: float) -> None:  # noqa: ARG002
        """Count a batch that was handed over."""
        self._tokens[key] = tokens

    def ended(self, key: Hashable, now: float) -> None:  # noqa: ARG002
        """Count it no more. Repeating is safe."""
        self._tokens.pop(key, None)

    def refused(self, error: EmbatchError, now: float) -> None:  # noqa: ARG002
        """Take note that a batch was refused for a quota. Raises the error where waiting does not help."""
        raise error

    def pause(self, now: float) -> float:  # noqa: ARG002
        """Return the seconds until it is worth asking again; 0.0 where an end has to come first."""
        return 0.0
