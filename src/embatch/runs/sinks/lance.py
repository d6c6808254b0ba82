"""A Lance dataset, `OUT.lance`: spooled as Arrow, then committed at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.runs.ids import Holder
from embatch.runs.locations import resolve, scheme, shown
from embatch.runs.sinks import files
from embatch.runs.sinks.layout import WrittenOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from embatch.dtypes import Dtype
    from embatch.runs.sinks.layout import Layout, Sink


def check(place: str, dimensions: Sequence[int], dtype: Dtype, ids: pa.DataType | None) -> None:  # noqa: ARG001
    """As `sinks.check_sink`."""
    _library()
    if scheme(place) != "file":
        raise InvalidArgument(
            f"{shown(place)}: a Lance dataset is written to a folder here; copy it there afterwards",
            field="--out",
        )
    files.check_folder(place)
    for name in (place, files.rejected_place(place)):
        files.check_free(name, linked=_folder(name).is_dir(), folder=True)
        if _folder(name).is_file():
            raise InvalidArgument(
                f"{name} is a file, and a Lance dataset a folder: give the output another name", field="--out"
            )
    files.check_free(_spool_place(place))
    files.check_free(f"{_spool_place(place)}.partial")


def _folder(place: str) -> Path:
    return Path(resolve(place, "--out")[1])


def replaced(place: str) -> list[str]:
    """As `sinks.replaced`."""
    return [place, files.rejected_place(place), _spool_place(place)]


def _spool_place(place: str) -> str:
    return f"{place}.partial.arrow"  # no name that somebody gives a file of his own


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

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:  # noqa: ARG002  (databases)
        """As `Sink.finish`: one commit, which Lance makes durable."""
        place = files.rejected_place(self._place) if rejected else self._place
        folder = _folder(place)
        spooled = _folder(self._spool.finish().place)
        # Its library takes a decimal at an address that is not a multiple of its size for a fault.
        ipc: Any = pa.ipc
        aligned = ipc.IpcReadOptions(ensure_alignment=ipc.Alignment.At64Byte)
        with pa.memory_map(str(spooled)) as stored, ipc.open_file(stored, options=aligned) as reader:
            self._lance.write_dataset(
                pa.RecordBatchReader.from_batches(reader.schema, _batches(reader)),
                folder,
                mode="overwrite" if folder.exists() else "create",  # it warns of what is not there
            )
        spooled.unlink()
        return WrittenOutput(place, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        self._spool.abandon()
        _folder(_spool_place(self._place)).unlink(missing_ok=True)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    for at in range(reader.num_record_batches):
        yield reader.get_batch(at)
