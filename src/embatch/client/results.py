"""What a finished batch gave: embeddings in input order, and which requests failed and why."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embatch.client import arguments
from embatch.errors import DataLoss, FailedPrecondition, FailedRows, InvalidArgument
from embatch.vectors import ContentEmbedding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from embatch.batch import Batch
    from embatch.errors import RequestError
    from embatch.vectors import Vectors


@dataclass(frozen=True, eq=False, repr=False)
class BatchResult:
    """The embeddings of a batch. Everything stands in the order of the requests, failed ones included.

    Attributes:
        batch: the batch as it was when the results were read.
        keys: the key of each request, `None` where it had none.
        metadata: the metadata of each request, `None` where it had none.
        tokens: tokens the model saw of each text, int32 (n,); 0 for a failed one or where the service did
            not say.
        truncated: whether each text was longer than the model takes and was cut, bool (n,).
        failed_responses: position and error of each request that failed, by position.
    """

    batch: Batch
    keys: list[str | None]
    metadata: list[Mapping[str, Any] | None]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    failed_responses: list[tuple[int, RequestError]]
    matrix: Vectors
    """float32 (n, widest); what a shorter or failed row does not fill is NaN. Use `to_numpy`."""
    widths: NDArray[np.int32]
    """Dimensions of each embedding, int32 (n,); 0 where there is none."""

    def __repr__(self) -> str:
        failed = len(self.failed_responses)
        return f"<BatchResult of {self.batch.name}: {len(self)} requests, {failed} failed>"

    def __len__(self) -> int:
        """Return how many requests the batch had."""
        return len(self.widths)

    @cached_property
    def embeddings(self) -> list[ContentEmbedding | None]:
        """One embedding a request, `None` where it failed."""
        return [
            ContentEmbedding(row[:width]) if width else None
            for row, width in zip(self.matrix, self.widths.tolist(), strict=True)
        ]

    def to_numpy(self, *, failed: Literal["warn", "nan", "raise"] = "warn") -> Vectors:
        """Return all embeddings as one array, float32 (n, dimensions); the row of a failed request is NaN.

        The array is this result's own: copy it before changing it.

        Args:
            failed: what to do where a request failed: `warn` (a `FailedRows`) and return the NaN with the
                rest, `nan` the same without a word, or `raise`.

        Raises:
            InvalidArgument: the embeddings have different numbers of dimensions; read them again with
                `output_dimensionality`.
            FailedPrecondition: a request failed and `failed` is `raise`.
        """
        if failed not in ("warn", "nan", "raise"):
            raise InvalidArgument('failed must be "warn", "nan" or "raise"', field="failed")
        if len(np.unique(self.widths[self.widths > 0])) > 1:
            raise InvalidArgument(
                "the embeddings have different numbers of dimensions: read them with output_dimensionality=",
                field="output_dimensionality",
            )
        if self.failed_responses and failed != "nan":
            index, error = self.failed_responses[0]
            said = (
                f"{len(self.failed_responses)} of {len(self)} requests failed, the first at {index} "
                f"({error.reason.value if error.reason else error.code.name}): failed_responses names them"
            )
            if failed == "raise":
                raise FailedPrecondition(said)
            warnings.warn(
                f'{said}, their rows are NaN; to_numpy(failed="nan") says that this is meant',
                FailedRows,
                stacklevel=2,
            )
        return self.matrix

    def fill(self, retry: BatchResult) -> BatchResult:
        """Return this result with what `retry_failed` made good at the places of the failed requests.

        What failed again keeps its new error. Keys and metadata stay the first batch's.

        Raises:
            InvalidArgument: `retry` is not a retry of exactly the failed requests with the same model and
                dimensions.
        """
        if not isinstance(retry, BatchResult):
            arguments.refuse("retry", "the result of a batch (get_batch_embeddings)", retry)
        places = [index for index, _ in self.failed_responses]
        if len(retry) != len(places):
            raise InvalidArgument(
                f"{len(places)} requests failed and the retry has {len(retry)}: it must hold exactly those",
                field="retry",
            )
        if retry.batch.worked_by != self.batch.worked_by:
            raise InvalidArgument(
                f"embeddings of {retry.batch.worked_by} and {self.batch.worked_by} do not fit together",
                field="retry",
            )
        mended = np.flatnonzero(retry.widths)
        uniform = set(self.widths[self.widths > 0].tolist())
        if len(uniform) == 1 and uniform | set(retry.widths[mended].tolist()) != uniform:
            raise InvalidArgument(
                f"the first embeddings have {uniform.pop()} dimensions, the retry others: give retry_failed "
                "the same output_dimensionality",
                field="retry",
            )
        columns = ResultBuilder(len(self), max(self.matrix.shape[1], retry.matrix.shape[1]))
        columns.matrix[:, : self.matrix.shape[1]] = self.matrix
        columns.widths[:], columns.tokens[:] = self.widths, self.tokens
        columns.truncated[:] = self.truncated
        at = np.asarray(places, np.intp)
        columns.matrix[at, : retry.matrix.shape[1]] = retry.matrix
        columns.widths[at], columns.tokens[at] = retry.widths, retry.tokens
        columns.truncated[at] = retry.truncated
        columns.errors = {places[index]: error for index, error in retry.failed_responses}
        columns.keys, columns.metadata = list(self.keys), list(self.metadata)
        return columns.result(self.batch)


class ResultBuilder:
    """A result while it is being read: every request gets exactly one embedding or one error."""

    def __init__(self, count: int, dimensions: int) -> None:
        self.matrix: Vectors = np.empty((count, dimensions), np.float32)
        self.widths = np.zeros(count, np.int32)
        self.tokens = np.zeros(count, np.int32)
        self.truncated = np.zeros(count, np.bool_)
        self.keys: list[str | None] = [None] * count
        self.metadata: list[Mapping[str, Any] | None] = [None] * count
        self.errors: dict[int, RequestError] = {}

    def result(self, batch: Batch) -> BatchResult:
        """Return the finished result; what a shorter or failed row does not fill becomes NaN.

        Raises:
            DataLoss: a request has neither embedding nor error, or both.
        """
        failed = np.zeros(len(self.widths), np.bool_)
        failed[list(self.errors)] = True
        if bool(np.any(failed == (self.widths > 0))):
            index = int(np.flatnonzero(failed == (self.widths > 0))[0])
            raise DataLoss(
                f"{batch.name}: request {index} has {'both' if failed[index] else 'neither'} an embedding "
                f"{'and' if failed[index] else 'nor'} an error"
            )
        widest = self.matrix.shape[1]
        short = np.flatnonzero(self.widths < widest)
        self.matrix[short] = np.where(
            np.arange(widest) < self.widths[short, None], self.matrix[short], np.float32(np.nan)
        )
        return BatchResult(
            batch,
            self.keys,
            self.metadata,
            self.tokens,
            self.truncated,
            sorted(self.errors.items()),
            self.matrix,
            self.widths,
        )
