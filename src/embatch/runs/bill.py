"""What a run cost, and what the same texts had cost interactively: for its summary and its output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from embatch.runs.spending import AT_ONCE, BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embatch.runs.ledger_lines import Block
    from embatch.runs.prices import Price
    from embatch.runs.spending import Spending


@dataclass(frozen=True, slots=True)
class Bill:
    """US dollars, by a dated table of prices. The provider's own bill is what counts."""

    provider: str
    model: str
    tokens: int
    """Of the texts that were sent, equal ones of a block once."""
    counted: bool
    """Whether the replies said so for every block; else some are estimates."""
    dollars: float
    """All told, what was given up included."""
    interactive_dollars: float
    """What the same texts had cost one by one."""
    ways: dict[str, float]
    """Of `dollars`, what each way took: `batch`, `interactive`, `abandoned`, and `checked`, what was embedded
    again to see whether vectors belong to their texts."""
    prices: str
    """Date of the table."""

    def record(self) -> dict[str, object]:
        """Return it as the output's metadata has it."""
        return {"v": 1, **asdict(self)}

    def words(self) -> str:
        """Return it in a line."""
        beside = {way: dollars for way, dollars in self.ways.items() if way != "batch" and dollars}
        parts = "".join(f", ${dollars:,.4f} of it {way}" for way, dollars in sorted(beside.items()))
        about = "" if self.counted else "about "
        return (
            f"cost: {about}${self.dollars:,.4f}{parts}; interactively it had been "
            f"${self.interactive_dollars:,.4f}, prices of {self.prices}"
        )


def bill(spending: Spending, blocks: Iterable[Block], price: Price, provider: str, prices: str) -> Bill:
    """Return the bill of a finished run.

    Args:
        spending: of the run.
        blocks: all of them.
        price: of its model.
        provider: its name.
        prices: the date of the table.
    """
    blocks = list(blocks)
    model = next((block.model for block in blocks if block.model), "")
    tokens = sum(block.tokens for block in blocks)
    counted = all(block.tokens for block in blocks if block.rows > block.failed)
    ways = {way: round(dollars, 9) for way, (_, dollars) in sorted(spending.by_way().items())}
    _, alone = price.of(tokens, 0) if price.per == "tokens" else (0.0, _alone(spending, price))
    return Bill(provider, model, tokens, counted, round(sum(ways.values()), 9), round(alone, 9), ways, prices)


def _alone(spending: Spending, price: Price) -> float:
    """Return the interactive price of what is paid by the character, from what it cost as it went."""
    ratio = price.interactive / price.batch if price.batch else 0.0
    by_way = spending.by_way()
    return sum(by_way.get(way, (0, 0.0))[1] * times for way, times in ((BATCH, ratio), (AT_ONCE, 1.0)))
