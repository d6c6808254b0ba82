"""How a format is read: chunks of rows, bad ones in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from embatch.errors import InvalidArgument
from embatch.escapes import visible
from embatch.runs.sources.cutting import running_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.runs.sources.files import File

CHUNK_ROWS: Final = 4096
"""Most rows held at a time while reading."""
CHUNK_BYTES: Final = 16 << 20
"""As many bytes of text, about, are as many rows as are held at a time, however few."""

_LISTED: Final = 30
_NAME: Final = 60
"""Columns that a message lists, and letters of each."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read."""

    text: str
    id: str | None
    id_type: pa.DataType


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a file."""

    ids: pa.Array[Any] | None
    """`None` where no id column was named."""
    texts: list[str | None]
    faults: dict[int, str]

    def ends(self) -> NDArray[np.int64]:
        """Return the bytes of the texts up to the end of each, int64 (rows,)."""
        return running_bytes(self.texts)

    def slice(self, start: int, count: int) -> Chunk:
        """Return at most `count` rows from `start` on."""
        if start == 0 and count >= len(self.texts):
            return self
        texts = self.texts[start : start + count]
        # Of few rows each is looked up: a chunk of bad ones may be cut into as many blocks.
        faults = {at: self.faults[start + at] for at in range(len(texts)) if start + at in self.faults}
        return Chunk(None if self.ids is None else self.ids.slice(start, len(texts)), texts, faults)


class Format(Protocol):
    """A way to read files."""

    def look(self, file: File, text: str | None, id_: str | None) -> Columns | None:
        """Return the columns to read, from a first look; `None` where the file is empty.

        Raises:
            InvalidArgument: it has not the columns that are named, or none can be chosen.
        """
        ...

    def count(self, file: File) -> int | None:
        """Return the rows of a file, `None` where only reading it tells."""
        ...

    def lines(self, file: File, columns: Columns) -> Iterator[int] | None:
        """Yield the number of each row's first line, from 1; `None` for a format without lines."""
        ...

    def read(self, file: File, columns: Columns, skip: int) -> Iterator[Chunk]:
        """Yield the rows; of the first `skip`, texts may be left out, rows not. Raises InvalidArgument."""
        ...


def chosen(file: File, names: Sequence[str], texts: Sequence[str], text: str | None, id_: str | None) -> str:
    """Return the text column: the one named, else `text`, else the only one that holds text.

    Raises:
        InvalidArgument: a named column is neither there nor in the names of folders, or none can be chosen.
    """
    known = [*names, *(name for name in file.partitions if name not in names)]
    has = _some(known)
    for option, name in (("--text", text), ("--id", id_)):
        if name is not None and name not in known:
            likely = f": perhaps {texts[0]!r}?" if option == "--text" and len(texts) == 1 else ""
            raise InvalidArgument(f"{file.label} has no column {name!r}; it has {has}{likely}", field=option)
    others = [name for name in texts if name != id_]
    column = text
    if column is None:
        column = "text" if "text" in names else others[0] if len(others) == 1 else None
    if column is None:
        raise InvalidArgument(
            f"{file.label} has no column 'text'; name one of {has} with --text", field="--text"
        )
    for option, name in (("--text", column), ("--id", id_)):
        if name is not None and list(names).count(name) > 1:
            raise InvalidArgument(
                f"{file.label} has several columns {name!r}: rename all but one", field=option
            )
    return column


def _some(names: Sequence[str]) -> str:
    """Return names as a message can list them, however many and long they are."""
    listed = [visible(name if len(name) <= _NAME else f"{name[:_NAME]}…") for name in names[:_LISTED]]
    more = [f"{len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return ", ".join(listed + more) or "none"
