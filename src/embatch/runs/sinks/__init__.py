"""Where a run writes to: files of any usual format, here or in an object store, and vector databases.

A file appears under its name whole or not at all. A database is written block by block; writing a block again
changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.runs.locations import divided, scheme, shown
from embatch.runs.sinks.layout import DatabaseSink, Layout, Sink, WrittenOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from embatch.dtypes import Dtype

__all__ = [
    "DatabaseSink",
    "Layout",
    "Sink",
    "WrittenOutput",
    "check_sink",
    "open_sink",
    "replaced",
    "writes_through",
]

_DATABASES: Final = {
    "postgresql": "pgvector",
    "postgres": "pgvector",
    "qdrant": "qdrant",
    "qdrant+https": "qdrant",
    "qdrant+file": "qdrant",
}
"""Scheme to the extra that writes to it."""
_FILES: Final = (".parquet", ".pq", ".arrow", ".feather", ".jsonl", ".ndjson", ".npy", ".lance")


def writes_through(place: str) -> bool:
    """Return whether blocks are written to a place as they come: a database, not a file."""
    return scheme(place) in _DATABASES


def check_sink(place: str, dimensions: Sequence[int], dtype: Dtype, ids: pa.DataType | None = None) -> None:
    """Refuse, before anything is spent, a place that cannot be written to in this form.

    Args:
        place: path or address, as for `open_sink`.
        dimensions: as `Layout.dimensions`.
        dtype: of the embeddings.
        ids: type of the ids; `None` for row numbers.

    Raises:
        InvalidArgument: the ending or scheme is unknown, a library or a folder is missing, something that is
            no file stands in its place, a bucket is not there, a database does not answer or lets nobody in,
            or it has a table or collection of that name that was made otherwise.
        Unavailable: an object store does not answer.
    """
    if not encodable(place):
        raise InvalidArgument("the name of the output is not UTF-8: give it another one", field="--out")
    _module(place).check(place, dimensions, dtype, ids)


def replaced(place: str) -> list[str]:
    """Return the places of all files that writing an output may put there or replace; none for a database."""
    found: list[str] = [] if writes_through(place) else _module(place).replaced(place)
    return found


def open_sink(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:
    """Open a place for writing rows in the form of a layout; nothing appears before `Sink.finish`.

    Args:
        place: path or address. Files by their endings: Parquet, Arrow, Feather, JSONL, `.npy` with the ids
            beside it, Lance.
        layout: what the rows are.
        notes: what a file says of itself, where its format has a place for that.

    Raises:
        InvalidArgument: as `check_sink`.
    """
    sink: Sink = _module(place).open_(place, layout, notes)
    return sink


def _module(place: str) -> Any:
    """Return the module that writes to a place: `check` and `open_`, and `replaced` where it is a file."""
    kind = scheme(place)
    if kind in _DATABASES:
        if _DATABASES[kind] == "pgvector":
            from embatch.runs.sinks import postgres  # noqa: PLC0415  (optional libraries stay optional)

            return postgres
        from embatch.runs.sinks import qdrant  # noqa: PLC0415

        return qdrant
    ending = next((ending for ending in _FILES if divided(place)[0].lower().endswith(ending)), None)
    if ending is None and (place == "-" or place.startswith("/dev/")):
        raise InvalidArgument(
            f"{place} is no file, and an output appears whole or not at all: give a path that ends in "
            f"{', '.join(_FILES)}",
            field="--out",
        )
    if ending is None:
        raise InvalidArgument(
            f"{shown(place)} must end in {', '.join(_FILES)}, or be an address of "
            f"{', '.join(sorted(_DATABASES))}",
            field="--out",
        )
    if ending == ".lance":
        from embatch.runs.sinks import lance  # noqa: PLC0415

        return lance
    from embatch.runs.sinks import files  # noqa: PLC0415

    return files
