"""How large the blocks of a run are, each of which is one batch: decided by its first call, for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.errors import InvalidArgument
from embatch.runs.in_flight import TOKEN_BYTES
from embatch.runs.sources import BLOCK_BYTES, BLOCK_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.client.providers.provider import Capabilities
    from embatch.runs.ledger import Ledger

_ROWS: Final = 100_000
"""Most rows, where nothing else says less: as many results are held in memory at once."""
_VECTOR_BYTES: Final = 256 << 20
"""Most bytes of their vectors."""
_DIMENSIONS: Final = 3072
"""Of vectors whose number of dimensions nobody asked for."""
_LINE: Final = 2
"""How many times as long as its text a line of an input file is, at most, of texts as they usually are."""


@dataclass(frozen=True, slots=True)
class BlockSize:
    """A block ends at its rows or at the bytes of its texts, whichever comes first."""

    rows: int
    bytes: int

    @classmethod
    def of(cls, can: Capabilities, rows: int | None, dimensions: Sequence[int]) -> BlockSize:
        """Return the size of blocks at a provider.

        On an embatch service blocks are some minutes of work. Where batches wait for hours however small they
        are, a block is the largest that the provider's limits and our memory allow: half of the tokens that
        may be in flight, so that one is worked while another one is read.

        Args:
            can: the provider's limits.
            rows: as its user said; `None` for the usual number.
            dimensions: of the vectors, as they were asked for; none for as many as the model gives.

        Raises:
            InvalidArgument: more rows than the provider takes in a batch.
        """
        if can.batches_in_flight is None:
            return cls(rows or BLOCK_ROWS, BLOCK_BYTES)
        if rows is not None and can.file_requests is not None and rows > can.file_requests:
            raise InvalidArgument(
                f"--block-rows {rows}: a batch has at most {can.file_requests:,} requests there",
                field="--block-rows",
            )
        if rows is None:
            fitting = _VECTOR_BYTES // (4 * max(dimensions, default=_DIMENSIONS))
            rows = max(1, min(_ROWS, fitting, can.file_requests or _ROWS))
        size = BLOCK_BYTES
        if can.file_bytes is not None:
            size = min(size, can.file_bytes // _LINE)
        if can.tokens_in_flight is not None:
            size = min(size, can.tokens_in_flight // 2 * TOKEN_BYTES)
        return cls(rows, size)

    @classmethod
    def kept(cls, ledger: Ledger) -> BlockSize:
        """Return the size of a run's blocks, as its first call decided it."""
        rows, size = ledger.about.get("block rows"), ledger.begun.get("block bytes")
        assert isinstance(rows, int)  # noqa: S101
        return cls(rows, size if isinstance(size, int) else BLOCK_BYTES)
