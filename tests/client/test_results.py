"""BatchResult: order, gaps, fill, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embatch import Batch, BatchResult, Code, DataLoss, InvalidArgument, RequestError, State
from embatch.client.results import ResultBuilder

ERROR = RequestError(Code.INVALID_ARGUMENT, None, "the text is empty")
AGAIN = RequestError(Code.INTERNAL, None, "broke again")


def batch(model: str = "models/m") -> Batch:
    """Return a completed batch."""
    return Batch("batches/b", model, State.COMPLETED, "b", 0, None, None, None)


def result(*values: list[float] | None, model: str = "models/m", error: RequestError = ERROR) -> BatchResult:
    """Return a result with these embeddings; `None` stands for a failed request."""
    columns = ResultBuilder(len(values), max((len(one) for one in values if one), default=0))
    for index, one in enumerate(values):
        columns.keys[index] = f"k{index}"
        if one is None:
            columns.errors[index] = error
        else:
            columns.matrix[index, : len(one)] = one
            columns.widths[index] = len(one)
            columns.tokens[index] = 2
    return columns.result(batch(model))


def test_positions_are_kept_around_a_failed_request() -> None:
    """A failed request is None in the list, NaN in the array, and named with its error."""
    found = result([1, 2], None, [3, 4])
    assert [None if one is None else one.values.tolist() for one in found.embeddings] == [
        [1, 2],
        None,
        [3, 4],
    ]
    array = found.to_numpy(failed="nan")
    assert array.dtype == np.float32
    assert array.shape == (3, 2)
    assert array[[0, 2]].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(array[1]).all()
    assert found.failed_responses == [(1, ERROR)]
    assert len(found) == 3


def test_mixed_dimensions_are_lists_but_no_array() -> None:
    """Each embedding has its own length; one array of them is refused with the remedy."""
    found = result([1, 2, 3], [4])
    assert [one.dimensionality for one in found.embeddings if one] == [3, 1]
    with pytest.raises(InvalidArgument, match="output_dimensionality="):
        found.to_numpy()


def test_fill_puts_the_retry_at_the_failed_places() -> None:
    """What was mended stands where it failed; what failed again keeps its new error; keys stay."""
    first = result([1, 1], None, [2, 2], None, None)
    filled = first.fill(result([8, 8], None, [9, 9], error=AGAIN))
    values = [None if one is None else one.values.tolist() for one in filled.embeddings]
    assert values == [[1, 1], [8, 8], [2, 2], None, [9, 9]]
    assert filled.failed_responses == [(3, AGAIN)]
    assert filled.keys == ["k0", "k1", "k2", "k3", "k4"]
    assert first.failed_responses == [(1, ERROR), (3, ERROR), (4, ERROR)], "the first result is not changed"
    assert filled.tokens.tolist() == [2, 2, 2, 0, 2]


def test_fill_of_a_batch_in_which_everything_failed() -> None:
    """A result without any dimensions takes those of the retry."""
    assert result(None, None).fill(result([1, 2], [3, 4])).to_numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("retry", "says"),
    [
        (result([8, 8]), "2 requests failed and the retry has 1"),
        (result([8, 8], [9, 9], model="models/other"), "do not fit together"),
        (result([8], [9]), "the same output_dimensionality"),
    ],
    ids=["count", "model", "dimensions"],
)
def test_fill_refuses_what_does_not_belong(retry: BatchResult, says: str) -> None:
    """Another count, model or width would put vectors beside texts they do not belong to."""
    with pytest.raises(InvalidArgument, match=says):
        result([1, 1], None, None).fill(retry)


@pytest.mark.parametrize("retry", [5, None, [[1.0]], batch()], ids=["number", "none", "list", "batch"])
def test_fill_refuses_what_is_no_result(retry: Any) -> None:
    """A batch, whose embeddings have to be read first, and what else somebody hands over."""
    with pytest.raises(InvalidArgument, match="retry must be the result of a batch") as refused:
        result([1, 1], None).fill(retry)
    assert refused.value.field == "retry"


def test_every_request_needs_exactly_one_outcome() -> None:
    """A request with neither embedding nor error, or with both, is data loss, never a quiet gap."""
    gap = ResultBuilder(2, 1)
    gap.matrix[0], gap.widths[0] = 1, 1
    with pytest.raises(DataLoss, match="request 1 has neither"):
        gap.result(batch())
    gap.errors = {0: ERROR, 1: ERROR}
    with pytest.raises(DataLoss, match="request 0 has both"):
        gap.result(batch())
