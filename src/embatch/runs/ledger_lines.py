"""The lines of a run's ledger: what each says, and what is made of it.

The first line says which run it is. Each further one is one of these:

    {"intent": {"number", "first", "rows", "requests", "tokens", "attempt", "fingerprint", "at"}}
        A create is about to go out to a provider without idempotency keys. Durable before it does.
    {"created": {"fingerprint", "at", "batch", "file", "why"}}
        What came of it. A batch without `why`: it is there (`file`: its input file, or null). A batch with
        `why`: it ended without rows, and another attempt may follow. No batch: nothing was created, and the
        same fingerprint may be intended again.
    {"block": {the fields of `Block`}}
        Its rows are durable, and its batch and input file may go.
    {"verdict": "done" | "rejected"}
        The output is in place. A block after it takes it back.
    {"quarantine": {"fingerprint", "at", "why", "abandoned"}}
        Nobody can tell what came of it, and people decide: a `created` line adopts a batch, a `quarantine`
        line with `abandoned` true gives it up, and another attempt may follow.

Times are seconds since 1970. A later line of a block, or of an intent, takes the place of an earlier one.
Version 1 had bare blocks, the verdict and no intents; it is read, and goes on as version 2. A reader that
does not know a version refuses the run: what was paid stands in lines that it cannot read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embatch.runs.parity import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.runs.intents import Intents


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of the input whose outcome is durable."""

    number: int
    first: int
    """0-based row number of its first row."""
    rows: int
    failed: int
    retryable: int
    """Failed rows whose text can be read: the only ones that another try can change."""
    duplicates: int
    """Rows whose text stood in the block before: equal texts were sent once."""
    cached: int
    """Texts answered from what earlier runs had embedded."""
    tokens: int
    """Tokens the model saw of the texts that were sent."""
    truncated: int
    cpu_seconds: float
    """Of the engine, for all tries of this block."""
    native: int
    """Dimensions of the vectors; 0 where no row has one."""
    model: str
    engine: Mapping[str, object] = field(default_factory=dict)
    """What computed the vectors: `identity` and the files it covers; empty where the target does not say."""
    notes: tuple[str, ...] = ()
    interactive_cpu_seconds: float | None = None
    """What its tokens cost that engine one text at a time; `None` where the service has not measured it."""
    sample: Sample | None = None
    """What the certificate found; `None` where nothing could be compared."""
    alignment: Mapping[str, Any] | None = None
    """Whether its vectors belong to their texts (`alignment.record`); `None` where a certificate says it."""
    batch: str = ""
    """The batch that worked it last, dropped from the service once this is durable; empty: none did."""
    part: str = ""
    size: int = 0
    """Bytes of the part; 0 in a ledger from before they were kept."""
    sha256: str = ""


def take(said: Any, intents: Intents) -> Block | None:
    """Take a line of a ledger into the intents; return the block if it is one.

    Raises KeyError and TypeError for what is no such line.
    """
    match said:
        case {"verdict": _}:
            return None
        case {"intent": intent}:
            intents.intend(intent)
            return None
        case {"created": outcome}:
            intents.created(outcome)
            return None
        case {"quarantine": left}:
            intents.quarantine(left)
            return None
    if not isinstance(said, dict):
        raise TypeError
    fields = said.get("block", said)
    sample = None if fields["sample"] is None else Sample(**fields["sample"])
    block = Block(**{**fields, "notes": tuple(fields["notes"]), "sample": sample})
    intents.done(block.number)
    return block
