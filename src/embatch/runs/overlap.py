"""That the output of a run is apart from its input: it replaces nothing of it, and is never read as it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from embatch.errors import InvalidArgument
from embatch.runs.locations import resolve, scheme, shown
from embatch.runs.sinks import replaced
from embatch.runs.sources.search import Search

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from embatch.runs.sources import Source


def check_apart(source: Source, place: str) -> None:
    """Refuse an output that is a file of the input, or that the input would have as one from then on.

    Raises:
        InvalidArgument: it is, whichever way it is spelled or linked; nothing was opened.
    """
    for name in replaced(place):
        if scheme(name) != scheme(source.place):
            continue
        system, path = resolve(name, "--out")
        if _reads(source, system, path):
            raise InvalidArgument(
                f"{shown(name)} is a file of the input, which would be lost: give the output another name",
                field="--out",
            )
        if _would_find(source, system, path):
            raise InvalidArgument(
                f"{shown(name)} would be a part of the input {shown(source.place)} the next time: put the "
                "output elsewhere",
                field="--out",
            )


def _reads(source: Source, system: FileSystem, path: str) -> bool:
    """Return whether a file is one of the input's, by another name or link too."""
    if scheme(source.place) != "file":
        return any(file.path == path and file.system == system for file in source.files)
    try:
        mine = Path(path).stat()
    except OSError:  # it is not there yet
        return False
    return any(os.path.samestat(mine, Path(file.path).stat()) for file in source.files)


def _would_find(source: Source, system: FileSystem, path: str) -> bool:
    """Return whether the folder or glob that the input is would have a file among its own."""
    own, named = resolve(source.place)
    search = Search.of(own, named) if own == system else None
    if search is None:
        return False
    folder = search.folder.rstrip("/") + "/"
    if scheme(source.place) != "file":
        return path.startswith(folder) and search.finds(path)
    # Spelled as the input is, however the output is spelled.
    real = str(Path(os.path.realpath(Path(path).parent)) / Path(path).name)
    below = os.path.realpath(folder).rstrip("/") + "/"
    if real.startswith(below) and search.finds(folder + real.removeprefix(below)):
        return True
    # A folder that is read through a link is elsewhere.
    name, beside = PurePosixPath(real).name, os.path.dirname(real)  # noqa: PTH120
    folders = {os.path.dirname(file.path) for file in source.files}  # noqa: PTH120
    return any(os.path.realpath(one) == beside and search.finds(f"{one}/{name}") for one in folders)
