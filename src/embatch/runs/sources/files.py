"""The files of a source: one, those of a folder, or those that a glob names, in the order of their paths."""

from __future__ import annotations

import io
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httpx2
import pyarrow as pa
from pyarrow import fs

from embatch import network
from embatch.errors import InvalidArgument
from embatch.escapes import visible
from embatch.jsontext import encodable
from embatch.runs.locations import resolve, shown
from embatch.runs.sources import kinds
from embatch.runs.sources.search import Search, in_store, on_disk
from embatch.runs.sources.splits import refuse_splits

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pyarrow.fs import FileSystem

UNREADABLE: Final = (OSError, EOFError, pa.ArrowException, UnicodeDecodeError, httpx2.HTTPError)
"""What reading raises where a file, a store or the way to it is at fault; the last is the Hub's."""
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
_AT_ONCE: Final = 16
"""Files of a store that are looked at at once: each is a question that takes its time."""
_DECODED_BYTES: Final = 1 << 20
_PIPES: Final = "embatch reads its input more than once: write it to a file first, such as `cat > in.jsonl`"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source."""

    path: str
    size: int
    changed: int | str
    """Nanoseconds since 1970, or the Hub's digest of the content; 0 where the store tells neither."""
    system: FileSystem = field(repr=False, compare=False)
    label: str = field(default="", compare=False)
    """What messages call it: its path in the folder that was named."""
    encoding: str | None = field(default=None, compare=False)
    """What its lines are in, where that is not UTF-8."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return visible(PurePosixPath(self.path).name)

    @property
    def ending(self) -> str:
        """What tells its format, without a compression."""
        return kinds.ending(self.path)

    @property
    def partitions(self) -> dict[str, str | None]:
        """What the folders above it say in Hive's way: `lang=en` is a column whose every row is `en`."""
        pairs = (part.partition("=") for part in PurePosixPath(self.path).parts[:-1])
        said = {unquote(name): unquote(value) for name, equals, value in pairs if name and equals}
        return {name: None if value == _NO_VALUE else value for name, value in said.items()}

    def open(self) -> Any:
        """Open it for reading from the beginning, decompressed, in UTF-8; a binary stream."""
        compression = kinds.COMPRESSIONS.get(kinds.compression_ending(self.path).lower())
        stored: Any = self.system.open_input_stream(self.path, compression=compression)
        if self.encoding is None:
            return stored
        return io.BufferedReader(kinds.Transcoded(stored, self.encoding), _DECODED_BYTES)

    def open_anywhere(self) -> Any:
        """Open it for reading at any place."""
        return self.system.open_input_file(self.path)

    def checked(self) -> File:
        """Return the file with its encoding, by its first bytes.

        Raises:
            InvalidArgument: it is not what its endings say, or cannot be read.
        """
        try:
            with self.system.open_input_stream(self.path, compression=None) as stored:
                raw = stored.read(kinds.HEAD_BYTES)
            plain = raw
            if kinds.compression_ending(self.path) and raw:
                with self.open() as stored:
                    plain = stored.read(kinds.HEAD_BYTES)
        except UNREADABLE as error:
            plain = b""
            if not kinds.compression_ending(self.path):
                raise InvalidArgument(
                    f"{self.label} cannot be read: {visible(str(error))}", field="IN"
                ) from None
        return replace(self, encoding=kinds.check(self.label, raw, plain))


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of a place, and what there is beside them."""

    files: tuple[File, ...]
    """Sorted by path; each real file once."""
    notes: tuple[str, ...]
    """What was left out: a line for each reason, with how many and the first names."""


def find(place: str | Path) -> FoundFiles:
    """Return the files of a place, each looked at.

    Raises:
        InvalidArgument: there is none, or a data set's splits would be mixed; a link is broken, a file is not
            what its ending says, or cannot be read.
    """
    if str(place) in ("-", "/dev/stdin"):
        raise InvalidArgument(f"standard input is no file: {_PIPES}", field="IN")
    if not str(place):  # as of a variable that is not set: the working directory was not meant
        raise InvalidArgument("the name of the input is empty: name a file, a folder or a glob", field="IN")
    system, path = resolve(place)
    try:
        search, files, notes = _found(system, path)
    except (*UNREADABLE, ValueError, NotImplementedError) as error:  # the last two: no address on the Hub
        hint = network.hub().hint if str(place).startswith("hf://") else ""
        raise InvalidArgument(
            f"{visible(shown(place))} cannot be looked at{hint}: {visible(str(error))}", field="IN"
        ) from None
    if not files:
        beside = f": {'; '.join(notes)}" if notes else ""
        raise InvalidArgument(
            f"{visible(shown(place))} is not a file, nor a folder or glob with any that is read{beside}",
            field="IN",
        )
    if len(files) > 1 and search is not None and search.whole:
        refuse_splits(place, path, files)
    return FoundFiles(tuple(files), notes)


def looked_at(files: Sequence[File]) -> tuple[File, ...]:
    """Return files with their encodings: all of them are what their endings say, by their first bytes.

    Raises:
        InvalidArgument: one is not, or cannot be read.
    """
    if isinstance(files[0].system, fs.LocalFileSystem):
        return tuple(file.checked() for file in files)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return tuple(threads.map(File.checked, files))


def _found(system: FileSystem, path: str) -> tuple[Search | None, list[File], tuple[str, ...]]:
    if isinstance(system, fs.LocalFileSystem):
        return _found_here(system, path)
    info = system.get_file_info(path)
    if info.type is fs.FileType.File:  # also one with a bracket in its name
        return None, [_in_store(system, info, "")], ()
    search = Search.of(system, path, info.type)
    if search is None:
        return None, [], ()
    found, left = in_store(search, system)
    files = [_in_store(system, info, search.folder) for _, info in sorted(found.items())]
    return search, files, left.notes()


def _in_store(system: FileSystem, info: Any, folder: str) -> File:
    return File(info.path, int(info.size or 0), _changed(system, info), system, _label(info.path, folder))


def _found_here(system: FileSystem, path: str) -> tuple[Search | None, list[File], tuple[str, ...]]:
    given = Path(path)
    if given.is_symlink() and not given.exists():
        raise InvalidArgument(f"{visible(path)} is a broken link: mend or remove it", field="IN")
    if given.is_file():
        return None, [_here(system, path, given.stat(), "")], ()
    if given.exists() and not given.is_dir():
        kind = "a pipe" if stat.S_ISFIFO(given.stat().st_mode) else "no file but a device or socket"
        raise InvalidArgument(f"{visible(path)} is {kind}: {_PIPES}", field="IN")
    search = Search.of(system, path, fs.FileType.Directory if given.is_dir() else fs.FileType.NotFound)
    if search is None:
        return None, [], ()
    found, left = on_disk(search)
    files = [_here(system, name, status, search.folder) for name, status in sorted(found.items())]
    return search, files, left.notes()


def _here(system: FileSystem, path: str, status: os.stat_result, folder: str) -> File:
    label = _label(path, folder)
    if not encodable(path):
        raise InvalidArgument(f"the path of {label} is not UTF-8: rename it", field="IN")
    return File(path, status.st_size, status.st_mtime_ns, system, label)


def _label(path: str, folder: str) -> str:
    """Return what messages call a file: its path in the folder that was named, or its name."""
    within = path.removeprefix(folder.rstrip("/") + "/") if folder else path.rpartition("/")[2]
    return visible(within)


def _changed(system: FileSystem, info: Any) -> int | str:
    if info.mtime_ns is None and isinstance(system, fs.PyFileSystem):
        hub: Any = system.handler
        return str(hub.fs.info(info.path).get("blob_id", ""))  # known from the listing
    return int(info.mtime_ns or 0)
