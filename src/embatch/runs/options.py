"""What a run shall do with every row, and how it shall go about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.runs import parity
from embatch.runs.alignment.sampling import Budget
from embatch.runs.clock import Clock
from embatch.runs.prices import DEFAULT
from embatch.runs.steps import Step, pass_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embatch.batch import TaskType
    from embatch.dtypes import Dtype
    from embatch.runs.prices import Prices


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What a run shall do with every row, and how the vectors shall be written."""

    model: str | None = None
    task_type: TaskType | None = None
    dimensions: tuple[int, ...] = ()
    """Leading dimensions written, re-normalised, a column each; `()` for the model's native number."""
    dtype: Dtype | None = None
    """`None` for float32."""
    priority: int = 0
    display_name: str | None = None

    def __post_init__(self) -> None:
        if not encodable(self.model or ""):
            raise InvalidArgument("the name of the model is not UTF-8", field="--model")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run shall go about it."""

    data: Path
    """Data folder of the machine: holds the ledgers of outputs that are no files."""
    restart: bool = False
    """Forget what an earlier call of the same output did."""
    retry_failed: bool = False
    """Only try the rows again that failed and can be read."""
    cache: bool = True
    """Let the service answer texts that earlier runs embedded, and remember this run's."""
    cancel_on_interrupt: bool = False
    """Cancel, on Ctrl-C, the batches in work; without it they wait for the next call."""
    threshold: float = parity.THRESHOLD
    """Least cosine of the certificate; below it the output is rejected."""
    block_rows: int | None = None
    """Rows of one batch; a later call gives the same number or none. `None`: 20,000, or as many as a hosted
    provider takes well; see `block_size`."""
    deadline: str | None = None
    """When the run shall be done: a span such as `6h`, a time of RFC 3339, or `none`; see `deadline`."""
    max_cost: str | None = None
    """US dollars that the whole run may cost, or `none`."""
    prices: Prices = DEFAULT
    """What is counted with."""
    budget: Budget = field(default_factory=Budget)
    """How the vectors of a hosted service are checked, and how many texts are embedded again for that."""
    clock: Clock = field(default_factory=Clock)
    reached: Callable[[Step], object] = pass_by
    """Told of each step of the run, as it comes to it."""

    def __post_init__(self) -> None:
        if self.restart and self.retry_failed:
            raise InvalidArgument(
                "--restart forgets the failed rows that --retry-failed asks for: give one of them",
                field="--retry-failed",
            )
