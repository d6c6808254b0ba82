"""How many batches, and tokens in them, a run keeps at a service, and when it asks again once refused.

A hosted service limits what waits with it: tokens first, then batches. It says so when a batch is created, or
fails a batch that it had accepted. Neither tells the limit, which others of the same account share. So the
run begins with what is known, grows with each batch that ends, and after a refusal keeps what it holds and
comes back later, ever more seldom.

Pure: the time is handed in, as seconds of any clock that only goes forward.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from embatch.backoff import meanwhile
from embatch.errors import Code, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from embatch.batch import Batch
    from embatch.client.providers.provider import Capabilities
    from embatch.errors import EmbatchError

MOST: Final = 90
"""Batches in flight at most: Google takes 100 of a project, and its other users want some too."""
AHEAD: Final = 2
"""Batches handed over beside the oldest where a provider names no number: it never waits for the file."""


@dataclass(frozen=True, slots=True)
class FlightLimits:
    """What a run begins with."""

    batches: int
    tokens: int | None
    """`None` where nobody counts them."""
    waits: bool = True
    """Whether a refusal for want of quota is waited out; else it is the caller's."""

    @classmethod
    def of(cls, can: Capabilities) -> Self:
        """Return what is known of a provider."""
        number = can.batches_in_flight
        if number is None:
            return cls(1 + AHEAD, can.tokens_in_flight, waits=False)
        return cls(min(MOST, number), can.tokens_in_flight)


def of_quota(ended: Batch) -> bool:
    """Return whether a batch that was accepted failed for want of quota: it embedded nothing."""
    return ended.error_code is Code.RESOURCE_EXHAUSTED


@dataclass(slots=True)
class Flight:
    """The batches of one run that a service holds. Not for two threads at once."""

    limits: FlightLimits
    chance: Callable[[], float] = random.random
    """Draws from [0, 1): several runs of one account shall not come back together."""
    _held: dict[Hashable, int] = field(default_factory=dict)
    _batches: float = field(init=False)
    """What is allowed now; a fraction grows into a whole one."""
    _tokens: float = field(init=False)
    _refusals: int = 0
    """In a row, without a batch that ended well between them."""
    _ever: bool = False
    """Whether the service has refused anything: then the limit is near, and is approached slowly."""
    _until: float = -math.inf
    _since: float = math.inf
    """When the refusals in a row began."""

    def __post_init__(self) -> None:
        self._batches = self.limits.batches
        self._tokens = math.inf if self.limits.tokens is None else self.limits.tokens

    @property
    def batches(self) -> int:
        """How many are in flight."""
        return len(self._held)

    @property
    def tokens(self) -> int:
        """Tokens of those in flight, as they were estimated."""
        return sum(self._held.values())

    def may_begin(self, tokens: int, now: float) -> bool:
        """Return whether one more batch may be handed over.

        One alone always may, however large, once the pause is over: nothing else would make room for it.
        """
        if now < self._until:
            return False
        fits = self.batches < int(self._batches) and self.tokens + tokens <= self._tokens
        return fits or not self._held

    def begun(self, key: Hashable, tokens: int, now: float) -> None:  # noqa: ARG002  (as the others)
        """Count a batch that the service accepted, or that was found there."""
        self._held[key] = tokens

    def ended(self, key: Hashable, now: float, *, good: bool = True) -> None:  # noqa: ARG002  (as the others)
        """Count a batch no more.

        Args:
            key: as it was begun; one that was not is no error.
            now: the time.
            good: whether it was worked, so that there is room for as much again, and for more. One that was
                cancelled, or failed, says nothing of that.
        """
        tokens = self._held.pop(key, None)
        if tokens is None or not good:
            return
        self._refusals, self._since = 0, math.inf
        # A round of batches doubles what is held until the first refusal, and adds one batch afterwards.
        share = 1 / max(1.0, self._batches) if self._ever else 1.0
        self._batches = min(self.limits.batches, self._batches + share)
        self._tokens += tokens * share

    def refused(self, error: EmbatchError, now: float) -> None:
        """Hold no more than what is held, and wait: as long as was asked, or ever longer.

        Several refusals during one wait, as of batches that fail together, are one. Raises the error where
        it is not waited for.
        """
        if not self.limits.waits:
            raise error
        self._refusals += now >= self._until
        self._ever, self._since = True, min(self._since, now)
        self._batches = max(1.0, self.batches)
        if self._held:
            self._tokens = self.tokens
        asked = error.retry_after or 0.0
        wait = meanwhile(asked if asked > 0 else math.inf, self._refusals)
        self._until = max(self._until, now + wait * (1.0 + 0.25 * self.chance()))

    def pause(self, now: float) -> float:
        """Return the seconds until it is worth asking again; 0 where a refusal is not in the way."""
        return max(0.0, self._until - now)

    def refused_for(self, now: float) -> float:
        """Return the seconds since the refusals began; 0 where a batch ended well after the last one."""
        return max(0.0, now - self._since) if self._refusals else 0.0

    def note(self, now: float) -> str:
        """Return what keeps the run from handing more over, for people; empty where no refusal does."""
        if not self._refusals:
            return ""
        held = f"{self.batches} {'batch' if self.batches == 1 else 'batches'} in flight"
        times = "once" if self._refusals == 1 else f"{self._refusals} times in a row"
        return (
            f"the service's quota is full ({times}): {held}, the next one is tried in {self.pause(now):.0f} s"
        )


def quota(error: EmbatchError) -> bool:
    """Return whether a submit was refused for want of quota, and nothing was begun."""
    return isinstance(error, ResourceExhausted)
