"""What a run has spent and may still spend: nothing is begun that could take it past its cap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

EXACT: Final = 1e-9
"""Dollars that adding up many amounts may be off by."""


@dataclass(slots=True)
class Budget:
    """Dollars, by what they are for. What is under way counts at its full estimate until it is known.

    A batch that was given up stays in it, at its full estimate while nobody says what of it was worked.
    """

    cap: float | None = None
    """`None` where the run may cost what it takes."""
    _amounts: dict[object, float] = field(default_factory=dict)

    @property
    def committed(self) -> float:
        """What was spent, and what is under way at its full estimate."""
        return math.fsum(self._amounts.values())

    @property
    def room(self) -> float:
        """What may still be begun; infinite without a cap."""
        return math.inf if self.cap is None else max(0.0, self.cap - self.committed)

    def fits(self, dollars: float) -> bool:
        """Return whether something of such a price may be begun."""
        return dollars <= self.room + EXACT

    def reserve(self, key: object, dollars: float) -> bool:
        """Count something that is about to be begun; return whether it may be. If not, nothing changes."""
        if not self.fits(dollars):
            return False
        self.count(key, dollars)
        return True

    def count(self, key: object, dollars: float) -> None:
        """Count something that was begun by an earlier call of the run, or without being asked."""
        self._amounts[key] = self._amounts.get(key, 0.0) + dollars

    def settle(self, key: object, dollars: float) -> None:
        """Count what something has cost in the place of its estimate."""
        self._amounts[key] = dollars

    def release(self, key: object) -> None:
        """Count something no more: it was refused, and cost nothing."""
        self._amounts.pop(key, None)
