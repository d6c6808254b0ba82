"""From what a job of Vertex left in a bucket to rows with our keys: by key, or by the instance it gives back.

A service's rows come in any order, in as many files as it likes. Gemini's models give each key back. The
older ones give back what was asked, so a row belongs to whoever asked that: requests that are alike take
their rows in turn, for these are alike too.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from embatch.client import readers
from embatch.errors import Code, DataLoss, RequestError
from embatch.wire.vertex import storage
from embatch.wire.vertex.read_requests import content_of, options_of, parse_kept
from embatch.wire.vertex.read_responses import parse_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embatch.client.calls import Flow, Sender
    from embatch.client.providers.vertex_staging import Bucket
    from embatch.wire.google.rows import ResponseRow
    from embatch.wire.vertex.read_requests import KeptRequest
    from embatch.wire.vertex.read_responses import ResultLine
    from embatch.wire.vertex.storage import StoredObject

UNANSWERED: Final = RequestError(
    Code.UNAVAILABLE, None, "the job ended without a result for this request: it can be tried again"
)


def read_lines(
    sender: Sender, bucket: Bucket, files: Iterable[StoredObject], requests: int
) -> Flow[list[ResultLine]]:
    """Return the lines of all files; `requests`: how many the job has, 0 where nobody knows."""
    lines = readers.LineReader(requests, parse_line)
    for stored in files:
        yield from bucket.read(sender, stored, lines.feed)
        lines.rows()  # the last line of a file ends with it
    return lines.rows()


def read_kept(sender: Sender, bucket: Bucket, name: str, requests: int) -> Flow[list[KeptRequest]]:
    """Return what was staged beside the instances. Raises `DataLoss` where it is not there."""
    stored = yield from bucket.find(sender, name)
    if stored is None:
        raise DataLoss(
            f"gs://{bucket.name}/{name} is gone, without which no result can be matched with its request"
        )
    lines = readers.LineReader(requests, parse_kept)
    yield from bucket.read(sender, stored, lines.feed)
    return lines.rows()


def keyed(lines: Sequence[ResultLine], kept: Sequence[KeptRequest] | None) -> list[ResponseRow]:
    """Return the rows with the keys of their requests.

    Args:
        lines: in any order.
        kept: the requests, where the model gives back instances; `None` where it gives back keys.

    Raises:
        DataLoss: a row is nobody's, or one request has two.
    """
    if kept is None:
        return [line.row for line in lines]
    waiting: dict[str | None, list[KeptRequest]] = defaultdict(list)
    for one in kept:
        waiting[content_of(one.instance)].append(one)
    alike: dict[tuple[str | None, tuple[str | None, ...] | None], deque[KeptRequest]] = {}
    for content, group in waiting.items():
        distinct = {options_of(one.instance) for one in group}
        # What a service leaves out of the instance, or spells otherwise, matters only where texts are equal.
        for one in group:
            options = options_of(one.instance) if len(distinct) > 1 else None
            alike.setdefault((content, options), deque()).append(one)
    rows: list[ResponseRow] = []
    for line in lines:
        if line.instance is None:
            rows.append(line.row)
            continue
        content = content_of(line.instance)
        queue = alike.get((content, None))
        if queue is None:
            queue = alike.get((content, options_of(line.instance)))
        if not queue:
            raise DataLoss(
                "the results hold a row that no request of the batch asked for, or one more than it asked"
            )
        rows.append(replace(line.row, key=queue.popleft().key))
    return rows


def output_files(stored: Iterable[StoredObject]) -> tuple[StoredObject, ...]:
    """Return the files that hold rows, whatever their names; a folder's own entry holds none."""
    return tuple(
        sorted((one for one in stored if one.size and not one.name.endswith("/")), key=lambda one: one.name)
    )


def folder(output: str) -> tuple[str, str]:
    """Return bucket and prefix of the folder of a job's results."""
    bucket, name = storage.bucket_and_name(output)
    return bucket, f"{name.rstrip('/')}/"
