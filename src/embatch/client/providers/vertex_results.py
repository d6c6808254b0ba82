"""From what a job of Vertex left in a bucket to rows with our keys: by key, or by the instance it gives back.

A service's rows come in any order, in as many files as it likes. Gemini's models give each key back. The
older ones give back what was asked, so a row belongs to whoever asked that: requests that are alike take
their rows in turn, for these are alike too.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embatch.client import readers
from embatch.errors import DataLoss
from embatch.wire.vertex import storage
from embatch.wire.vertex.read_requests import content_of, options_of, parse_kept
from embatch.wire.vertex.read_responses import parse_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from embatch.client.calls import Flow, Sender
    from embatch.client.providers.vertex_staging import Bucket
    from embatch.wire.google.rows import ResponseRow
    from embatch.wire.vertex.read_requests import KeptRequest
    from embatch.wire.vertex.read_responses import ResultLine
    from embatch.wire.vertex.storage import StoredObject


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


def keyed(
    lines: Sequence[ResultLine], kept: Sequence[KeptRequest] | None, requests: int
) -> list[ResponseRow]:
    """Return the rows with the keys of their requests.

    Errors that say nothing of whose they are stand at the end, no more of them than there are requests
    without a row: some files tell of errors twice.

    Args:
        lines: in any order.
        kept: the requests, where the model gives back instances; `None` where it gives back keys.
        requests: how many there are; 0 where nobody knows.

    Raises:
        DataLoss: a row is nobody's.
    """
    strays = [line.row for line in lines if _is_stray(line)]
    found = [line for line in lines if not _is_stray(line)]
    rows = [line.row for line in found] if kept is None else _of_instances(found, kept)
    there = len({row.key for row in rows})
    return [*rows, *(strays if not requests else strays[: max(0, requests - there)])]


def _is_stray(line: ResultLine) -> bool:
    return line.row.key is None and line.instance is None and line.row.error is not None


def _of_instances(lines: Sequence[ResultLine], kept: Sequence[KeptRequest]) -> list[ResponseRow]:
    alike = _Alike(kept)
    rows: list[ResponseRow] = []
    for line in lines:
        if line.instance is None:
            rows.append(line.row)
        else:
            rows += [replace(line.row, key=key) for key in alike.take(line.instance)]
    return rows


class _Alike:
    """Requests by what they ask, those that ask the same together."""

    def __init__(self, kept: Sequence[KeptRequest]) -> None:
        by_text: dict[str | None, list[KeptRequest]] = defaultdict(list)
        for one in kept:
            by_text[content_of(one.instance)].append(one)
        self._groups: dict[tuple[str | None, tuple[str | None, ...] | None], list[str]] = {}
        for content, group in by_text.items():
            # What is left out of the instance, or spelt otherwise, matters only where texts are equal.
            several = len({options_of(one.instance) for one in group}) > 1
            for one in group:
                options = options_of(one.instance) if several else None
                self._groups.setdefault((content, options), []).append(one.key)
        self._taken: dict[int, int] = defaultdict(int)

    def take(self, instance: Mapping[str, Any]) -> Sequence[str]:
        """Return whose a row is: the next one's that asked so; of one more than asked, each one's.

        That one is the same again, or nobody knows which of them is whose: whoever gets two tells.
        """
        content = content_of(instance)
        keys = self._groups.get((content, None)) or self._groups.get((content, options_of(instance)))
        if keys is None:
            raise DataLoss("the results hold a row that no request of the batch asked for")
        number = self._taken[id(keys)]
        self._taken[id(keys)] += 1
        return keys[number : number + 1] or keys


def output_files(stored: Iterable[StoredObject]) -> tuple[StoredObject, ...]:
    """Return the files that hold rows, whatever their names; a folder's own entry holds none."""
    return tuple(
        sorted((one for one in stored if one.size and not one.name.endswith("/")), key=lambda one: one.name)
    )


def folder(output: str) -> tuple[str, str]:
    """Return bucket and prefix of the folder of a job's results."""
    bucket, name = storage.bucket_and_name(output)
    return bucket, f"{name.rstrip('/')}/"
