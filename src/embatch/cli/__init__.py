"""The command line: `embatch embed | submit | watch | results | list | serve | doctor`, and a few more.

Commands talk to the private service of the data folder, which starts and ends by itself, or to the service
that `--to` names. Exit codes: 0 done · 1 failed · 2 usage · 3 finished with failed rows · 4 not authorised ·
6 wait timed out · 75 the data folder is taken · 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

# Importing a module of commands is what adds them to the application.
from embatch.cli import batches, doctor, runs, serving  # noqa: F401
from embatch.cli.app import DONE, FAILED, INTERRUPTED, REFUSED, TIMED_OUT, USAGE, app
from embatch.display import report
from embatch.errors import (
    BatchFailed,
    BatchNotCompleted,
    BatchTimeout,
    EmbatchError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def _exit_code(error: EmbatchError) -> int:
    """Return the code that tells a script what kind of trouble it was."""
    match error:
        case Unauthenticated() | PermissionDenied():
            return REFUSED
        case BatchTimeout():
            return TIMED_OUT
        case InvalidArgument():
            return USAGE
        case BatchFailed() | BatchNotCompleted():
            return FAILED
        case _:
            return FAILED


def _place_errors() -> tuple[type[Exception], ...]:
    """Return what is raised where a file or a store is at fault; Arrow's own only if anybody imported it."""
    arrow = sys.modules.get("pyarrow")
    return (OSError,) if arrow is None else (OSError, arrow.ArrowException)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the locale cannot write, or no locale can, is shown with escapes and ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, result_action="return_value")
    except EmbatchError as error:
        field = f" ({error.field})" if error.field else ""
        report(f"error: {error.message}{field}")
        code = _exit_code(error)
    except KeyboardInterrupt:
        report("interrupted: the work stays in the data folder, the same command goes on with it")
        code = INTERRUPTED
    except _place_errors() as error:  # what says more of it has caught it before
        report(f"error: {error}")
        code = FAILED
    sys.exit(code if isinstance(code, int) else DONE)


__all__ = ["app", "main"]
