"""Uploads while they grow: files of this machine, for bytes are appended to them.

Of this machine alone: one that is finished gets its second name, among the blobs, by a hard link. The size on
disk is what has been acknowledged, and a broken chunk leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

from embatch.durable import sync, sync_folder
from embatch.errors import NotFound
from embatch.store.faults import disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch.store.blobs import FolderBlobs

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_token(token: str) -> bool:
    """Return whether an upload can have this token, which names files."""
    return _TOKEN.fullmatch(token) is not None


def finished_path(token: str) -> str:
    """Return where among the blobs an upload stands once it is finished: nobody else's ever stand there.

    Raises:
        NotFound: no upload can have this token.
    """
    return f"files/{_checked(token)}"


class Spool:
    """The bytes of uploads under way, by token. One caller at a time for each token.

    All raise NotFound where there is no such upload, and Unavailable where the disk is full or failed.
    """

    def __init__(self, blobs: FolderBlobs) -> None:
        self._blobs = blobs

    def begin(self, token: str) -> None:
        """Begin an empty one."""
        with _on_disk():
            os.close(os.open(self._path(token), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def size(self, token: str) -> int:
        """Return how many bytes have arrived."""
        with _on_disk():
            return self._path(token).stat().st_size

    def holds(self, token: str, offset: int, chunk: bytes) -> bool:
        """Return whether these bytes stand there, as they do when their acknowledgement was lost."""
        return self._holds(self._path(token), offset, chunk)

    def held(self, path: str, offset: int, chunk: bytes) -> bool:
        """Return the same of a finished one, which stands at `path` among the blobs."""
        return self._holds(self._blobs.path(path), offset, chunk)

    def _holds(self, place: Path, offset: int, chunk: bytes) -> bool:
        if not chunk:
            return True
        with _on_disk(), place.open("rb") as file:
            file.seek(offset)
            return file.read(len(chunk)) == chunk

    def append(self, token: str, received: int, chunk: bytes) -> None:
        """Append all of a chunk, behind the bytes that were received, or nothing."""
        with _on_disk(), self._path(token).open("ab", buffering=0) as file:
            left = memoryview(chunk)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(received)
                raise

    def digest(self, token: str) -> str:
        """Make what arrived durable; return its SHA-256 in hex."""
        with _on_disk(), self._path(token).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            sync(file.fileno())
            return found

    def publish(self, token: str) -> None:
        """Let it stand at `finished_path` too, durable on return. Repeating is safe."""
        target = self._blobs.path(finished_path(token))
        with _on_disk():
            with contextlib.suppress(FileExistsError):  # an earlier attempt came so far
                os.link(self._path(token), target)
            sync_folder(target.parent)

    def drop(self, token: str) -> None:
        """Remove what is under way; what was published stays. Repeating is safe."""
        with _on_disk():
            self._path(token).unlink(missing_ok=True)

    def tokens(self) -> Iterator[str]:
        """Yield the token of each one under way; what nobody here made is left out."""
        with os.scandir(self._blobs.path("uploads")) as entries:
            for entry in entries:
                if is_token(entry.name) and entry.is_file(follow_symlinks=False):
                    yield entry.name

    def _path(self, token: str) -> Path:
        return self._blobs.path(f"uploads/{_checked(token)}")


def _checked(token: str) -> str:
    if not is_token(token):
        raise NotFound("there is no such upload: begin it again")
    return token


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    """Say what an error of the disk means."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("there is no such upload: begin it again") from None
    except OSError as error:
        raise disk(error) from error
