"""How large blocks are, by what a provider takes; and one that is kept on disk comes back as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from embatch import InvalidArgument
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Capabilities
from embatch.runs.block_size import BlockSize
from embatch.runs.in_flight import TOKEN_BYTES, InFlight
from embatch.runs.ledger import Ledger
from embatch.runs.sources import BLOCK_BYTES, BLOCK_ROWS, Rows

if TYPE_CHECKING:
    from pathlib import Path

HOSTED = Capabilities(inline_bytes=0, inline_requests=0, interactive_requests=1, batches_in_flight=90)


def test_on_an_embatch_service_they_are_as_ever() -> None:
    """Twenty thousand rows, or as many as its user says."""
    assert BlockSize.of(EMBATCH.capabilities, None, ()) == BlockSize(BLOCK_ROWS, BLOCK_BYTES)
    assert BlockSize.of(EMBATCH.capabilities, 7, (64,)) == BlockSize(7, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("limits", "dimensions", "rows", "size"),
    [
        ({}, (128,), 100_000, BLOCK_BYTES),
        ({}, (), 21_845, BLOCK_BYTES),  # a quarter of a GiB of vectors
        ({}, (256, 1024), 65_536, BLOCK_BYTES),
        ({"file_requests": 30_000}, (128,), 30_000, BLOCK_BYTES),
        ({"file_bytes": 1_000_000}, (128,), 100_000, 500_000),
        # Half of what may be in flight, and the least of all limits.
        ({"tokens_in_flight": 500_000}, (128,), 100_000, 250_000 * TOKEN_BYTES),
        ({"tokens_in_flight": 500_000, "file_bytes": 2 << 30}, (), 21_845, 250_000 * TOKEN_BYTES),
    ],
)
def test_on_a_hosted_target_they_are_the_largest_that_its_limits_allow(
    limits: dict[str, int], dimensions: tuple[int, ...], rows: int, size: int
) -> None:
    """Rows, bytes, tokens, and what is held in memory."""
    assert BlockSize.of(replace(HOSTED, **limits), None, dimensions) == BlockSize(rows, size)  # type: ignore[arg-type]


def test_more_rows_than_a_batch_may_have_are_refused() -> None:
    """Before anything is sent; fewer are as the user says."""
    can = replace(HOSTED, file_requests=30_000)
    assert BlockSize.of(can, 30_000, ()).rows == 30_000
    with pytest.raises(InvalidArgument, match="at most 30,000 requests") as refused:
        BlockSize.of(can, 30_001, ())
    assert refused.value.field == "--block-rows"


@pytest.mark.parametrize("ids", [pa.array([7, 8, 9, 10]), pa.array(["a", None, "ü", ""])])
def test_a_block_that_is_kept_on_disk_comes_back_as_it_was(tmp_path: Path, ids: pa.Array[Any]) -> None:
    """Texts that no encoding has, rows that cannot be read, ids of any type; the file goes."""
    ledger = Ledger.open(tmp_path / "out.embatch", {"input": "x"})
    rows = Rows(40, ids, ["one \ud800", None, "one \ud800", ""], {1: "line 42: broken"})
    block, path = InFlight.of(3, rows, ledger), tmp_path / "parked"
    before = block.sent(ledger)
    assert (block.rows, block.sent_rows, block.requests, block.failed) == (4, 3, 2, 1)
    block.park(path)
    assert path.exists()
    block.park(path)  # it is there already
    after = block.sent(ledger)
    assert after is not before
    assert (after.rows.first, after.rows.texts, after.rows.faults) == (40, rows.texts, rows.faults)
    assert after.rows.ids == ids
    assert (after.texts, after.places) == (before.texts, before.places)
    assert not path.exists()
    assert block.sent(ledger) is after
    ledger.close()
