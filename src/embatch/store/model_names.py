"""What the names of models mean that clients asked a private service for: `models.json` in the data folder.

Batches hold a model's name alone. What it stands for is durable before any batch can hold it, so that the
next service can go on with those that wait.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.durable import write_whole
from embatch.errors import DataLoss
from embatch.ownership import open_own
from embatch.store.faults import disk, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION: Final = 1


class ModelNames:
    """The file, read and written whole. Not for two threads at once."""

    def __init__(self, root: Path) -> None:
        self._file = root / "models.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Return what each name stands for; nothing where nobody asked for any.

        Raises:
            DataLoss: the file is damaged, or of a newer version.
            Unavailable: it cannot be read just now.
        """
        try:
            with os.fdopen(open_own(self._file, os.O_RDONLY), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise unreadable(error) from error
        try:
            said = orjson.loads(content)
        except ValueError:
            said = None
        match said:
            case {"version": 1, "models": dict(models)} if all(
                isinstance(one, dict) for one in models.values()
            ):
                return models
        raise DataLoss(
            f"{self._file} is damaged, or of a newer version of embatch: restore it from a backup, or remove "
            "it; batches that wait for a model in it then wait until it is asked for again"
        )

    def write(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace all of it, durable on return. Raises Unavailable."""
        content = orjson.dumps({"version": _VERSION, "models": models}, option=orjson.OPT_INDENT_2)
        try:
            write_whole(self._file, content + b"\n")
        except OSError as error:
            raise disk(error) from error
