"""Where a service keeps what it knows: a database (SQLite in its data folder, or Postgres) and its blobs.

Beside the wrong database everything in a folder would count as left over by a crash, and be removed; beside
the wrong folder every batch would be lost. So a Postgres database has a name of its own, which stands in the
folder of its blobs too, and nothing is begun where the two do not fit.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch import ownership
from embatch.durable import write_whole
from embatch.errors import FailedPrecondition, InvalidArgument
from embatch.server import folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import URL

    from embatch.store.blobs import FolderBlobs
    from embatch.store.sole_use import SoleUse
    from embatch.store.store import Store

FLAG: Final = "--database"
VARIABLE: Final = "EMBATCH_DATABASE"
MARK: Final = "database.id"
_FORM: Final = "postgresql://USER@HOST:PORT/NAME"
_SECRETS: Final = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, slots=True)
class Storage:
    """What is held for one service: nobody else has it while this is open."""

    place: Path
    """The data folder."""
    files: Path
    """The folder of the blobs, which may be the same."""
    database: URL | None
    """A Postgres database; `None`: SQLite in the data folder."""
    sole_use: SoleUse | None
    """What keeps the Postgres database to this service."""

    def open(self) -> tuple[Store, FolderBlobs]:
        """Open both, once each is known to belong to the other. The caller closes the store.

        Raises:
            FailedPrecondition: they do not belong together; or the database is of a newer version.
            DataLoss: the database is damaged, or gone while its blobs are there.
            Unavailable: one of them cannot be used just now.
        """
        from embatch.store.blobs import FolderBlobs  # noqa: PLC0415  (an engine begins to load before)

        blobs = FolderBlobs(self.files)
        blobs.ensure_layout()
        return (_sqlite(blobs) if self.database is None else _postgres(self.database, blobs)), blobs


def database_address(flag: str | None, environ: Mapping[str, str]) -> URL | None:
    """Return the database that a service was told to use; the flag counts before the environment.

    Raises:
        InvalidArgument: it is none, or a flag that holds a password; the message does not show it.
    """
    given = flag if flag is not None else environ.get(VARIABLE) or None
    if given is None:
        return None
    from sqlalchemy import make_url  # noqa: PLC0415  (only such an address needs it so early)
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    name = VARIABLE if flag is None else FLAG
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise InvalidArgument(f"{name} is no address of a database: it is {_FORM}", field=name) from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg") or not url.database:
        raise InvalidArgument(f"{name} is the address of a Postgres database: {_FORM}", field=name)
    if "@" in (url.host or ""):  # what stands before it is the end of a password
        raise InvalidArgument(f"{name} has an @ too many: in a password it is written %40", field=name)
    if flag is not None and (url.password is not None or _SECRETS & url.query.keys()):
        raise InvalidArgument(
            f"{FLAG} holds a password, which everybody on this machine can read in `ps`: give the address in "
            f"{VARIABLE}, or the password in PGPASSWORD or ~/.pgpass",
            field=FLAG,
        )
    return url.set(drivername="postgresql+psycopg")


@contextmanager
def held(place: Path, files: Path | None, database: URL | None) -> Iterator[Storage]:
    """Hold data folder, blobs and database for one service.

    Args:
        place: the data folder.
        files: the folder of the blobs; `None`: the data folder.
        database: a Postgres database; `None`: SQLite in the data folder.

    Raises:
        FolderTaken, DatabaseTaken: another service holds one of them.
        InvalidArgument: a folder cannot be used, or a driver is not installed.
        Unavailable: the database cannot be reached.
    """
    if files is None or files.resolve() == place.resolve():  # by another path it is the same lock
        files = place
    with folder.locked(place), nullcontext() if files is place else folder.locked(files):
        if database is None:
            yield Storage(place, files, None, None)
            return
        from embatch.store.sole_use import SoleUse  # noqa: PLC0415

        sole_use = SoleUse.take(database)
        try:
            yield Storage(place, files, database, sole_use)
        finally:
            sole_use.close()


def _sqlite(blobs: FolderBlobs) -> Store:
    from embatch.store.faults import database_gone  # noqa: PLC0415
    from embatch.store.store import Store  # noqa: PLC0415

    if _mark(blobs.root) is not None:
        raise FailedPrecondition(
            f"{blobs.root} holds the files of a Postgres database: name it ({FLAG} or {VARIABLE}), or "
            "another data folder (--data)",
            field="--data",
        )
    database = blobs.root / "embatch.db"
    if not _written(database) and blobs.hold_anything():
        raise database_gone()
    return Store.open(f"sqlite:///{database}")


def _postgres(url: URL, blobs: FolderBlobs) -> Store:
    from embatch.store.sole_use import refusals  # noqa: PLC0415
    from embatch.store.store import Store  # noqa: PLC0415

    with refusals(url):
        store = Store.open(url.render_as_string(hide_password=False))
    try:
        _check_mark(blobs, store)
    except BaseException:
        store.close()
        raise
    return store


def _check_mark(blobs: FolderBlobs, store: Store) -> None:
    """Refuse blobs that are not this database's; those that nobody has yet become its own."""
    name, found = store.identity(), _mark(blobs.root)
    if found == name:
        return
    if found is not None or blobs.hold_anything():
        raise FailedPrecondition(
            f"{blobs.root} holds the files of another database: name the folder of this one's (--blobs), or "
            "an empty one",
            field="--blobs",
        )
    if store.ids_of_batches() or store.files(1, None):
        raise FailedPrecondition(
            f"the files of this database are in another folder than {blobs.root}: name that one (--blobs); "
            f"to go on without them, write {name} into {blobs.root / MARK}",
            field="--blobs",
        )
    _write_mark(blobs.root, name)


def _mark(root: Path) -> str | None:
    """Return the name of the database whose blobs a folder holds; `None`: it stands nowhere."""
    try:
        descriptor = ownership.open_own(root / MARK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(64).decode(errors="replace").strip()


def _write_mark(root: Path, name: str) -> None:
    """Write it, whole and durable: what is acknowledged afterwards is found by it."""
    write_whole(root / MARK, f"{name}\n".encode())


def _written(database: Path) -> bool:
    try:
        return database.stat().st_size > 0
    except FileNotFoundError:
        return False
