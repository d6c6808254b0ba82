"""The plan of a shard: pure, complete, within its budget, and always the same."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embatch.engine.packing import FILLER, distinct, pack_blocks, pack_padded
from embatch.engine.protocol import Shape

TEXTS = st.lists(st.text(max_size=3), max_size=60)
MAX_TOKENS = st.shared(st.integers(1, 600), key="most")
LENGTHS = MAX_TOKENS.flatmap(lambda most: st.lists(st.integers(0, most), max_size=200))
BUDGETS = st.integers(1, 10_000)
MULTIPLES = st.sampled_from([1, 2, 8, 16, 64])


@given(TEXTS)
def test_distinct_keeps_every_text_once_and_finds_all_again(texts: list[str]) -> None:
    """No text is lost or doubled, and order of first appearance holds."""
    found = distinct(texts)
    assert [found.texts[place] for place in found.of] == texts
    assert list(found.texts) == list(dict.fromkeys(texts))


@given(LENGTHS, BUDGETS, MULTIPLES, MAX_TOKENS)
def test_every_row_is_packed_once_and_fits(lengths: list[int], budget: int, multiple: int, most: int) -> None:
    """Each index appears exactly once, in a shape that holds it, and no shape exceeds budget or model."""
    plan = pack_padded(lengths, budget, multiple, most)
    assert sorted(row for part in plan for row in part.rows) == list(range(len(lengths)))
    for part in plan:
        assert part.rows
        assert part.shape.rows == len(part.rows)
        longest = max(lengths[row] for row in part.rows)
        assert max(1, longest) <= part.shape.tokens <= most
        assert part.shape.rows * part.shape.tokens <= budget or part.shape.rows == 1
        # Rounded up no further than needed.
        assert part.shape.tokens < max(1, longest) + multiple
        assert part.shape.tokens % multiple == 0 or part.shape.tokens == most


@given(LENGTHS, BUDGETS, MULTIPLES, MAX_TOKENS)
def test_like_lengths_stand_together(lengths: list[int], budget: int, multiple: int, most: int) -> None:
    """Rows run from longest to shortest, equal lengths in their own order: nothing depends on chance."""
    plan = pack_padded(lengths, budget, multiple, most)
    order = [row for part in plan for row in part.rows]
    assert order == sorted(order, key=lambda row: (-lengths[row], row))
    assert plan == pack_padded(list(lengths), budget, multiple, most)


@given(LENGTHS, BUDGETS, MULTIPLES, MAX_TOKENS)
def test_micro_batches_are_full_and_hold_little_filler(
    lengths: list[int], budget: int, multiple: int, most: int
) -> None:
    """One more row would exceed the budget, or be so much shorter that too much of it would be padding."""
    plan = pack_padded(lengths, budget, multiple, most)

    def planned(row: int) -> int:
        return min(max(multiple, -(-lengths[row] // multiple) * multiple), max(most, lengths[row]))

    for part, following in itertools.zip_longest(plan, plan[1:]):
        size = part.shape.rows * part.shape.tokens
        filled = sum(map(planned, part.rows))
        assert filled >= (1 - FILLER) * size
        if following is not None:
            larger = (part.shape.rows + 1) * part.shape.tokens
            more = filled + planned(following.rows[0])
            assert larger > budget or more < (1 - FILLER) * larger


def test_a_plan_that_can_be_read() -> None:
    """The longest first; lengths rounded up to 16, never above what the model takes."""
    plan = pack_padded([3, 250, 17, 17, 3], budget=64, multiple=16, max_tokens=250)
    assert [(part.rows, part.shape) for part in plan] == [
        ((1,), Shape(1, 250)),
        ((2, 3), Shape(2, 32)),
        ((0, 4), Shape(2, 16)),
    ]
    assert pack_padded([], budget=64, multiple=16, max_tokens=250) == ()


BLOCKS = st.sampled_from([1, 7, 64, 512])


@given(LENGTHS, BUDGETS, BLOCKS)
def test_every_row_is_laid_once(lengths: list[int], budget: int, block: int) -> None:
    """Each index appears exactly once; no micro-batch is larger than the budget, long rows are alone."""
    laid = pack_blocks(lengths, budget, block)
    assert sorted(row for part in laid for row in part.rows) == list(range(len(lengths)))
    assert laid == pack_blocks(list(lengths), budget, block)
    for part in laid:
        sizes = [lengths[row] for row in part.rows]
        assert part.shape == Shape(len(sizes), max(1, *sizes))
        if max(sizes) <= min(block, budget):
            assert sum(sizes) <= max(1, budget // block) * min(block, budget)


@given(LENGTHS, BLOCKS)
def test_whoever_fills_block_after_block_gets_the_planned_ones(lengths: list[int], block: int) -> None:
    """In the order of the rows, no row of a later block fits into an earlier one."""
    blocks = [[lengths[row] for row in part.rows] for part in pack_blocks(lengths, block, block)]
    together = pack_blocks(lengths, 8 * block, block)
    assert [row for part in together for row in part.rows] == [
        row for part in pack_blocks(lengths, block, block) for row in part.rows
    ]
    found: list[list[int]] = []
    for size in (size for sizes in blocks for size in sizes):
        if not found or sum(found[-1]) + size > block:
            found.append([])
        found[-1].append(size)
    assert found == blocks


@given(LENGTHS, BLOCKS, st.integers(1, 9))
def test_blocks_are_shared_out_over_streams(lengths: list[int], block: int, streams: int) -> None:
    """Whatever runs at once: the same blocks in the same order, and no stream does two more than another."""
    alone = pack_blocks(lengths, block, block)
    shared = pack_blocks(lengths, 8 * block, block, streams)
    assert [row for part in shared for row in part.rows] == [row for part in alone for row in part.rows]
    if alone:
        turns = math.ceil(len(alone) / 8 / streams)
        starts = {part.rows[0] for part in shared}
        sizes = np.diff([*(n for n, part in enumerate(alone) if part.rows[0] in starts), len(alone)])
        assert len(shared) <= turns * streams
        assert sizes.max() == math.ceil(len(alone) / (turns * streams)) <= 8


def test_blocks_that_can_be_read() -> None:
    """A block begins with the longest and goes on with the longest that fits; equal ones keep their order."""
    laid = pack_blocks([100, 500, 12, 300, 12, 200], budget=1024, block=512)
    assert [part.rows for part in laid] == [(1, 2, 3, 5, 4), (0,)]
    assert [part.shape for part in laid] == [Shape(5, 500), Shape(1, 100)]
    assert pack_blocks([], budget=1024, block=512) == ()
    assert [part.rows for part in pack_blocks([512] * 5, 4096, 512, streams=2)] == [(0, 1, 2), (3, 4)]
    assert [part.rows for part in pack_blocks([30, 40], budget=1, block=512)] == [(1,), (0,)]


def test_blocks_of_real_lengths_are_full() -> None:
    """Lengths as passages have them leave less than a hundredth of the blocks empty."""
    lengths = np.random.default_rng(4).gamma(3, 40, 2000).astype(int).clip(3, 256).tolist()
    blocks = pack_blocks(lengths, 512, 512)
    assert sum(lengths) / (512 * len(blocks)) > 0.99
