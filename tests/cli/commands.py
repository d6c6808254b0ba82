"""Commands run within the process of a test: a process of their own costs a second, and a test starts dozens.

What a command does to its own process (streams, signals, its exit) is tested with real ones.
"""

from __future__ import annotations

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from embatch import cli

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def run_here(
    *arguments: object, environ: Mapping[str, str | None] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to another program; return its exit code and what it said.

    `environ`: variables that it finds, `None` for none; `folder`: where it is run.
    """
    words = [str(argument) for argument in arguments]
    shown = (io.BytesIO(), io.BytesIO())
    out, err = (io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in shown)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"NO_COLOR": "1", **(environ or {})}.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        if folder is not None:
            patch.chdir(folder)
        with pytest.raises(SystemExit) as left:
            cli.main(words)
    code = left.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(
        words, code, shown[0].getvalue().decode(), shown[1].getvalue().decode()
    )
