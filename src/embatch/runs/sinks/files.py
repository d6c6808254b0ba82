"""Outputs that are files: Parquet, Arrow, JSONL, and `.npy` with the ids beside it."""

from __future__ import annotations

import base64
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from embatch.dtypes import Dtype
from embatch.durable import sync, sync_folder
from embatch.errors import InvalidArgument, Unavailable
from embatch.jsontext import encodable
from embatch.runs.ids import Holder, as_json, as_written, written
from embatch.runs.locations import SUFFIX, divided, resolve, scheme, shown, with_options
from embatch.runs.sinks.layout import Layout, Regrouped, WrittenOutput
from embatch.runs.sinks.upload import upload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.runs.sinks.layout import Sink

_REMEDIES: Final = {
    "s3": "check the keys (AWS_ACCESS_KEY_ID or AWS_PROFILE), the region and AWS_ENDPOINT_URL",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS, or log in with `gcloud auth application-default login`",
    "hf": "check HF_TOKEN",
}
_AT_FAULT: Final = (OSError, pa.ArrowException, httpx2.HTTPError)
"""What is raised where a store is at fault or the way to it; the last is the Hub's."""
GROUP_ROWS: Final = 16_384
"""Rows of a row group or record batch."""


def check(place: str, dimensions: Sequence[int], dtype: Dtype, ids: pa.DataType | None) -> None:  # noqa: ARG001
    """As `sinks.check_sink`."""
    check_folder(place)
    for name in replaced(place):
        check_free(name)
        check_free(f"{name}.partial")
    if _ends(place, ".npy") and len(dimensions) > 1:
        raise InvalidArgument("a .npy file holds one number of dimensions: give one --dim", field="--dim")


def check_folder(place: str) -> None:
    """Refuse a place whose folder is missing or cannot be written to, or whose store does not take anything.

    Raises:
        InvalidArgument: as `sinks.check_sink`.
        Unavailable: as `sinks.check_sink`.
    """
    if scheme(place) != "file":
        _check_bucket(place)
        return
    _, path = resolve(place, "--out")
    folder = Path(path).parent
    if not encodable(path):
        raise InvalidArgument("the path of the output is not UTF-8: give it another one", field="--out")
    if not folder.is_dir():
        raise InvalidArgument(
            f"there is no folder {folder}: make it, or put the output elsewhere", field="--out"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions are not all that can stand in the way
            pass
    except OSError as error:
        raise InvalidArgument(
            f"{folder} cannot be written to ({error.strerror}): mend that, or put the output elsewhere",
            field="--out",
        ) from None
    check_free(place + SUFFIX, linked=True, folder=True)


def _check_bucket(place: str) -> None:
    # Google's library tries for a minute otherwise, and without keys it has nothing to wait for.
    patient = scheme(place) == "gs" and "retry_limit_seconds=" not in place
    system, path = resolve(with_options(place, retry_limit_seconds="10") if patient else place, "--out")
    bucket = path.partition("/")[0]
    try:
        system.get_file_info(path)
        with suppress(*_AT_FAULT):  # who may only write objects may not ask for their bucket
            if scheme(place) != "hf" and system.get_file_info(bucket).type is fs.FileType.NotFound:
                raise InvalidArgument(
                    f"{shown(place)}: there is no bucket {bucket}; make it, or name another", field="--out"
                )
    except _AT_FAULT as error:
        raise InvalidArgument(
            f"{shown(place)} cannot be reached: {' '.join(str(error).split())[:400]}; "
            f"{_REMEDIES[scheme(place)]}",
            field="--out",
        ) from None


def check_free(place: str, *, linked: bool = False, folder: bool = False) -> None:
    """Refuse a place here at which something stands that no output may take the place of.

    Args:
        place: path of a file that will be written; an address of a store is always free.
        linked: whether it may be a link.
        folder: whether it may be a folder.

    Raises:
        InvalidArgument: there is a link, a folder, a device or a pipe, or its name is too long.
    """
    if scheme(place) != "file":
        return
    path = Path(resolve(place, "--out")[1])
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and not linked:
            raise InvalidArgument(
                f"{place} is a link to {path.readlink()}, which an output would take the place of: give the "
                "path that it leads to, or another one",
                field="--out",
            )
        what = _what(path.stat().st_mode if stat.S_ISLNK(mode) else mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InvalidArgument(f"{place} cannot be written: {error.strerror}", field="--out") from None
    if what and not (what == "folder" and folder):
        raise InvalidArgument(f"{place} is a {what}: give the output another name", field="--out")


def _what(mode: int) -> str:
    """Return what is no file."""
    for kind, test in (("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK)):
        if test(mode):
            return kind
    return "" if stat.S_ISREG(mode) else "device"


def replaced(place: str) -> list[str]:
    """As `sinks.replaced`."""
    names = [place, _ids_place(place)] if _ends(place, ".npy") else [place]
    return [*names, *map(rejected_place, names)]


def open_(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:
    """As `sinks.open_sink`."""
    if _ends(place, ".jsonl", ".ndjson"):
        return JsonlSink(place, layout)
    if _ends(place, ".npy"):
        return NpySink(place, layout, notes)
    holder = Holder.PARQUET if _ends(place, ".parquet", ".pq") else Holder.ARROW
    return TableSink(place, layout, notes, holder)


def _ends(place: str, *endings: str) -> bool:
    """Return whether a place has one of these endings; a name may be nothing else, such as `.jsonl`."""
    return divided(place)[0].lower().endswith(endings)


class SpooledFile:
    """A file being written: beside its place, or in a temporary folder for one in an object store."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._local = scheme(place) == "file"
        if self._local:
            _, path = resolve(place, "--out")
            self.path = Path(path).with_name(Path(path).name + ".partial")
            self.drop()  # what stands there may lead elsewhere
        else:
            handle, name = tempfile.mkstemp(prefix="embatch-", suffix=Path(divided(place)[0]).suffix)
            os.close(handle)
            self.path = Path(name)

    def settle(self, *, rejected: bool) -> WrittenOutput:
        """Put the file in its place, durable on return, whole or not at all.

        Raises:
            Unavailable: the store did not take it; the next call of the run writes it again.
        """
        place = rejected_place(self.place) if rejected else self.place
        size = self.path.stat().st_size
        system, path = resolve(place, "--out")
        if self._local:
            with self.path.open("rb") as file:
                sync(file.fileno())
            self.path.replace(path)
            sync_folder(Path(path).parent)
            return WrittenOutput(place, size)
        try:
            with self.path.open("rb") as file:
                upload(file, system, path)
        except _AT_FAULT as error:
            raise Unavailable(f"{shown(place)} could not be written: {error}") from None
        self.drop()
        return WrittenOutput(shown(place), size)

    def drop(self) -> None:
        """Remove what was written. Repeating is safe."""
        self.path.unlink(missing_ok=True)


def rejected_place(place: str) -> str:
    """Return `OUT.rejected.parquet` for `OUT.parquet`."""
    address, options = divided(place)
    head, dot, ending = address.rpartition(".")
    return f"{head}.rejected{dot}{ending}{options}"


def _ids_place(place: str) -> str:
    """Return where the ids of an array are: `OUT.ids.parquet` for `OUT.npy`."""
    address, options = divided(place)
    return f"{address.removesuffix('.npy')}.ids.parquet{options}"


def _let_go(file: Any) -> None:
    """Close a file that is dropped: what a full disk did not take of it was an error before."""
    with suppress(OSError, pa.ArrowException):
        file.close()


class TableSink:
    """Parquet (zstd, byte-stream split) or an Arrow IPC file."""

    def __init__(self, place: str, layout: Layout, notes: Mapping[str, str], holder: Holder) -> None:
        self._spool, self._layout = SpooledFile(place), replace(layout, ids=written(layout.ids, holder))
        self._groups = Regrouped(GROUP_ROWS)
        self._schema = self._layout.schema(notes)
        try:
            self._writer = self._opened(parquet=holder is Holder.PARQUET)
        except OSError:
            self._spool.drop()
            raise

    def _opened(self, *, parquet: bool) -> Any:
        if not parquet:
            return pa.ipc.new_file(str(self._spool.path), self._schema)
        # Floats of like size compress by their bytes; whole numbers and bits do as they are.
        floats = self._layout.dtype in (Dtype.FLOAT32, Dtype.FLOAT16)
        split = [f"embedding{suffix}.list.element" for suffix in self._layout.sizes] if floats else False
        return pq.ParquetWriter(
            self._spool.path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=split,
        )

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`."""
        del first  # rows come in order
        for group in self._groups.add(self._layout.batch(as_written(ids, self._layout.ids), vectors, errors)):
            self._put(group)

    def _put(self, group: pa.Table) -> None:
        self._writer.write_table(group.cast(self._schema), GROUP_ROWS)

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:  # noqa: ARG002  (databases)
        """As `Sink.finish`."""
        for group in self._groups.rest():
            self._put(group)
        self._writer.close()
        return self._spool.settle(rejected=rejected)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        _let_go(self._writer)
        self._spool.drop()


class JsonlSink:
    """One object a line: id, embedding (bits as base64), scale for int8, error."""

    def __init__(self, place: str, layout: Layout) -> None:
        self._spool, self._layout = SpooledFile(place), layout
        self._file = self._spool.path.open("wb")

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`."""
        del first
        forms = self._layout.forms(vectors)
        for row, (id_, error) in enumerate(zip(as_json(ids), errors, strict=True)):
            said: dict[str, Any] = {"id": id_}
            for suffix, (values, scales) in forms.items():
                said[f"embedding{suffix}"] = None if error is not None else self._value(values[row])
                if scales is not None:
                    said[f"scale{suffix}"] = None if error is not None else scales[row]
            said["error"] = error
            self._file.write(orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def _value(self, values: NDArray[Any]) -> Any:
        return base64.b64encode(values.tobytes()).decode() if self._layout.dtype is Dtype.BITS else values

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:  # noqa: ARG002  (databases)
        """As `Sink.finish`."""
        self._file.close()
        return self._spool.settle(rejected=rejected)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        _let_go(self._file)
        self._spool.drop()


class NpySink:
    """One array of all rows, and `OUT.ids.parquet` with id, scale and error of each row.

    A failed row is NaN where the numbers have one, zeros otherwise.
    """

    def __init__(self, place: str, layout: Layout, notes: Mapping[str, str]) -> None:
        self._spool, self._layout = SpooledFile(place), layout
        (size,) = layout.sizes.values()
        self._width, self._rows = layout.dtype.width(size), 0
        beside = Layout(written(layout.ids, Holder.PARQUET), 1, (), layout.dtype)
        self._schema = beside.schema(notes).remove(1)
        self._ids = SpooledFile(_ids_place(place))
        self._writer = pq.ParquetWriter(
            self._ids.path, self._schema, compression="zstd", use_dictionary=False
        )
        self._groups = Regrouped(GROUP_ROWS)
        self._file = self._spool.path.open("wb+")
        self._head()

    def _head(self) -> None:
        """Write the head, always of the same length: the format pads it, and the rows have room to grow."""
        shape = f"({self._rows:>20}, {self._width})"
        said = f"{{'descr': {self._layout.dtype.numpy.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        padded = said.ljust(128 - 10 - 1) + "\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode())

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`."""
        del first
        ((values, scales),) = self._layout.forms(vectors).values()
        failed = np.array([error is not None for error in errors], np.bool_)
        values = np.array(values)
        values[failed] = np.nan if values.dtype.kind == "f" else 0
        self._file.write(values.tobytes())
        self._rows += len(values)
        columns: list[Any] = [as_written(ids, self._schema.field("id").type)]
        if scales is not None:
            columns.append(pa.array(scales, mask=failed))
        columns.append(pa.array(errors, pa.string()))
        for group in self._groups.add(pa.RecordBatch.from_arrays(columns, schema=self._schema)):
            self._writer.write_table(group, GROUP_ROWS)

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:  # noqa: ARG002  (databases)
        """As `Sink.finish`: the ids first, so that an array never stands without them."""
        for group in self._groups.rest():
            self._writer.write_table(group, GROUP_ROWS)
        self._writer.close()
        self._head()
        self._file.close()
        self._ids.settle(rejected=rejected)
        return self._spool.settle(rejected=rejected)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        _let_go(self._writer)
        _let_go(self._file)
        self._ids.drop()
        self._spool.drop()
