"""The files of a source: one, those of a folder, or those that a glob names, in the order of their paths."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import httpx2
import pyarrow as pa
from pyarrow import fs

from embatch import network
from embatch.errors import InvalidArgument
from embatch.runs.places import SUFFIX, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyarrow.fs import FileSystem

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMATS: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
"""Format by ending. Those of the first two have their own compression inside."""
_WILD: Final = re.compile(r"[*?\[]")
_SPLIT: Final = re.compile(r"(?:^|(?<=[/_.-]))(train|test|validation|valid|dev)(?=[/_.-])")
_SHARD: Final = re.compile(r"([^/]+)-\d{5}-of-\d{5}\.[^/]+$")
"""How the Hub names the files of a split."""
UNREADABLE: Final = (OSError, EOFError, pa.ArrowException, httpx2.HTTPError)
"""What reading raises where a file, a store or the way to it is at fault; the last is the Hub's."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source."""

    path: str
    size: int
    changed: int | str
    """Nanoseconds since 1970, or the Hub's digest of the content; 0 where the store tells neither."""
    system: FileSystem = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def ending(self) -> str:
        """What tells its format, without a compression."""
        return _ending(self.path)

    def open(self) -> Any:
        """Open it for reading from the beginning, decompressed; a binary stream."""
        compression = COMPRESSIONS.get(_compression_ending(self.path))
        return self.system.open_input_stream(self.path, compression=compression)

    def open_anywhere(self) -> Any:
        """Open it for reading at any place."""
        return self.system.open_input_file(self.path)


def _ending(path: str) -> str:
    return PurePosixPath(path.removesuffix(_compression_ending(path))).suffix.lower()


def _compression_ending(path: str) -> str:
    ending = PurePosixPath(path).suffix.lower()
    return path[len(path) - len(ending) :] if ending in COMPRESSIONS else ""


def find(place: str | Path) -> tuple[File, ...]:
    """Return the files of a place, sorted by path.

    Raises:
        InvalidArgument: there is none, or a data set's splits would be mixed.
    """
    system, path = resolve(place)
    try:
        files = tuple(
            File(info.path, int(info.size or 0), _changed(system, info), system)
            for info in sorted(_infos(system, path), key=lambda info: info.path)
        )
    except (*UNREADABLE, ValueError, NotImplementedError) as error:  # the last two: no address on the Hub
        hint = network.hub().hint if str(place).startswith("hf://") else ""
        raise InvalidArgument(f"{place} cannot be looked at{hint}: {error}", field="IN") from None
    if not files:
        raise InvalidArgument(f"{place} is not a file, nor a folder or glob with any", field="IN")
    if len(files) > 1 and not _WILD.search(path):
        _refuse_splits(place, path, files)
    return files


def _changed(system: FileSystem, info: Any) -> int | str:
    if info.mtime_ns is None and isinstance(system, fs.PyFileSystem):
        hub: Any = system.handler
        return str(hub.fs.info(info.path).get("blob_id", ""))  # known from the listing
    return int(info.mtime_ns or 0)


def _infos(system: FileSystem, path: str) -> list[Any]:
    info = system.get_file_info(path)
    if info.type is fs.FileType.File:  # also one with a bracket in its name
        return [info]
    search = search_of(system, path, info.type)
    if search is None or system.get_file_info(search.folder or "/").type is fs.FileType.NotFound:
        return []
    below = system.get_file_info(fs.FileSelector(search.folder, recursive=True))
    return [found for found in below if found.type is fs.FileType.File and search.finds(found.path)]


@dataclass(frozen=True, slots=True)
class Search:
    """How the files of a folder or a glob are found."""

    folder: str
    """All below it is looked at."""
    wanted: Callable[[str], object]
    """Whether the glob names a path."""

    def finds(self, path: str) -> bool:
        """Return whether a file below the folder is data: not hidden, nor what tools leave beside data."""
        parts = [part for part in PurePosixPath(path[len(self.folder) :]).parts if part != "/"]
        beside = any(part[0] in "._" for part in parts) or any(part.endswith(SUFFIX) for part in parts[:-1])
        return _ending(path) in FORMATS and not beside and bool(self.wanted(path))


def search_of(system: FileSystem, path: str, kind: fs.FileType | None = None) -> Search | None:
    """Return how the files of a place are searched for; `None` where it names one file, or nothing.

    Args:
        system: as `places.resolve` gives it.
        path: the path in it.
        kind: what is there; `None` asks the file system.
    """
    kind = system.get_file_info(path).type if kind is None else kind
    wild = _WILD.search(path)
    if kind is fs.FileType.File:
        return None
    if kind is not fs.FileType.NotFound:
        return Search(path, lambda _: True)
    if wild is None:
        return None
    return Search(path[: wild.start()].rpartition("/")[0], _pattern(path).fullmatch)


def _pattern(glob: str) -> re.Pattern[str]:
    """Return a glob as an expression: `*` stays within a folder, `**` does not."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    return re.compile(
        "".join(
            tokens.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
            for part in parts
        )
    )


def _refuse_splits(place: str | Path, folder: str, files: tuple[File, ...]) -> None:
    """Refuse to mix what was split on purpose, such as a data set's training and test files."""
    below = [file.path[len(folder) :].lstrip("/") for file in files]
    splits = dict(sorted(found for path in reversed(below) if (found := _split(path)) is not None))
    if len(splits) > 1:
        address, mark, query = str(place).partition("?") if "://" in str(place) else (str(place), "", "")
        raise InvalidArgument(
            f"{place} holds the splits {', '.join(splits)}: name one with a glob, such as "
            f"'{address.rstrip('/')}/{next(iter(splits.values()))}{mark}{query}'",
            field="IN",
        )


def _split(path: str) -> tuple[str, str] | None:
    """Return the split that a file belongs to and a glob of its files, `None` where its path tells none."""
    folder, _, name = path.rpartition("/")
    above, shard, within = _SPLIT.search(f"{folder}/"), _SHARD.search(name), _SPLIT.search(name)
    if shard is not None:
        label, glob = shard[1], f"{shard[1]}-*"
    elif within is not None:
        label, glob = within[1], f"{'*' if within.start() else ''}{name[within.start() : within.end() + 1]}*"
    elif above is None:
        return None
    else:
        label, glob = "", ""
    if above is None:
        return label, f"**/{glob}"
    # As far as the end of the folder that says so.
    end = f"{folder}/".index("/", above.end())
    return f"{above[1]}/{label}".rstrip("/"), f"{folder[:end]}/**{f'/{glob}' if glob else ''}"
