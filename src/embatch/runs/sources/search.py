"""What is found in a folder or by a glob: each real file once; what is left out is counted by its reason."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from pyarrow import fs

from embatch.errors import InvalidArgument
from embatch.escapes import visible
from embatch.runs.locations import SUFFIX
from embatch.runs.sources import kinds
from embatch.runs.sources.globs import WILD, Glob

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from embatch.runs.sources.globs import GlobState

_NAMED: Final = 3
"""Names of a kind that a note gives; the others are counted."""
_HIDDEN: Final = "their names begin with a dot or an underscore"
_ENDING: Final = "their endings tell no format that embatch reads"
_LEDGER: Final = "they are what runs remember"
_AGAIN: Final = "they lead to what is read by another name"
_ABOVE: Final = "they lead to a folder above"
_FOLDER: Final = "they are folders, and ** reads those"
_BROKEN: Final = "they are broken links"
_SPECIAL: Final = "they are no files, but pipes, sockets or devices"


_Met = tuple[str, "GlobState"]
"""A path, and where the glob is behind it."""


@dataclass(slots=True)
class LeftOut:
    """What of a folder or glob is not read."""

    folder: str
    _names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, why: str, path: str, behind: str = "") -> None:
        """Count one more."""
        name = path.removeprefix(self.folder.rstrip("/") + "/")
        self._names.setdefault(why, []).append(visible(name) + behind)

    def notes(self) -> tuple[str, ...]:
        """Return a line for each reason: how many there are, the first names, and why."""
        lines = []
        for why, names in self._names.items():
            shown = sorted(names)[:_NAMED]
            more = [f"{len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
            lines.append(f"left out {len(names):,}, for {why}: {', '.join(shown + more)}")
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class Search:
    """How the files of a folder or a glob are found."""

    folder: str
    """All below it is looked at, as far as the glob leads."""
    glob: Glob
    whole: bool
    """Whether a folder was named, and no glob."""

    @classmethod
    def of(cls, system: FileSystem, path: str, kind: fs.FileType | None = None) -> Search | None:
        """Return how the files of a place are searched for; `None` where it names one file, or nothing.

        Args:
            system: as `locations.resolve` gives it.
            path: the path in it.
            kind: what is there; `None` asks the file system.
        """
        kind = system.get_file_info(path).type if kind is None else kind
        wild = WILD.search(path)
        if kind is fs.FileType.Directory:
            return cls(path, Glob.below(path), whole=True)
        if kind is not fs.FileType.NotFound or wild is None:
            return None
        return cls(path[: wild.start()].rpartition("/")[0], Glob(path), whole=False)

    def finds(self, path: str) -> bool:
        """Return whether a file below the folder is data: not hidden, nor what tools leave beside data."""
        above = PurePosixPath(path[len(self.folder) :]).parts[:-1]
        ledger = any(part.endswith(SUFFIX) for part in above)
        return kinds.ending(path) in kinds.FORMATS and not ledger and self.glob.names(path)

    @property
    def start(self) -> GlobState:
        """Where the glob is at the folder."""
        return self.glob.step(self.glob.begin(), self.folder.rstrip("/"))

    def wants(self, path: str, state: GlobState, left: LeftOut) -> bool:
        """Return whether a file is data; what is met and is not is left out by its reason.

        Raises:
            InvalidArgument: the glob means it, and its ending tells no format.
        """
        if not self.glob.ends(state.any):
            return False
        if not self.glob.ends(state.spelled):
            left.add(_HIDDEN, path)
        elif kinds.ending(path) in kinds.FORMATS:
            return True
        elif self.whole or not self.glob.narrow:
            left.add(_ENDING, path)
        else:
            raise InvalidArgument(
                f"{visible(path)}: embatch reads {kinds.ENDINGS}; rename or convert the file, or name the "
                "others with a narrower glob",
                field="IN",
            )
        return False

    def enters(self, path: str, state: GlobState, left: LeftOut) -> bool:
        """Return whether a folder is searched; one that is met and is not is left out by its reason."""
        below = self.glob.step(state, "/")
        if not below.any:
            if self.glob.ends(state.spelled):
                left.add(_FOLDER, path, "/")
            return False
        if path.endswith(SUFFIX):
            left.add(_LEDGER, path, "/")
        elif not below.spelled:
            left.add(_HIDDEN, path, "/")
        else:
            return True
        return False


def in_store(search: Search, system: FileSystem) -> tuple[dict[str, fs.FileInfo], LeftOut]:
    """Return what is found in a store, by path, and what is left out."""
    left, entered = LeftOut(search.folder), {search.folder.rstrip("/"): (search.start, True)}
    found: dict[str, fs.FileInfo] = {}
    if system.get_file_info(search.folder or "/").type is fs.FileType.NotFound:
        return found, left

    def entering(folder: str) -> tuple[GlobState, bool]:
        known = entered.get(folder)
        if known is None:
            above, _, name = folder.rpartition("/")
            state, searched = entering(above)
            state = search.glob.step(state, f"/{name}" if above else name)
            known = entered[folder] = state, searched and search.enters(folder, state, left)
        return known

    for info in system.get_file_info(fs.FileSelector(search.folder, recursive=True)):
        if info.type is fs.FileType.File:
            folder, _, name = info.path.rpartition("/")
            state, searched = entering(folder)
            if searched and search.wants(
                info.path, search.glob.step(state, f"/{name}" if folder else name), left
            ):
                found[info.path] = info
    return found, left


def on_disk(search: Search) -> tuple[dict[str, os.stat_result], LeftOut]:
    """Return what is found on this machine, by path, and what is left out: each real file and folder once.

    Raises:
        InvalidArgument: a link is broken, or a file that the glob means cannot be read.
    """
    walk = _Walk(search)
    if os.path.isdir(search.folder or "/"):  # noqa: PTH112  (paths are text here, as a store's are)
        walk.go()
    return walk.found, walk.left


class _Walk:
    """Goes through folders. Links come last: what they lead to has a name of its own, where it is below."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self.left = LeftOut(search.folder)
        self.found: dict[str, os.stat_result] = {}
        self._seen: set[tuple[int, int]] = set()
        self._links: deque[_Met] = deque()

    def go(self) -> None:
        """Find everything."""
        top = os.path.realpath(self._search.folder or "/")
        above = {_identity(os.stat(folder)) for folder in map(str, PurePosixPath(top).parents)}  # noqa: PTH116
        self._folder(self._search.folder.rstrip("/"), self._search.start, os.stat(top))  # noqa: PTH116
        while self._links:
            path, state = self._links.popleft()
            self._link(path, state, above)

    def _folder(self, path: str, state: GlobState, stat: os.stat_result) -> None:
        """Take the files of a folder and those below, in the order of their names."""
        self._seen.add(_identity(stat))
        waiting, links = [(path, state)], list[_Met]()
        files = dict[str, os.stat_result]()
        while waiting:
            folder, above = waiting.pop()
            with os.scandir(folder or "/") as entries:
                for entry in entries:
                    behind = self._search.glob.step(above, f"/{entry.name}")
                    below = f"{folder}/{entry.name}"
                    if not behind.any:
                        continue
                    if entry.is_symlink():
                        links.append((below, behind))
                    elif entry.is_dir():
                        waiting += self._entered(below, behind, entry.stat())
                    elif not entry.is_file():
                        self._special(below, behind)
                    elif self._search.wants(below, behind, self.left):
                        files[below] = entry.stat()
        for name in sorted(files):
            self._file(name, files[name])
        self._links.extend(sorted(links, key=lambda link: link[0]))

    def _entered(self, path: str, state: GlobState, stat: os.stat_result) -> list[_Met]:
        """Return a folder if it is searched, which no folder is twice."""
        if not self._search.enters(path, state, self.left):
            return []
        if _identity(stat) in self._seen:  # reached through a link, or mounted twice
            self.left.add(_AGAIN, path, "/")
            return []
        self._seen.add(_identity(stat))
        return [(path, state)]

    def _file(self, path: str, stat: os.stat_result) -> None:
        if _identity(stat) in self._seen:
            self.left.add(_AGAIN, path)
        else:
            self._seen.add(_identity(stat))
            self.found[path] = stat

    def _special(self, path: str, state: GlobState) -> None:
        if self._search.glob.ends(state.any):
            self.left.add(_SPECIAL, path)

    def _link(self, path: str, state: GlobState, above: set[tuple[int, int]]) -> None:
        try:
            stat = os.stat(path)  # noqa: PTH116
        except OSError as error:
            if not self._search.glob.ends(state.spelled):
                self.left.add(_HIDDEN if self._search.glob.ends(state.any) else _BROKEN, path)
                return
            raise InvalidArgument(
                f"{visible(path)} is a broken link ({error.strerror}): mend or remove it", field="IN"
            ) from None
        if os.path.isdir(path):  # noqa: PTH112
            if not self._search.enters(path, state, self.left):
                return
            if _identity(stat) in above:
                self.left.add(_ABOVE, path, "/")
            elif _identity(stat) in self._seen:
                self.left.add(_AGAIN, path, "/")
            else:
                self._folder(path, state, stat)
        elif not os.path.isfile(path):  # noqa: PTH113
            self._special(path, state)
        elif self._search.wants(path, state, self.left):
            self._file(path, stat)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
