"""From what a service sends back to a `BatchResult`: Arrow from ours, tagged rows in any order from Google's.

Google promises no order for large batches, so each request sent there carries a tag with its index (and its
own key, if it has one); the tag is taken off again here.
"""

from __future__ import annotations

import re
from dataclasses import replace
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


def in_order(batch: Batch, rows: Sequence[ResponseRow]) -> list[ResponseRow | None]:
    """Return the rows at the places of their requests; `None` where a stopped batch has no row.

    Rows without a tag are another client's and stand in their order. Among tagged rows, errors that lost
    their tag fill the places left over: which of them belongs where changes nothing but a message.

    Raises:
        DataLoss: a request has no row, or two.
    """
    count = batch.batch_stats.request_count or len(rows)
    if count > _MOST_REQUESTS:  # before there is a place for each of them
        raise DataLoss(f"{batch.name}: no batch has {count} requests")
    placed: list[ResponseRow | None] = [None] * count
    bare: list[ResponseRow] = []
    for row in rows:
        untagged = _untag(row)
        if untagged is None:
            bare.append(row)
            continue
        index, found = untagged
        if index >= count or placed[index] is not None:
            raise DataLoss(f"{batch.name}: request {index} of {count} stands twice in the results")
        placed[index] = found
    free = [index for index, found in enumerate(placed) if found is None]
    own = len(bare) < len(rows)
    if len(bare) > len(free) or (own and any(row.error is None for row in bare)):
        raise DataLoss(f"{batch.name}: {len(rows)} results for {count} requests, and they cannot be matched")
    for index, row in zip(free, bare, strict=False):
        placed[index] = row
    if len(bare) < len(free) and batch.state is State.COMPLETED:
        raise DataLoss(f"{batch.name}: request {free[len(bare)]} of {count} is missing from the results")
    return placed


def with_missing(rows: Sequence[ResponseRow], count: int, error: RequestError) -> list[ResponseRow]:
    """Return the rows, and an error for each of `count` tagged requests that none of them belongs to.

    Errors that say nothing of whose they are take the first of these places; there may be more of them than
    places, for some files tell of errors twice.
    """
    tagged = [row for row in rows if row.error is None or _untag(row) is not None]
    strays = [row.error for row in rows if row.error is not None and _untag(row) is None]
    there = {found[0] for row in tagged if (found := _untag(row)) is not None}
    missing = [index for index in range(count) if index not in there]
    errors = [*filter(None, strays[: len(missing)]), *[error] * max(0, len(missing) - len(strays))]
    lost = [
        ResponseRow(f"r-{index}", None, None, one, None) for index, one in zip(missing, errors, strict=True)
    ]
    return [*tagged, *lost]


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


def from_lines(batch: Batch, lines: ResponseLines, dimensions: int | None) -> BatchResult:
    """Return the result of a responses file."""
    return from_rows(batch, lines.rows(), dimensions)


def from_operation(batch: Batch, body: bytes, dimensions: int | None) -> BatchResult | None:
    """Return the result of an operation with inlined responses; `None` if it has none yet."""
    rows = read_responses.parse_items(body)
    return None if rows is None else from_rows(batch, rows, dimensions)


def from_rows(batch: Batch, rows: Sequence[ResponseRow], dimensions: int | None) -> BatchResult:
    """Return the result of rows in any order; `dimensions` truncates them, `None` leaves them as they are."""
    placed = in_order(batch, rows)
    widest = max((len(row.values) for row in placed if row and row.values is not None), default=0)
    columns = _columns(batch, len(placed), min(widest, dimensions or widest))
    for index, row in enumerate(placed):
        if row is None:
            columns.errors[index] = _unserved(batch)
            continue
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
