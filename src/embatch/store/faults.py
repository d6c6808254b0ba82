"""What an error of the database or the disk means for those who wait for an answer, and for the service.

A statement may be refused because it is wrong or breaks a constraint: that is its own affair. Everything else
is trouble, and trouble has five kinds. The error that users see says what to do about each.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from embatch.errors import DataLoss, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection, Engine

_FULL_ERRNO: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Trouble(Enum):
    """What keeps a write from being done."""

    FULL = auto()
    """No room: nothing changed, and room can be made."""
    BUSY = auto()
    """Somebody else holds the database: nothing changed, try again."""
    LOST = auto()
    """The connection broke. Before a commit nothing changed; during one nobody knows."""
    BROKEN = auto()
    """The disk failed. What was being committed may yet appear."""
    DAMAGED = auto()
    """The database is not what was written."""

    @property
    def error(self) -> Unavailable | DataLoss:
        """What the caller is told."""
        return _ERRORS[self]()


_MOMENT: Final = 1.0
"""Seconds after which a full disk may be tried again. Clients wait as they are told before they say what is
wrong, and only a person can make room: they should say it soon."""


def storage_full() -> Unavailable:
    """Return the error of a full disk. Nothing changed; it is safe to repeat."""
    return Unavailable(
        "the disk of the data folder is full: free some space", reason="STORAGE_FULL", retry_after=_MOMENT
    )


def storage_low(least: int) -> Unavailable:
    """Return the error of a disk that has no room for more work; what was accepted may still be finished."""
    return Unavailable(
        f"the disk of the data folder has less than {least:,} bytes free, kept for what was accepted before: "
        "free some space",
        reason="STORAGE_LOW",
        retry_after=_MOMENT,
    )


def storage_error() -> Unavailable:
    """Return the error of a write whose fate is unknown or that cannot be tried."""
    return Unavailable(
        "the storage reported an error: the service restarts to find out what it holds",
        reason="STORAGE_ERROR",
        retry_after=5.0,
    )


def _storage_busy() -> Unavailable:
    return Unavailable(
        "the database is held by another process: try again", reason="STORAGE_BUSY", retry_after=5.0
    )


def damaged() -> DataLoss:
    """Return the error of a database that does not hold together."""
    return DataLoss(
        "the database is damaged: restore the data folder from a backup", reason="DATABASE_DAMAGED"
    )


def database_gone() -> DataLoss:
    """Return the error of a data folder that holds batches or files and no database that knows of them."""
    return DataLoss(
        "the data folder holds batches or files, but its database embatch.db is missing or empty: restore it "
        "from a backup; to begin anew and lose them, remove the folders batches, files and uploads there",
        reason="DATABASE_GONE",
    )


_ERRORS: Final[Mapping[Trouble, Callable[[], Unavailable | DataLoss]]] = {
    Trouble.FULL: storage_full,
    Trouble.BUSY: _storage_busy,
    Trouble.LOST: storage_error,
    Trouble.BROKEN: storage_error,
    Trouble.DAMAGED: damaged,
}

# Primary result codes of SQLite (sqlite.org/rescode.html).
_SQLITE: Final = {
    5: Trouble.BUSY,
    6: Trouble.BUSY,
    8: Trouble.BROKEN,  # READONLY: the disk was remounted, or the file was replaced under us
    10: Trouble.BROKEN,
    11: Trouble.DAMAGED,
    13: Trouble.FULL,
    14: Trouble.BROKEN,
    26: Trouble.DAMAGED,
}
# SQLSTATE codes of Postgres, whole or by class.
_POSTGRES: Final = {
    "40001": Trouble.BUSY,
    "40P01": Trouble.BUSY,
    "55P03": Trouble.BUSY,
    "57014": Trouble.BUSY,
    "53100": Trouble.FULL,
    "58030": Trouble.BROKEN,
    "08": Trouble.LOST,
    "53": Trouble.BUSY,
    "57": Trouble.LOST,
    "58": Trouble.BROKEN,
    "XX": Trouble.DAMAGED,
}


def trouble(error: DBAPIError) -> Trouble | None:
    """Return what kind of trouble an error is; `None` if only the statement itself is at fault."""
    number = getattr(error.orig, "sqlite_errorcode", None)
    if number is not None:
        return _SQLITE.get(number & 0xFF)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return _POSTGRES.get(state) or _POSTGRES.get(state[:2])
    return Trouble.LOST if isinstance(error, (OperationalError, InterfaceError)) else None


@contextmanager
def reading(readers: Engine) -> Iterator[Connection]:
    """Lend a reading connection, for a few statements: a long read keeps the write-ahead log from shrinking.

    Raises:
        Unavailable: the database cannot be reached just now.
        DataLoss: it is damaged.
    """
    try:
        with readers.connect() as connection:
            yield connection
    except PoolTimeoutError as error:
        raise Trouble.BUSY.error from error
    except DBAPIError as error:
        kind = trouble(error)
        if kind is None:
            raise
        raise kind.error from error


def unreadable(error: OSError) -> Unavailable:
    """Return what a failed read of a file means: that it cannot be read just now, and no more."""
    return Unavailable(
        f"the data folder cannot be read just now: {os.strerror(error.errno or 0)}",
        reason="STORAGE_UNREADABLE",
        retry_after=5.0,
    )


def disk(error: OSError) -> Unavailable:
    """Return what a failed write of a file means."""
    if error.errno in _FULL_ERRNO:
        return storage_full()
    return Unavailable(
        f"the data folder cannot be written: {os.strerror(error.errno or 0)}",
        reason="STORAGE_ERROR",
        retry_after=5.0,
    )
