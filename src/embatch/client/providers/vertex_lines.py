"""The requests of a batch as lines of JSONL on their way to a bucket, and how many one job takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, ClassVar, Final

from embatch.client import readers
from embatch.client.providers import vertex_staging
from embatch.client.providers.prompts import prompted
from embatch.errors import TooLarge
from embatch.wire.vertex import write_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Request

REQUESTS: Final = 1_000_000
LEGACY_REQUESTS: Final = 30_000
"""Most requests of one job: of one of Gemini's models, and of one of the older ones."""
FILE_BYTES: Final = 1 << 30


def most_requests(model: str) -> int:
    """Return the most requests of one job of a model."""
    return LEGACY_REQUESTS if write_requests.is_legacy(model) else REQUESTS


class StagedLines:
    """Lines of JSONL as a model takes them, or, where it takes no keys, as they are kept beside."""

    mime_type: ClassVar[str] = vertex_staging.MIME_TYPE

    def __init__(self, file: BinaryIO, model: str) -> None:
        self._file, self._model = file, model
        self._legacy = write_requests.is_legacy(model)
        self._written = 0

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests.

        Raises:
            TooLarge: there are more than a job takes.
            InvalidArgument: one has metadata, which these files cannot carry.
        """
        most = most_requests(self._model)
        line = write_requests.kept_line if self._legacy else write_requests.keyed_line
        if self._written + len(requests) > most:
            raise TooLarge(
                f"a batch of {self._model} takes at most {most:,} requests on vertex: submit them in several "
                "batches, or as a run (`embatch embed`), which does so by itself",
                field="requests",
            )
        requests = prompted(self._model, requests)
        self._file.writelines(
            line(readers.tagged_line(one, self._written + at)) for at, one in enumerate(requests)
        )
        self._written += len(requests)
        if self._file.tell() > FILE_BYTES:  # before the rest is written too
            raise TooLarge(
                f"a batch takes at most {FILE_BYTES >> 30} GB of requests on vertex: submit several batches",
                field="requests",
            )

    def finish(self) -> None:
        """Complete the file, which stays open."""
        self._file.flush()


def looked_at(file: BinaryIO) -> tuple[int, bool]:
    """Return how many lines a file has, and whether they are to be kept beside the instances in them."""
    file.seek(0)
    first = file.readline()
    rows = 1
    while block := file.read(1 << 20):
        rows += block.count(b"\n")
    return rows, write_requests.is_kept(first)


def write_instances(file: BinaryIO, instances: BinaryIO) -> None:
    """Write the instances of kept lines by themselves, as the job reads them."""
    file.seek(0)
    instances.writelines(map(write_requests.instance_line, file))
