"""A Lance dataset, `OUT.lance`: spooled as Arrow, then committed at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.runs.ids import Holder
from embatch.runs.places import scheme
from embatch.runs.sinks import files
from embatch.runs.sinks.layout import Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from embatch.numbers import Numbers
    from embatch.runs.sinks.layout import Layout, Sink


def check(place: str, dimensions: Sequence[int], numbers: Numbers, ids: pa.DataType | None) -> None:  # noqa: ARG001
    """As `sinks.check_sink`."""
    _library()
    files.check_folder(place)
    if scheme(place) == "file" and Path(place).is_file():
        raise InvalidArgument(
            f"{place} is a file, and a Lance dataset a folder: give the output another name", field="--out"
        )


def replaced(place: str) -> list[str]:
    """As `sinks.replaced`."""
    return [place, files.rejected_place(place), _spool_place(place)]


def _spool_place(place: str) -> str:
    return f"{place}.arrow"


def open_(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:
    """As `sinks.open_sink`."""
    return LanceSink(place, layout, notes)


def _library() -> Any:
    try:
        import lance  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InvalidArgument('.lance needs pylance: pip install "embatch[lance]"', field="--out") from None
    return lance


class LanceSink:
    """See the module."""

    def __init__(self, place: str, layout: Layout, notes: Mapping[str, str]) -> None:
        self._lance, self._place = _library(), place
        # The spool never becomes an output: Lance copies what stands in it.
        self._spool = files.TableSink(_spool_place(place), layout, notes, Holder.LANCE)

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`."""
        self._spool.write(first, ids, vectors, errors)

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> Written:  # noqa: ARG002  (databases)
        """As `Sink.finish`: one commit, which Lance makes durable."""
        place = files.rejected_place(self._place) if rejected else self._place
        spooled = self._spool.finish()
        # Its library takes a decimal at an address that is not a multiple of its size for a fault.
        aligned = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
        with pa.memory_map(spooled.place) as stored, pa.ipc.open_file(stored, options=aligned) as reader:
            self._lance.write_dataset(
                pa.RecordBatchReader.from_batches(reader.schema, _batches(reader)), place, mode="overwrite"
            )
        Path(spooled.place).unlink()
        return Written(place, sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file()))

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        self._spool.abandon()
        Path(_spool_place(self._place)).unlink(missing_ok=True)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    for at in range(reader.num_record_batches):
        yield reader.get_batch(at)
