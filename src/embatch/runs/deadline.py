"""When a run shall be done, and what it may cost: as people write it, and as a run's ledger keeps it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

NONE: Final = "none"
"""Takes back what an earlier call of the run asked for."""
_SPAN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run was asked to keep to."""

    deadline: datetime | None = None
    """UTC; `None` for whenever it is done."""
    max_cost: float | None = None
    """US dollars for the whole run, all calls of it together; `None` for whatever it takes."""
    said: str | None = None
    """The deadline as it was written: the same words again mean the same moment, not a later one."""

    def record(self) -> dict[str, object]:
        """Return them as JSON."""
        return {
            "deadline": self.deadline and self.deadline.isoformat(),
            "max cost": self.max_cost,
            "said": self.said,
        }

    @classmethod
    def of(cls, said: Mapping[str, object]) -> Terms:
        """Return them as they were kept."""
        deadline, cost, words = said.get("deadline"), said.get("max cost"), said.get("said")
        return cls(
            datetime.fromisoformat(deadline) if isinstance(deadline, str) else None,
            float(cost) if isinstance(cost, int | float) else None,
            words if isinstance(words, str) else None,
        )

    def moved(self, deadline: str | None, max_cost: str | None, now: datetime) -> Terms:
        """Return the terms of a further call of the run.

        What is not said stays. A span that is said in the same words stays the moment that it was, so that
        the same command goes on; in other words it counts from now.

        Raises:
            InvalidArgument: they cannot be read, or the deadline has passed.
        """
        moment, said, cost = self.deadline, self.said, self.max_cost
        if deadline is not None and deadline != said:
            moment, said = parse_deadline(deadline, now), None if deadline == NONE else deadline
        if max_cost is not None:
            cost = parse_cost(max_cost)
        return Terms(moment, cost, said)


def parse_deadline(said: str, now: datetime) -> datetime | None:
    """Return the moment that `6h`, `90m`, `2d` or a time of RFC 3339 names, in UTC; `None` for `none`.

    Raises:
        InvalidArgument: it is none of these, past, or more than a year away.
    """
    if said == NONE:
        return None
    span = _SPAN.fullmatch(said.strip())
    if span is not None:
        moment = now + timedelta(
            seconds=min(float(span[1]) * _SECONDS[span[2]], 2 * _LONGEST.total_seconds())
        )
    else:
        try:
            moment = datetime.fromisoformat(said.strip())
        except ValueError:
            moment = datetime.min  # noqa: DTZ901  (no moment)
        if moment.tzinfo is None or "T" not in said.upper():
            raise InvalidArgument(
                "--deadline is a span such as 6h or 90m, a time with its zone such as 2026-03-01T18:00:00Z, "
                f"or {NONE}",
                field="--deadline",
            )
    if moment <= now:
        raise InvalidArgument("--deadline has passed: give a later one", field="--deadline")
    if moment > now + _LONGEST:
        raise InvalidArgument("--deadline is more than a year away: give an earlier one", field="--deadline")
    return moment.astimezone(UTC)


def parse_cost(said: str) -> float | None:
    """Return the dollars that somebody wrote, above 0; `None` for `none`. Raises InvalidArgument."""
    if said == NONE:
        return None
    try:
        cost = float(said.strip().removeprefix("$"))
    except ValueError:
        cost = math.nan
    if not 0 < cost < math.inf:
        raise InvalidArgument(
            f"--max-cost is an amount of US dollars above 0, such as 2.50, or {NONE}", field="--max-cost"
        )
    return cost
