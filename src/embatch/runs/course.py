"""Which block of a hosted run goes which way, and when: as a batch for half the price, or at once.

A batch comes back when it comes back. Where a run has a deadline, blocks whose batches are not back go
another way that gives the same vectors: as late as the deadline allows, for each may still come back by
itself, and never past the run's cap.

With enough under the cap for all blocks at full price, the deadline does not depend on any batch: then only
so many are handed over as leave that money untouched (`insured`). With less, as many batches as the service
takes are in flight, and what is left in the end pays for as many blocks as it can.

Pure: the time is handed in, in seconds of any clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.runs.budget import EXACT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embatch.runs.budget import Budget
    from embatch.runs.flight import Flight

SLACK: Final = 1.25
"""How much longer than reckoned the other way may take: others use the same quota."""
MARGIN: Final = 180.0
"""Seconds for what follows: the last poll, the verdict and writing the output."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A block that is not done. Sizes are estimates."""

    key: int
    requests: int
    tokens: int
    batch: float
    """Dollars as a batch."""
    alone: float
    """Dollars the other way."""
    sent: bool = False
    """Whether a batch has it."""
    running: bool = False
    """Whether the service works on that batch."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of embedding texts at once. It gives the vectors that a batch would give."""

    name: str
    requests_per_second: float
    tokens_per_second: float

    def seconds(self, pieces: Iterable[Piece]) -> float:
        """Return what some pieces take this way, one after the other."""
        return math.fsum(
            max(piece.requests / self.requests_per_second, piece.tokens / self.tokens_per_second)
            for piece in pieces
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What a run does next: one of these, or it waits."""

    moved: Piece | None = None
    """Goes the other way now."""
    begun: Piece | None = None
    """Is handed over as a batch."""
    stopped: bool = False
    """Nothing is in flight, and what is left costs more than the cap leaves."""
    seconds: float = math.inf
    """Until there may be something to do, unless a batch ends before."""


@dataclass(frozen=True, slots=True)
class Course:
    """The choices of one run with a deadline, a cap, or both."""

    budget: Budget
    way: Way | None
    """`None` where nothing but a batch gives these vectors."""
    deadline: float | None = None

    def movable(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return those that the cap lets go the other way, in the order in which they would.

        First what no batch has, then what waits, then what is being worked, the small before the large: so
        the most is done in time for the money.
        """
        if self.way is None:
            return []
        left, chosen = self.budget.room, []
        for piece in sorted(pieces, key=lambda one: (one.sent, one.running, one.sent and one.alone, one.key)):
            if piece.alone <= left + EXACT:
                chosen.append(piece)
                left -= piece.alone
        return chosen

    def insured(self, pieces: Sequence[Piece], spent: float = 0.0) -> bool:
        """Return whether all that is not done could still go the other way, with so much more spent."""
        if self.way is None:
            return False
        return math.fsum(piece.alone for piece in pieces) <= self.budget.room - spent + EXACT

    def starts(self, movable: Sequence[Piece]) -> float:
        """Return the moment from which `movable` have to go the other way; infinite where none need."""
        if self.deadline is None or self.way is None or not movable:
            return math.inf
        return self.deadline - MARGIN - SLACK * self.way.seconds(movable)

    def step(self, pieces: Sequence[Piece], flight: Flight, now: float, usual: float = 0.0) -> Step:
        """Return what to do now; ask again once that is done, and whenever a batch has ended.

        Args:
            pieces: all blocks that are not done and go no other way yet, in the order of handing over.
            flight: the batches that the service holds.
            now: the time.
            usual: seconds that a batch of this run takes; one that cannot be back in time is not begun.
        """
        movable = self.movable(pieces)
        starts = self.starts(movable)
        if now >= starts:
            return Step(moved=movable[0])
        unsent = [piece for piece in pieces if not piece.sent]
        first = unsent[0] if unsent else None
        if first is None:
            return Step(seconds=starts - now)
        fits = self.budget.fits(first.batch)
        # What pays for all in the end is not spent on batches that may not come back.
        kept = self.deadline is not None and self.insured(pieces) and not self.insured(pieces, first.batch)
        if fits and not kept and now + usual < starts and flight.may_begin(first.tokens, now):
            return Step(begun=first)
        if not fits and len(unsent) == len(pieces) and math.isinf(starts):
            return Step(stopped=True)
        return Step(seconds=min(starts - now, flight.pause(now) or math.inf))
