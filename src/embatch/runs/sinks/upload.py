"""A file put into an object store under its name, whole or not at all.

Arrow's streams know no giving up: one that is closed, or let go of, completes its upload with what has come
so far, in the place of whatever stood there. So the stream of an upload that fails is never let go of: the
store never hears of its end, and keeps what it had.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_PIECE: Final = 8 << 20


def upload(file: BinaryIO, system: FileSystem, path: str) -> None:
    """Put the rest of a file into a store; durable on return, and repeating is safe.

    Whatever it raises, an earlier object under this name is as it was, or the whole file has taken its place
    (where only the last answer was lost). No other object is made; S3 keeps the parts of what failed until a
    rule of the bucket or somebody drops them.

    Raises:
        OSError, ArrowException: the file could not be read, or the store did not take it.
    """
    # In a thread of its own, for Ctrl-C may come at any moment: while a stream is being opened it would be
    # lost before it has a name.
    stop = threading.Event()
    with ThreadPoolExecutor(1, "embatch-upload") as thread:
        sent = thread.submit(_send, file, system, path, stop)
        try:
            sent.result()
        finally:
            stop.set()


def _send(file: BinaryIO, system: FileSystem, path: str, stop: threading.Event) -> None:
    out = system.open_output_stream(path)
    try:
        while (piece := file.read(_PIECE)) and not stop.is_set():
            out.write(piece)
    except BaseException:
        _leave_open(out)
        raise
    if stop.is_set():
        _leave_open(out)
    else:
        out.close()


def _leave_open(stream: Any) -> None:
    """Let a stream live as long as the process: it is never closed, also not when Python ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
