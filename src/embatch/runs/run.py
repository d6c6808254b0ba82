"""A run: a dataset embedded file to file over a client, as a series of batches under keys of their content.

The same command again goes on where the last one stopped: a batch's idempotency key is a digest of what is
embedded and how, so a batch that was accepted before is found instead of made twice, finished or not. The
output appears under its name only when it is whole. Nothing else is remembered.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import numpy as np

from embatch.batch import Request
from embatch.errors import BatchFailed, InvalidArgument
from embatch.runs.sinks import ParquetSink
from embatch.states import State

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.batch import Batch, TaskType
    from embatch.client.client import Client
    from embatch.runs.sources import Rows, Source

AHEAD = 2
"""Batches submitted before the oldest is awaited: the service never waits for the file."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run shall do with every row."""

    model: str | None = None
    task_type: TaskType | None = None
    output_dimensionality: int | None = None
    priority: int = 0
    display_name: str | None = None


@dataclass(slots=True)
class Summary:
    """What a run did. Counts are rows."""

    rows: int = 0
    failed: int = 0
    resumed: int = 0
    """Rows of batches that an earlier call had already submitted."""
    dimensions: int = 0
    file_bytes: int = 0
    model: str = ""
    notes: list[str] = field(default_factory=list)


class Progress(Protocol):
    """Told about a run's way: `done` of `total` rows of what was read so far are finished."""

    def __call__(self, done: int, total: int, batch: Batch) -> None:
        """Show it."""
        ...


@dataclass(slots=True)
class _Sent:
    """A block of rows and the batch that works it."""

    rows: Rows
    batch: Batch | None
    """`None` where no row of the block can be read."""
    positions: list[int]
    """Positions in the block of the requests that were submitted, in order."""


def embed_file(client: Client, source: Source, out: Path, wish: Wish, progress: Progress) -> Summary:
    """Embed every row of the source into one Parquet file, in order; return what was done.

    Repeating is safe and goes on with unfinished work. Durable on return; only then are the batches dropped
    from the service. When a run is interrupted, its batches stay where they are.

    Raises:
        InvalidArgument: the source or a wish is wrong; nothing was written.
        BatchFailed: a batch as a whole could not be worked.
    """
    run = _Run(client, out, wish, progress)
    try:
        for rows in source.blocks():
            run.submit(rows)
            while len(run.sent) > AHEAD:
                run.collect()
        while run.sent:
            run.collect()
        return run.finish()
    except BaseException:
        run.abandon()
        raise


class _Run:
    def __init__(self, client: Client, out: Path, wish: Wish, progress: Progress) -> None:
        self.sent: deque[_Sent] = deque()
        self._client, self._out, self._wish, self._progress = client, out, wish, progress
        self._summary = Summary()
        self._sink: ParquetSink | None = None
        self._held: list[tuple[Rows, list[str | None]]] = []
        self._finished: list[str] = []
        self._started = datetime.now(UTC)

    def submit(self, rows: Rows) -> None:
        """Hand one block over as a batch, or find the batch that an earlier call made of it."""
        positions = [at for at, text in enumerate(rows.texts) if text is not None]
        requests = [Request(text) for text in rows.texts if text is not None]
        self._summary.rows += len(rows.texts)
        batch = self._batch(rows, requests) if requests else None
        self.sent.append(_Sent(rows, batch, positions))

    def _batch(self, rows: Rows, requests: list[Request]) -> Batch:
        key = self._key(rows.first, requests)
        wish = self._wish
        name = wish.display_name or self._out.name
        while True:
            batch = self._client.async_batch_embed_contents(
                requests,
                display_name=f"{name} rows {rows.first}-{rows.first + len(rows.texts) - 1}",
                model=wish.model,
                task_type=wish.task_type,
                output_dimensionality=wish.output_dimensionality,
                priority=wish.priority,
                idempotency_key=key,
            )
            if batch.state not in (State.FAILED, State.CANCELLED, State.EXPIRED):
                break
            # The earlier call's batch was stopped: drop it, so that the key makes a new one.
            self._client.delete_batch(batch.name)
        if batch.create_time is not None and batch.create_time < self._started - timedelta(seconds=1):
            self._summary.resumed += len(requests)
        return batch

    def _key(self, first: int, requests: list[Request]) -> str:
        """Return the digest of what is embedded and how; texts are told apart by their lengths."""
        wish = self._wish
        digest = hashlib.sha256(
            repr((1, first, wish.model, wish.task_type, wish.output_dimensionality)).encode()
        )
        for request in requests:
            text = request.text.encode(errors="surrogatepass")
            digest.update(len(text).to_bytes(8, "little") + text)
        return f"run-{digest.hexdigest()}"

    def collect(self) -> None:
        """Await the oldest batch and write its rows."""
        oldest = self.sent.popleft()
        errors: list[str | None] = [oldest.rows.faults.get(at) for at in range(len(oldest.rows.texts))]
        if oldest.batch is None:
            self._write(oldest.rows, None, errors)
            return
        batch = self._client.await_batch_completion(
            oldest.batch.name, timeout=math.inf, poll_interval=self._interval(), on_progress=self._tell
        )
        if batch.state is State.FAILED:
            raise BatchFailed(f"{batch.name} failed: {batch.error or 'the service gave no reason'}")
        result = self._client.get_batch_embeddings(batch, partial=True)
        self._summary.model = batch.model
        self._summary.notes += [note for note in batch.notes if note not in self._summary.notes]
        found = result.to_numpy()
        vectors = np.zeros((len(errors), found.shape[1]), np.float32)
        vectors[oldest.positions] = found
        for index, error in result.failed_responses:
            errors[oldest.positions[index]] = error.message
        self._finished.append(batch.name)
        self._write(oldest.rows, vectors, errors)

    def _interval(self) -> float:
        """Return the seconds between polls: lively at first, then rarer as the run grows."""
        return min(5.0, 0.25 * (1 + len(self._finished)))

    def _tell(self, batch: Batch) -> None:
        stats = batch.batch_stats
        done = stats.successful_request_count + stats.failed_request_count + stats.uncommitted_request_count
        waiting = sum(len(sent.rows.texts) for sent in self.sent)
        current = stats.request_count or 0
        self._progress(self._summary.rows - waiting - current + done, self._summary.rows, batch)

    def _write(self, rows: Rows, vectors: NDArray[np.float32] | None, errors: list[str | None]) -> None:
        """Write one block; blocks without any vector wait until the first vector tells the dimensions."""
        self._summary.failed += sum(error is not None for error in errors)
        if vectors is None:
            if self._sink is None:
                self._held.append((rows, errors))
                return
            vectors = np.zeros((len(errors), self._summary.dimensions), np.float32)
        if self._sink is None:
            self._summary.dimensions = int(vectors.shape[1])
            notes = {"embatch.model": self._summary.model, "embatch.task_type": self._wish.task_type or ""}
            self._sink = ParquetSink(self._out, rows.ids.type, self._summary.dimensions, notes)
            for held, reasons in self._held:
                self._sink.write(held.ids, np.zeros((len(reasons), vectors.shape[1]), np.float32), reasons)
        self._sink.write(rows.ids, vectors, errors)

    def finish(self) -> Summary:
        """Put the output in place, then drop the batches."""
        if self._sink is None:
            raise InvalidArgument("the input holds no row that can be embedded", field="IN")
        self._summary.file_bytes = self._sink.finish()
        for name in self._finished:
            self._client.delete_batch(name)
        return self._summary

    def abandon(self) -> None:
        """Leave the batches in the service; drop the half-written file."""
        if self._sink is not None:
            self._sink.abandon()
