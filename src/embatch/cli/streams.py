"""The standard streams and the terminal of a command, any of which may be missing or go away."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""Name and mode, by number."""


@contextmanager
def kept() -> Iterator[None]:
    """Let a command be whole without some of its streams, and outlive its terminal.

    A stream that is closed leads nowhere from then on: else the next file to be opened would get its number,
    and with it whatever a library says on standard error.
    """
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding shows what it can
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:  # `nohup` has said it before us
        yield
        return
    # A function, not SIG_IGN, which what is started from here would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _open_closed() -> None:
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
