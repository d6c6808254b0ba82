"""A block between being read and being in the ledger: what of it is with the provider, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa

from embatch.runs.certificate import Sent
from embatch.runs.part import Part, distinct
from embatch.runs.progress import finished
from embatch.runs.sources import Rows
from embatch.runs.sources.cutting import text_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embatch.batch import Batch
    from embatch.runs.ledger import Ledger

TOKEN_BYTES: Final = 3
"""Bytes of text that are one token, reckoned low: English has four and more, Chinese about three."""


@dataclass(slots=True)
class InFlight:
    """One block."""

    number: int
    first: int
    """0-based row number of its first row."""
    rows: int
    sent_rows: int
    """Rows whose texts are sent."""
    requests: int
    """Different texts among these."""
    failed: int
    """Rows with an error that are not sent."""
    tokens: int
    """Estimated, of the texts that are sent."""
    characters: int
    """Of these."""
    batch: Batch | None = None
    """As it was handed over; `None` where no row of the block can be read, and before."""
    earlier: tuple[int, int] = (0, 0)
    """Rows and tokens of the batch that were finished when this call found it."""
    polled: Batch | None = None
    """The batch as it was when it was asked for last; `None`: not yet."""
    polls: int = 0
    due: float = 0.0
    """When it is asked for next, by the run's monotonic clock."""
    _held: Sent | None = None
    """Its rows; `None` while they lie on disk."""
    _parked: Path | None = None

    @classmethod
    def of(cls, number: int, rows: Rows, ledger: Ledger) -> Self:
        """Return a block that was read."""
        sent = _sent(number, rows, ledger)
        return cls(
            number,
            rows.first,
            len(rows.texts),
            len(sent.places),
            len(sent.texts),
            len(sent.part.to_mend),
            tokens_of(sent.texts),
            sum(map(len, sent.texts)),
            _held=sent,
        )

    def finished(self, requests: int) -> int:
        """Return the rows that are finished once so many requests are: so is each that was not sent."""
        done = self.sent_rows * requests // self.requests if self.requests else 0
        return self.rows - self.sent_rows + done

    def found(self, batch: Batch) -> None:
        """Take note that the batch is an earlier call's, and how far it is."""
        requests, tokens = finished(batch)
        self.earlier = (self.finished(requests), tokens)

    def forget_batch(self) -> None:
        """Take note that it has no batch any more, and is handed over again."""
        self.batch = self.polled = None
        self.polls, self.due = 0, 0.0

    def park(self, path: Path) -> None:
        """Keep the rows in a file until they are wanted: many blocks in flight are more than memory holds."""
        if self._held is None:
            return
        rows, self._held, self._parked = self._held.rows, None, path
        faults: list[str | None] = [None] * len(rows.texts)
        for at, fault in rows.faults.items():
            faults[at] = fault
        columns: dict[str, Any] = {
            "id": rows.ids,
            "text": pa.array(
                [None if text is None else text.encode(errors="surrogatepass") for text in rows.texts],
                pa.large_binary(),
            ),
            "fault": pa.array(faults, pa.string()),
        }
        record = pa.RecordBatch.from_pydict(columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, record.schema) as writer:
            writer.write_batch(record)

    def sent(self, ledger: Ledger) -> Sent:
        """Return the block with its rows, in memory from now on."""
        if self._held is None:
            assert self._parked is not None  # noqa: S101
            self._held = _sent(self.number, _read(self.first, self._parked), ledger)
            self._parked.unlink()
        self._held.batch = self.batch
        return self._held


def _sent(number: int, rows: Rows, ledger: Ledger) -> Sent:
    """Return what of a block is sent, and what stays as an earlier try left it."""
    earlier = ledger.blocks.get(number)
    part = Part.of(rows) if earlier is None else Part.read(ledger.rows(earlier))
    wanted = np.flatnonzero(part.readable & (part.failed | (earlier is None))).tolist()
    texts, places = distinct(rows.texts, wanted)
    return Sent(number, rows, part, None, places, texts)


def _read(first: int, path: Path) -> Rows:
    with pa.OSFile(str(path), "rb") as file:
        record = pa.ipc.open_file(file).get_batch(0)
    texts = [
        None if text is None else text.decode(errors="surrogatepass")
        for text in record.column("text").to_pylist()
    ]
    faults = {at: fault for at, fault in enumerate(record.column("fault").to_pylist()) if fault is not None}
    return Rows(first, record.column("id"), texts, faults)


def tokens_of(texts: Sequence[str]) -> int:
    """Return about how many tokens there are in texts; rather too many."""
    return sum(1 + text_bytes(text) // TOKEN_BYTES for text in texts)
