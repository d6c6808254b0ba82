"""From what a service sends back to a `BatchResult`: Arrow from ours, tagged rows in any order from Google's.

Google promises no order for large batches, so each request sent there carries a tag with its index (and its
own key, if it has one); the tag is taken off again here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from embatch.client.calls import ANSWER_BYTES
from embatch.client.results import ResultBuilder
from embatch.errors import Code, DataLoss, InvalidArgument, Reason, RequestError
from embatch.states import State
from embatch.vectors import truncate, unit
from embatch.wire.arrow import read_results
from embatch.wire.gemini import read_responses
from embatch.wire.google.rows import ResponseRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embatch.batch import Batch, Request
    from embatch.client.results import BatchResult

R = TypeVar("R")

TAG: Final = "embatch.request"
"""Name under which an inline request's tag stands in its metadata; in a file it is the line's key."""
LINE_BYTES: Final = 8 << 20
"""Most bytes of a line of results: a hundred times what an embedding and its key take as text."""
_REQUEST_BYTES: Final = 512 << 10
"""Most bytes of one request in a stream of results: metadata, key and the largest embedding, with room."""
_MOST_REQUESTS: Final = 1 << 24
_MOST_DIMENSIONS: Final = 1 << 16
_MISSING: Final = RequestError(
    Code.DATA_LOSS, Reason.DATA_LOSS, "the service gave no result for it: it can be tried again"
)
_UNLIKE: Final = RequestError(
    Code.DATA_LOSS,
    Reason.DATA_LOSS,
    "the service gave two results for it that differ, and one is another's: it can be tried again",
)
_FORM: Final = re.compile(r"r-(0|[1-9][0-9]{0,11})(?::(.*))?", re.DOTALL)


def tagged_line(request: Request, index: int) -> Request:
    """Return the request of a file's line: its key carries the index.

    Raises:
        InvalidArgument: it has metadata, which Google's files cannot carry.
    """
    if request.metadata is not None:
        raise InvalidArgument(
            "a batch of this size goes to Google as a file, whose lines carry no metadata: give each "
            "request a key and keep the metadata beside it, or submit fewer at a time",
            field=f"requests[{index}].metadata",
        )
    return replace(request, key=_tag(request, index))


def tagged_inline(request: Request, index: int) -> Request:
    """Return the inline request: its metadata carries the index."""
    return replace(request, key=None, metadata={**(request.metadata or {}), TAG: _tag(request, index)})


def _tag(request: Request, index: int) -> str:
    return f"r-{index}" if request.key is None else f"r-{index}:{request.key}"


def _untag(found: ResponseRow) -> tuple[int, ResponseRow] | None:
    """Return index and row as they were before tagging; `None` for a row that carries no tag."""
    metadata = dict(found.metadata or {})
    word = metadata.pop(TAG, None) if TAG in metadata else found.key
    match = _FORM.fullmatch(word) if isinstance(word, str) else None
    if match is None:
        return None
    return int(match[1]), replace(found, key=match[2], metadata=metadata or None)


@dataclass(slots=True)
class _Placed:
    """Rows at the places of their requests, and what was odd about how they came."""

    rows: list[ResponseRow | None]
    """`None` where there is none."""
    own: bool
    """Whether they carry our tags; another client's stand in their order."""
    bare: list[ResponseRow]
    """Those without a tag."""
    repeated: int = 0
    """How many came once more, alike."""
    unlike: int = 0
    """How many requests have results that differ."""

    @property
    def free(self) -> list[int]:
        """Return the places that no tagged row takes."""
        return [index for index, row in enumerate(self.rows) if row is None]


def _placed(batch: Batch, rows: Sequence[ResponseRow]) -> _Placed:
    """Put the rows that carry a tag at their places. Raises DataLoss for one that is no request's."""
    untagged = [_untag(row) for row in rows]
    highest = max((found[0] + 1 for found in untagged if found is not None), default=0)
    count = batch.batch_stats.request_count or max(highest, len(rows) if not highest else 0)
    if count > _MOST_REQUESTS:  # before there is a place for each of them
        raise DataLoss(f"{batch.name}: no batch has {count} requests")
    if highest > count:
        raise DataLoss(f"{batch.name}: the results hold request {highest - 1}, and it has {count}")
    placed = _Placed([None] * count, highest > 0, [])
    for row, found in zip(rows, untagged, strict=True):
        if found is None:
            placed.bare.append(row)
            continue
        index, one = found
        before = placed.rows[index]
        if before is None:
            placed.rows[index] = one
        elif _alike(before, one):
            placed.repeated += 1
        elif before.error is not _UNLIKE:
            placed.unlike += 1
            placed.rows[index] = replace(before, values=None, error=_UNLIKE)
    return placed


def _alike(one: ResponseRow, other: ResponseRow) -> bool:
    if one.values is None or other.values is None:
        return one.values is other.values
    return np.array_equal(one.values, other.values)


def whole(batch: Batch, rows: Sequence[ResponseRow]) -> bool:
    """Whether there is a row for each request of a batch that is completed; of others nobody knows."""
    placed = _placed(batch, rows)
    return batch.state is not State.COMPLETED or (bool(rows) and len(placed.free) <= len(placed.bare))


def in_order(batch: Batch, rows: Sequence[ResponseRow]) -> tuple[list[ResponseRow], tuple[str, ...]]:
    """Return a row for each request, in order, and in words what was odd about how they came.

    Rows without a tag are another client's and stand in their order. Among tagged rows, errors that lost
    their tag fill the places left over: which of them belongs where changes nothing but a message. A request
    without a row fails alone, and so does one with two that differ: nobody knows which is its own. Two that
    are alike are one.

    Raises:
        DataLoss: a vector cannot be matched with its request.
    """
    placed = _placed(batch, rows)
    free, bare = placed.free, placed.bare
    if len(bare) > len(free) or (placed.own and any(row.error is None for row in bare)):
        raise DataLoss(
            f"{batch.name}: {len(rows)} results for {len(placed.rows)} requests, and they cannot be matched"
        )
    for index, row in zip(free, bare, strict=False):
        placed.rows[index] = row
    missing = free[len(bare) :]
    if missing and not placed.own and batch.state is State.COMPLETED:
        raise DataLoss(
            f"{batch.name}: request {missing[0]} of {len(placed.rows)} is missing from the results"
        )
    lost = _MISSING if batch.state is State.COMPLETED else _unserved(batch)
    for index in missing:
        placed.rows[index] = ResponseRow(None, None, None, lost, None)
    never = len(missing) if lost is _MISSING else 0
    counted = (
        (placed.repeated, "came twice, alike"),
        (placed.unlike, "came twice with different vectors: their requests failed, to be tried again"),
        (never, "never came: their requests failed, to be tried again"),
    )
    notes = tuple(f"{number} result{'s' * (number > 1)} {what}" for number, what in counted if number)
    return [row for row in placed.rows if row is not None], notes


def from_arrow(batch: Batch, content: bytearray) -> BatchResult:
    """Return the result of an Arrow stream, whose rows come in order.

    Raises:
        DataLoss: a request has no row, or two, or the stream is damaged.
    """
    parts = list(read_results.read_parts(content))
    count = batch.batch_stats.request_count
    following = 0
    for part in parts:
        size = len(part.index)
        if size and (part.index[0] != following or bool((part.index[1:] - part.index[:-1] != 1).any())):
            raise DataLoss(f"{batch.name}: the results are not in order from request {following} on")
        following += size
    if following != (count or following):
        raise DataLoss(f"{batch.name}: {following} results for {count} requests")
    widest = max((int(part.widths.max()) for part in parts if len(part.widths)), default=0)
    columns = _columns(batch, following, widest)
    columns.keys, columns.metadata = [], []
    for part in parts:
        first = len(columns.keys)
        rows = slice(first, first + len(part.index))
        if bool((part.widths == widest).all()):
            columns.matrix[rows] = part.values.reshape(len(part.index), widest)
        else:  # row by row the first `width` places are filled, in the order in which the numbers stand
            columns.matrix[rows][np.arange(widest) < part.widths[:, None]] = part.values
        columns.widths[rows], columns.tokens[rows] = part.widths, part.tokens
        columns.truncated[rows] = part.truncated
        columns.keys += part.keys
        columns.metadata += part.metadata
        columns.errors.update({first + row: error for row, error in part.errors.items()})
    return columns.result(batch)


def from_rows(batch: Batch, rows: Sequence[ResponseRow], dimensions: int | None) -> BatchResult:
    """Return the result of rows in any order; `dimensions` truncates them, `None` leaves them as they are."""
    placed, notes = in_order(batch, rows)
    batch = replace(batch, notes=(*batch.notes, *notes))
    widest = max((len(row.values) for row in placed if row.values is not None), default=0)
    columns = _columns(batch, len(placed), min(widest, dimensions or widest))
    for index, row in enumerate(placed):
        columns.keys[index], columns.metadata[index] = row.key, row.metadata
        if row.error is not None:
            columns.errors[index] = row.error
        if row.values is not None:
            # Google normalises the model's native dimensions alone.
            values = unit(row.values if dimensions is None else truncate(row.values, dimensions))
            columns.matrix[index, : len(values)] = values
            columns.widths[index] = len(values)
            columns.tokens[index], columns.truncated[index] = row.tokens or 0, row.truncated
    return columns.result(batch)


def _columns(batch: Batch, count: int, widest: int) -> ResultBuilder:
    if widest > _MOST_DIMENSIONS:  # one such row would make all others as wide
        raise DataLoss(f"{batch.name}: no embedding has {widest} dimensions")
    return ResultBuilder(count, widest)


def _unserved(batch: Batch) -> RequestError:
    if batch.state is State.EXPIRED:
        return RequestError(
            Code.DEADLINE_EXCEEDED, Reason.EXPIRED, "the batch expired before this request's turn"
        )
    return RequestError(
        Code.CANCELLED, Reason.CANCELLED, "the batch was cancelled before this request's turn"
    )


class Buffer:
    """Keeps an answer in one piece of memory.

    Args:
        requests: how many the batch has, which bounds the answer; 0 where nobody knows.
    """

    def __init__(self, requests: int) -> None:
        self._most = requests * _REQUEST_BYTES + ANSWER_BYTES
        self.content = bytearray()

    def begin(self) -> None:
        """Forget what a broken answer brought."""
        self.content = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `DataLoss` where they are more than the batch can have."""
        if len(self.content) + len(data) > self._most:
            raise DataLoss(f"the results of the batch have more than {self._most} bytes: they were given up")
        self.content += data


class LineReader(Generic[R]):
    """Decodes a file of results line by line as it arrives: vectors take a fifth of the room of their text.

    Args:
        requests: how many the batch has, of which each may stand there twice; 0 where nobody knows.
        parse: reads a line, which is not blank.
    """

    def __init__(self, requests: int, parse: Callable[[bytes], R]) -> None:
        self._most, self._parse = 2 * requests, parse
        self.begin()

    def begin(self) -> None:
        """Forget what a broken answer brought."""
        self._held: list[bytes] = []
        self._size = 0
        self._rows: list[R] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `DataLoss` for an endless line, or more lines than requests."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            # A line is put together once, however many pieces it came in.
            self._line(b"".join([*self._held, part]))
            self._held, self._size = [], 0
        self._held.append(rest)
        self._size += len(rest)
        if self._size > LINE_BYTES:
            raise DataLoss(f"a line of the results has more than {LINE_BYTES} bytes: they were given up")

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        if len(self._rows) == self._most > 0:
            raise DataLoss(f"the results have more than {self._most} lines, two for each request")
        self._rows.append(self._parse(line))

    def rows(self) -> list[R]:
        """Return all rows once the answer, or one of several, is complete."""
        self.feed(b"\n")
        return self._rows


class ResponseLines(LineReader[ResponseRow]):
    """Decodes a responses file of Gemini's."""

    def __init__(self, requests: int) -> None:
        super().__init__(requests, read_responses.parse_line)
