"""What embedding costs elsewhere: a dated table, which a file of the user's can replace."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import orjson

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path


BREAK_EVEN: Final = (100, 200)
"""Texts from which a batch is worth its setup, by the guide."""
WORTH: Final = 500
"""Texts from which the guide says batch in any case."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars. `date` says when the table was true."""

    date: str = "2025-09"
    gemini_interactive: float = 0.15
    """A million tokens of gemini-embedding-001 through embedContent (ai.google.dev, pricing)."""
    gemini_batch: float = 0.075
    """The same through the batch API: half."""
    cpu_hour: float = 0.0446
    """An hour of one virtual CPU: half of a c7i.large on demand (aws.amazon.com/ec2/pricing/on-demand)."""

    def gemini(self, tokens: int) -> tuple[float, float]:
        """Return what tokens cost as a batch, and interactively."""
        return tokens / 1e6 * self.gemini_batch, tokens / 1e6 * self.gemini_interactive

    def of(self, provider: str, tokens: int) -> tuple[float, float] | None:
        """Return the same for a provider by its name; `None` for one that the table does not have."""
        price = {"gemini": self.gemini}.get(provider)
        return None if price is None else price(tokens)


DEFAULT: Final = Prices()


def load(path: Path | None) -> Prices:
    """Return the table, with what a JSON object in a file says in its place.

    Raises:
        InvalidArgument: the file cannot be read, or names something else or a negative price.
    """
    if path is None:
        return DEFAULT
    try:
        said = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}", field="--prices") from None
    known = {field.name for field in fields(Prices)}
    if not isinstance(said, dict) or set(said) - known:
        raise InvalidArgument(
            f"{path}: a JSON object of {', '.join(sorted(known))} is wanted", field="--prices"
        )
    for name, value in said.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        if not (isinstance(value, str) if name == "date" else number):
            wanted = "text" if name == "date" else "a number, 0 or more"
            raise InvalidArgument(f"{path}: {name} must be {wanted}", field="--prices")
    return Prices(**said)
