"""Whoever works the shards, as the rest of the service sees it: in this process, or elsewhere."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from embatch.shard import Done

if TYPE_CHECKING:
    from collections.abc import Mapping


class Workers(Protocol):
    """What claims shards and works them. Every method is safe to call from any thread."""

    def start(self) -> None:
        """Begin to work."""
        ...

    def wake(self) -> None:
        """Tell that something may wait to be worked."""
        ...

    def cancel(self, batch_id: str) -> None:
        """Stop the running shards of a batch, between micro-batches, after the store has ended it."""
        ...

    def prioritise(self, batch_id: str, priority: int) -> None:
        """Let the running shards of a batch have another priority, after the store has changed it."""
        ...

    def at_work(self) -> tuple[str, ...]:
        """Return the ids of the batches that are worked now."""
        ...

    def uncommitted(self, batch_id: str) -> Done:
        """Return what of a batch's claimed shards is embedded and not yet durable."""
        ...

    def troubles(self) -> Mapping[str, str]:
        """Return by model or batch why its shards wait although they could be worked; empty: all is well."""
        ...

    def pause(self) -> None:
        """Claim no more until `resume`, let running micro-batches finish and release the rest."""
        ...

    def resume(self) -> None:
        """Go on. Repeating is safe."""
        ...

    def close(self, grace: float) -> None:
        """Claim no more, let running micro-batches finish, release the rest; wait at most `grace` seconds."""
        ...


class Elsewhere:
    """Another process works the shards of this store, and looks by itself: nothing is known of it here."""

    def start(self) -> None:
        """There is nothing to begin."""

    def wake(self) -> None:
        """It looks for work every few seconds."""

    def cancel(self, batch_id: str) -> None:
        """The store refuses what it still brings of the batch."""

    def prioritise(self, batch_id: str, priority: int) -> None:
        """It counts from the next claim on."""

    def at_work(self) -> tuple[str, ...]:
        """Return nothing: nobody here knows."""
        return ()

    def uncommitted(self, batch_id: str) -> Done:  # noqa: ARG002  (of no batch is it known)
        """Return nothing: what it embedded shows once it is durable."""
        return Done(0)

    def troubles(self) -> Mapping[str, str]:
        """Return nothing: its own health tells."""
        return MappingProxyType({})

    def pause(self) -> None:
        """It has clients of its own."""

    def resume(self) -> None:
        """It was not paused."""

    def close(self, grace: float) -> None:
        """There is nothing to end."""
