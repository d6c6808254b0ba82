"""A private service as a process of its own: starting it, and what it said where it did not come up."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from embatch import ownership
from embatch.errors import FailedPrecondition, InvalidArgument, printable
from embatch.wire.private import COLD

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_TAKEN: Final = 75
"""What a service ends with whose folder another one holds."""
_NEEDED: Final = ("fastapi", "uvicorn", "sqlalchemy", "alembic")
_LOG_BYTES: Final = 8 << 20
_SAID_BYTES: Final = 16 << 10
"""Of the log, from its end, where it has to say why a service did not come up."""


class Child(subprocess.Popen[bytes]):
    """The service's process. It outlives this object on purpose, so its end is not warned about."""

    def __del__(self) -> None:
        pass


_children: list[Child] = []


def start(data: Path, *, preload: bool = True) -> Child:
    """Start a service on a data folder, which is made if it is not there; do not wait for it.

    `preload`: whether it loads its default model at once, or when that is needed.

    Raises:
        InvalidArgument: the folder cannot be used.
        FailedPrecondition: the `local` extra is not installed, or this Python does not know its own path.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f'the local service needs {", ".join(missing)}: pip install "embatch[local]", '
            "or name a service's address as the target",
            field="target",
        )
    if not sys.executable:
        raise FailedPrecondition(
            "this Python does not know its own path, so it cannot start the local service: run "
            "`embatch serve` and name its address as the target",
            field="target",
        )
    try:
        ownership.make_folder(data)
        log = ownership.open_own(_log(data), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise InvalidArgument(f"the data folder cannot be used: {error}", field="data") from None
    try:
        if os.fstat(log).st_size > _LOG_BYTES:
            os.ftruncate(log, 0)
        child = Child(
            [sys.executable, "-m", "embatch.server", str(data), *(() if preload else (COLD,))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # The folder a user happens to work in must not shadow the service's modules.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    finally:
        os.close(log)
    reap()
    _children.append(child)
    return child


def reap() -> None:
    """Take leave of services that we started and that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def _log(data: Path) -> Path:
    return data / "service.log"


def why(data: Path, what: str) -> str:
    """Return what went wrong, with the path of the log and its last lines."""
    lines: list[str] = []
    with contextlib.suppress(OSError), os.fdopen(ownership.open_own(_log(data), os.O_RDONLY), "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _SAID_BYTES))
        lines = log.read().decode(errors="replace").splitlines()[-5:]
    said = "".join(f"\n  {printable(line, 300)}" for line in lines)
    return f"{what}; its log is {_log(data)}{':' if said else ''}{said}"
