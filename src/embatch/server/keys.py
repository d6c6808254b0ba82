"""The file of keys as the running service holds it: read at the start, and again when it is told to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from embatch.api.auth import FIELD, Access, Keys, read_keys
from embatch.errors import InvalidArgument, printable
from embatch.events import KeysNotRead, KeysRead, emit
from embatch.ownership import read_secret

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES: Final = 256 << 10
"""Of the file: some thousand keys, with all of which each request's is compared."""


class KeyFile:
    """Where the keys of a service stand, and those that count now.

    Args:
        path: the file, this user's alone (0600); relative to where the service is started.

    Raises:
        InvalidArgument: the service must not start with it: it cannot be read, is not this user's alone, or
            holds no key, a malformed line, or an id or SHA-256 twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self._shown = printable(str(self._path))
        self.access = Access(self._read())

    def read_again(self) -> None:
        """Let what stands in the file count from the next request on; what is wrong with it changes nothing.

        Repeating is safe.
        """
        try:
            self.access.keys = self._read()
        except InvalidArgument as error:
            emit(KeysNotRead(reason=error.message))
            return
        emit(KeysRead(keys=len(self.access.keys.digests)))

    def _read(self) -> Keys:
        try:
            data = read_secret(self._path, _MOST_BYTES)
        except InvalidArgument as error:
            missing = "" if os.path.lexists(self._path) else f" (embatch keys new >> {self._shown} makes it)"
            raise InvalidArgument(f"the file of keys {error.message}{missing}", field=FIELD) from None
        return read_keys(data, f"the file of keys {self._shown}")
