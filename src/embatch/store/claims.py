"""Claims: what working shards needs of a store, and all that will differ between one service and several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from embatch.store.records import Claim, Committed, KeptShard, ResultShard
    from embatch.store.store import Store


class Claims(Protocol):
    """The right to work shards, taken and ended. Safe to use from any thread; all raise Unavailable."""

    def claim(
        self,
        most: int,
        *,
        without: Collection[str] = (),
        resting: Collection[str] = (),
        least: int | None = None,
        beside: Collection[str] = (),
        first: Collection[str] = (),
    ) -> Sequence[Claim]:
        """Claim up to so many shards: highest priority, then by turns between batches, then the oldest.

        At equal priority those come first whose model is one of `first`. The attempt of each is raised,
        durable on return. None at all: nothing waits, these left out: the models of `without`, the batches of
        `resting`, and what has a lower priority than `least`, if its model is not among `beside`.
        """
        ...

    def commit(self, claim: Claim, result: ResultShard) -> Committed:
        """Store what a worked shard came to, if the claim still holds and the batch is active."""
        ...

    def release(self, claim: Claim, *, excused: bool = False, kept: KeptShard | None = None) -> bool:
        """Let a claimed shard wait again. `False`: the claim was lost. Repeating is safe.

        `excused`: that it was claimed and not worked says nothing against it. `kept` is what the next attempt
        finds; `None` leaves it what this one found.
        """
        ...


@dataclass(frozen=True, slots=True)
class SoleClaims:
    """The claims of a service that has its database to itself: they hold until the next one starts."""

    store: Store
    now: Callable[[], datetime]

    def claim(
        self,
        most: int,
        *,
        without: Collection[str] = (),
        resting: Collection[str] = (),
        least: int | None = None,
        beside: Collection[str] = (),
        first: Collection[str] = (),
    ) -> Sequence[Claim]:
        """As `Claims.claim`."""
        claimed: list[Claim] = []
        while len(claimed) < most:
            claim = self.store.claim(
                self.now(), without=without, resting=resting, least=least, beside=beside, first=first
            )
            if claim is None:
                break
            claimed.append(claim)
        return claimed

    def commit(self, claim: Claim, result: ResultShard) -> Committed:
        """As `Claims.commit`."""
        return self.store.commit(claim, result, self.now())

    def release(self, claim: Claim, *, excused: bool = False, kept: KeptShard | None = None) -> bool:
        """As `Claims.release`."""
        return self.store.release(claim, excused=excused, kept=kept)
