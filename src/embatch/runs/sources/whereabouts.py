"""Where a row of a source stands, for people who have to mend it: its file, and its line or row there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embatch.runs.sources import Source
    from embatch.runs.sources.files import File


def whereabouts(source: Source, rows: Iterable[int]) -> dict[int, str]:
    """Return where some rows stand, by their numbers; files of lines are read once more, up to the last.

    A row of a file of lines is named by its first line, counted from 1; one of a table by its number in the
    file, counted from 0 as ids are.
    """
    wanted = sorted(set(rows), reverse=True)
    found: dict[int, str] = {}
    row = 0
    for file in source.files:
        if not wanted:
            break
        count = source.format.count(file)
        if count is not None:
            while wanted and wanted[-1] < row + count:
                at = wanted.pop()
                found[at] = f"{file.label}, row {at - row}"
            row += count
            continue
        for place in _places(source, file):
            if row == wanted[-1]:
                found[wanted.pop()] = f"{file.label}, {place}"
            row += 1
            if not wanted:
                break
    return found


def _places(source: Source, file: File) -> Iterator[str]:
    lines = source.format.lines(file, source.columns)
    if lines is not None:
        return (f"line {line}" for line in lines)
    chunks = source.format.read(file, source.columns, 0)
    return (f"row {row}" for row, _ in enumerate(text for chunk in chunks for text in chunk.texts))


def placed(where: str, error: str) -> str:
    """Return an error with its place before it, once."""
    line = where.rpartition(", ")[2]
    return f"{where}: {error.removeprefix(f'{where}: ').removeprefix(f'{line}: ')}"
