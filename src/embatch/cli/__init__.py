"""The command line: `embatch embed | submit | watch | results | list | serve | keys | doctor`, and more.

Commands talk to the private service of the data folder, which starts and ends by itself, or to the service
that `--to` names. Exit codes: 0 done · 1 failed · 2 usage · 3 finished with failed rows · 4 not authorised ·
6 wait timed out · 75 the data folder is taken · 130 interrupted (the same command goes on). They say how the
work went, whoever reads or does not read what is shown.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from cyclopts import CycloptsError

# Importing a module of commands is what adds them to the application.
from embatch.cli import all_runs, batches, doctor, keys, runs, serving, stopping, streams  # noqa: F401
from embatch.cli.app import DONE, FAILED, INTERRUPTED, REFUSED, TIMED_OUT, USAGE, app
from embatch.cli.display import report, silence
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

_OPTIONS: Final = {
    "alias": "--alias",
    "api_key": "GOOGLE_API_KEY",
    "data": "--data",
    "dimensions": "--dim",
    "display_name": "--name",
    "engine": "--engine",
    "engine-option": "--engine-option",
    "model": "--model",
    "name": "NAME",
    "output_dimensionality": "--dim",
    "poll_interval": "--interval",
    "precision": "--precision",
    "priority": "--priority",
    "target": "--to",
    "task_type": "--task-type",
    "threads": "--threads",
    "timeout": "--timeout",
}
"""What a user types for a field of a call, by the last part of its name."""
_CAPITAL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


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


def _words(error: EmbatchError) -> str:
    """Return an error's message, with the option at fault where it does not name it."""
    if not error.field:
        return error.message
    # A service may spell the field as its wire does.
    name = _CAPITAL.sub("_", error.field.rpartition(".")[2]).lower()
    option = _OPTIONS.get(name, error.field)
    return error.message if option in error.message else f"{error.message} ({option})"


def _place_errors() -> tuple[type[Exception], ...]:
    """Return what is raised where a file or a store is at fault; Arrow's own only if anybody imported it."""
    arrow = sys.modules.get("pyarrow")
    return (OSError,) if arrow is None else (OSError, arrow.ArrowException)


def _piped(arguments: Sequence[str]) -> str | None:
    """Return what a dash in a file's place is answered: to the parser it is an option without a name."""
    if "-" not in arguments:
        return None
    if arguments[arguments.index("-") - 1] in ("-o", "--out"):
        return "an output appears once it is complete, so it cannot be standard output: name a file (--out)"
    return (
        "embatch reads its input more than once, so it cannot be standard input: write it to a file first, "
        "such as `cat > in.jsonl` (IN)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    with streams.kept():
        code = _run(arguments)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(arguments, result_action="return_value", print_error=False, exit_on_error=False)
    except CycloptsError as error:
        report(f"error: {_piped(sys.argv[1:] if arguments is None else arguments) or error}")
        return USAGE
    except EmbatchError as error:
        report(f"error: {_words(error)}")
        return _exit_code(error)
    except KeyboardInterrupt as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        report(f"interrupted: {notes}" if notes else "interrupted")
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as left:  # the second is what the library of the help makes of it
        if isinstance(left, SystemExit) and not isinstance(left.__context__, BrokenPipeError):
            raise
        silence(sys.stdout)  # whoever read the help has gone
        return DONE
    except _place_errors() as error:  # what says more of it has caught it before
        report(f"error: {error}")
        return FAILED
    return code if isinstance(code, int) else DONE


__all__ = ["app", "main"]
