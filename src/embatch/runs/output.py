"""The output of a run: put together from its ledger at the end, or written to a database as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument
from embatch.runs.identity import provider_note
from embatch.runs.locations import shown
from embatch.runs.part import Part
from embatch.runs.sinks import DatabaseSink, Layout, open_sink, writes_through

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.progress import Summary
    from embatch.runs.sinks import Sink, WrittenOutput


class Output:
    """Where a run writes to. The sink is opened once the dimensions of the vectors are known."""

    def __init__(
        self, place: str, dimensions: tuple[int, ...], dtype: Dtype | None, ids: pa.DataType
    ) -> None:
        self.place, self.dimensions = place, dimensions
        self.direct = writes_through(place)
        """Whether blocks are written as they come, and not at the end."""
        self._dtype, self._ids = dtype or Dtype.FLOAT32, ids
        self._sink: Sink | None = None
        self._put: set[int] = set()
        """Numbers of the blocks that this call has written through."""
        self._notes: dict[str, str] = {}

    def check(self, native: int) -> None:
        """Refuse more dimensions than the vectors have. Raises InvalidArgument."""
        if native and max(self.dimensions, default=0) > native:
            raise InvalidArgument(
                f"--dim {max(self.dimensions)}: the vectors have {native} dimensions", field="--dim"
            )

    def check_ids(self, ledger: Ledger) -> None:
        """Refuse to go on with a run whose ids are of another type, as an earlier version may have kept them.

        Raises:
            InvalidArgument: they are; nothing was changed.
        """
        for block in ledger.blocks.values():
            kind = ledger.id_type(block)
            if kind is not None and kind != self._ids:
                raise InvalidArgument(
                    f"the run of {shown(self.place)} that is remembered keeps its ids as {kind}, and now "
                    f"they are {self._ids}: --restart begins anew",
                    field="--id",
                )

    def write(self, block: Block, part: Part) -> None:
        """Write a block through. Repeating is safe."""
        if not block.native and self._sink is None:
            return  # all failed, and nobody knows the dimensions yet: `finish` writes it
        self._write(block.native, block.first, part)
        self._put.add(block.number)

    def finish(self, ledger: Ledger, summary: Summary, *, rejected: bool = False) -> WrittenOutput:
        """Put the output in place, durable on return: every block of the ledger, in order.

        Args:
            ledger: of the run.
            summary: what it did; the part that does not change from call to call is written with it.
            rejected: give it another name, for it is not what it should be.
        """
        blocks = [ledger.blocks[number] for number in sorted(ledger.blocks)]
        native = next(block.native for block in blocks if block.native)
        engine = next((block.engine for block in blocks if block.engine), {})
        self._notes = _notes(summary, engine)
        self._notes["embatch.provider"] = _json(provider_note(ledger.about))
        if summary.request is not None:
            form = {"dimensions": self.dimensions or (native,), "dtype": self._dtype.value}
            self._notes["embatch.request"] = _json({**summary.request, **form})
        if not self.direct:
            self.abandon()
        for block in blocks:
            if not self.direct or not block.native or (not rejected and self._gone(native, block)):
                self._write(native, block.first, Part.read(ledger.rows(block)))
        sink = self._opened(native)
        self.dimensions = self.dimensions or (native,)
        written = sink.finish(rejected=rejected, rows=summary.rows)
        self._sink = None
        return written

    def _gone(self, native: int, block: Block) -> bool:
        """Return whether a database has lost rows of an earlier call, for somebody dropped or mended it."""
        sink = self._opened(native)
        if block.number in self._put or not isinstance(sink, DatabaseSink):
            return False
        return not sink.holds(block.first, block.rows, block.failed)

    def _write(self, native: int, first: int, part: Part) -> None:
        vectors = part.vectors
        if not vectors.shape[1]:
            vectors = np.zeros((len(part.errors), native), np.float32)
        self._opened(native).write(first, part.ids, vectors, part.errors)

    def _opened(self, native: int) -> Sink:
        if self._sink is None:
            self._sink = open_sink(
                self.place, Layout(self._ids, native, self.dimensions, self._dtype), self._notes
            )
        return self._sink

    def abandon(self) -> None:
        """Drop what is half written. Repeating is safe."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abandon()


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()


def _notes(summary: Summary, engine: Any) -> dict[str, str]:
    """Return the metadata of the output: the same whenever and however often the run was stopped."""
    notes = {"embatch.model": summary.model, "embatch.engine": _json(engine)}
    if summary.sample is not None:
        found = summary.sample
        notes["embatch.certificate"] = _json(
            {
                "compared": found.count,
                "cosine_least": found.cosine_least,
                "cosine_mean": found.cosine_mean,
                "norm_least": found.norm_least,
                "norm_most": found.norm_most,
                "truncated": summary.truncated,
            }
        )
    if summary.bill is not None:
        notes["embatch.cost"] = _json(summary.bill.record())
    if summary.alignment is not None:
        notes["embatch.alignment"] = _json(summary.alignment)
    return notes
