"""The ids of files that know their columns' types: one type for a whole source, before a row is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.runs import ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.runs.sources.files import File
    from embatch.runs.sources.format import Columns, Format


def kept_type(file: File, column: str, kind: pa.DataType) -> Any:
    """Return the type in which a file's ids are kept; `null` where it says nothing of it.

    Raises:
        InvalidArgument: no id can be of it.
    """
    try:
        return ids.kept(kind)
    except ids.Unkept:
        raise InvalidArgument(
            f"column {column!r} of {file.label} holds {kind}, of which no id can be: name another one, or "
            "convert it",
            field="--id",
        ) from None


def surveyed(form: Format, files: Sequence[File], first: Columns) -> Columns:
    """Return the columns of several files: their ids in a type that loses nothing of any file's.

    Args:
        form: Parquet or Arrow.
        files: of the source, in order.
        first: what a look at the first of them found.

    Raises:
        InvalidArgument: a file lacks a column or has no text in it, or ids of two files have no common type.
    """
    if len(files) == 1:
        return replace(first, id_type=_settled(first.id_type))
    having: dict[Any, list[File]] = {}
    with ThreadPoolExecutor(8) as threads:  # of a store, each file is a journey
        looks = threads.map(lambda file: form.look(file, first.text, first.id), files)
        for file, columns in zip(files, looks, strict=True):
            if columns is not None:
                having.setdefault(columns.id_type, []).append(file)
    if len(having) > 1:  # a file without rows, such as an empty data frame's, may be of any type
        filled = {
            kind: next((file for file in of if form.count(file) != 0), None) for kind, of in having.items()
        }
        having = {kind: [file] for kind, file in filled.items() if file is not None} or having
    for (kind, (file, *_)), (other, (another, *_)) in combinations(having.items(), 2):
        if ids.joined(kind, other) is None:
            raise InvalidArgument(
                f"ids in column {first.id!r} are {kind} in {file.label} and {other} in {another.label}, and "
                "no type holds both as they are: convert one of them, or embed the files apart",
                field="--id",
            )
    return replace(first, id_type=_settled(reduce(ids.joined, having)))


def _settled(kind: Any) -> Any:
    """Return the type of ids where no file holds any: text."""
    return pa.string() if pa.types.is_null(kind) else kind


def kept_ids(file: File, column: Any, kind: Any) -> tuple[Any, dict[int, str]]:
    """Return ids in the type that they are kept in, and what is wrong with a row by its position.

    Raises:
        InvalidArgument: they are not of the type that the file had when it was looked at.
    """
    if not ids.holds(kind, column.type) and len(column):
        raise InvalidArgument(f"{file.label} was changed while it was read: run it again", field="IN")
    found = ids.as_kept(column, kind)
    bad = dict.fromkeys(ids.broken(found), "the id is not UTF-8")
    if bad:
        rows: Any = [None if at in bad else at for at in range(len(found))]
        found = found.take(pa.array(rows, pa.int64()))
    return found, bad
