"""What the benchmarks count and compute is what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.control import Sizes, one_batch, texts
from benchmarks.cost import groups
from benchmarks.kernel import stage_operations, timed
from benchmarks.polling import percentiles, poll
from benchmarks.profiled import STAGES
from benchmarks.rates import matrix_rate
from benchmarks.roofline import operations
from benchmarks.rounds import ratios
from benchmarks.served import Spent, serving

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = Sizes(1200, 1, 1, 1, 1, 1, 64, 8)
CONFIG = {"hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 2}


def test_operations_are_those_of_the_products() -> None:
    """Counted product by product, of one layer after the other, for two texts."""
    linear = attention = 0
    for tokens in (3, 5):
        for _ in range(2):
            sides = [(6, 6)] * 4 + [(6, 10), (10, 6)]
            linear += sum(2 * tokens * inner * columns for inner, columns in sides)
            attention += 2 * (2 * tokens * 6 * tokens)  # scores, then mixing, all heads together
    found = operations(CONFIG, [3, 5])
    assert (found.linear, found.attention, found.total) == (linear, attention, linear + attention)


def test_stages_share_all_operations() -> None:
    """Nothing is counted twice or left out, and what is no product of matrices counts nothing."""
    found = stage_operations(CONFIG, [3, 5])
    assert sum(found.values()) == operations(CONFIG, [3, 5]).total
    assert found["query, key, value"] == 3 * found["output"] == 3 * 2 * 2 * 8 * 6 * 6
    assert [name for name in STAGES if not found[name]] == ["embeddings, pooling", "norms"]


def test_each_round_begins_with_another_way() -> None:
    """Whoever comes first in a round finds the machine as the one before left it."""
    asked: list[str] = []

    def way(name: str) -> Callable[[], float]:
        def once() -> float:
            asked.append(name)
            return float(len(asked))

        return once

    found = timed({name: way(name) for name in "abc"}, 2)
    assert "".join(asked) == "abcbca"
    assert found == {"a": [1.0, 6.0], "b": [2.0, 4.0], "c": [3.0, 5.0]}


def test_texts_are_distinct_and_as_long_as_asked() -> None:
    """So that nothing is merged, and bytes a row are known."""
    found = texts(2000, 64, "a")
    assert len(set(found)) == 2000
    assert {len(text.encode()) for text in found} == {64}
    assert not set(found) & set(texts(2000, 64, "b"))


def test_sizes_end_with_what_was_asked() -> None:
    """The steps are powers of ten, and the largest is the given one."""
    assert SIZES.steps == [1000, 1200]
    assert Sizes(100, 1, 1, 1, 1, 1, 64, 8).steps == [100]


def test_percentiles_are_in_milliseconds() -> None:
    """Of one value it is that value; of a hundred, those that stand there."""
    assert percentiles([0.25]) == pytest.approx({"p50_ms": 250.0, "p99_ms": 250.0})
    assert percentiles(np.linspace(0, 1, 101).tolist()) == pytest.approx(
        {"p50_ms": 500.0, "p99_ms": 990.0}, abs=10.0
    )


def test_ratios_are_within_rounds() -> None:
    """A round that was slow for both counts like any other."""
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == (3.0, 2.0, 4.0)


def test_groups_hold_every_text_once_in_order() -> None:
    """The last one may be smaller."""
    assert groups([str(number) for number in range(10)]) == [list("01234567"), ["8", "9"]]


@pytest.mark.parametrize("library", ["numpy", "openvino"])
def test_a_matrix_rate_is_a_rate(library: str) -> None:
    """Between what any processor does and what none does."""
    assert 1e7 < matrix_rate(library, "f32", (64, 32, 16), 2) < 1e14


def test_a_service_is_measured_with_its_engines() -> None:
    """CPU seconds of both grow with a batch, its pages are counted, and all of it can be polled."""
    with serving(SIZES.flags) as served, served.client() as client:
        before = served.spent()
        row = one_batch(served, client, texts(12_000, 64, "test"))
        spent = served.spent() - before
        assert row["rows"] == 12_000
        assert spent.service > 0
        assert spent.engines > 0
        assert served.database_bytes() > 10_000
        batch = client.async_batch_embed_contents(["a text"], display_name="test")
        found = poll(str(served.url), batch.name, 3, 0.0)
        assert found["polls"] >= 3
        data = served.data
    assert not data.exists()
    assert (Spent(3.0, 5.0) - Spent(1.0, 1.0)).total == 6.0
