"""Which Pythons are promised, and how `run.py` finds them and keeps their environments apart."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
OTHER = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"
"""A version that this is not."""


def run_py(folder: Path) -> Mapping[str, Any]:
    """Return what a copy of run.py in a folder defines."""
    shutil.copy(ROOT / "run.py", folder / "run.py")
    return runpy.run_path(str(folder / "run.py"))


def program(folder: Path, says: str, code: int = 0) -> Path:
    """Make a program by the name of another Python that says something and ends with a code."""
    folder.mkdir(parents=True)
    path = folder / f"python{OTHER}"
    path.write_text(f"#!/bin/sh\necho {says}\nexit {code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_what_is_promised_is_tried(tmp_path: Path) -> None:
    """The oldest version promised is the first that is tried, and every version claimed is among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    tried = run_py(tmp_path)["PYTHONS"]
    claimed = [name.rpartition(" ")[2] for name in project["classifiers"] if ":: Python :: 3." in name]
    assert project["requires-python"] == f">={tried[0]}"
    assert set(claimed) <= set(tried)
    assert claimed[0] == tried[0]


def test_a_name_that_leads_nowhere_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a Python that runs and is of the version counts; pyenv has some that are not on PATH."""
    broken, old = program(tmp_path / "a", "not found", 127), program(tmp_path / "b", "3.1")
    (tmp_path / "c" / f"python{OTHER}").mkdir(parents=True)
    places = [str(broken.parent), str(old.parent), str(tmp_path / "c"), str(tmp_path / "nothing")]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    interpreter = run_py(tmp_path)["interpreter"]
    assert interpreter(OTHER) is None
    good = program(tmp_path / "pyenv" / "versions" / f"{OTHER}.7" / "bin", OTHER)
    assert interpreter(OTHER) == good
    assert interpreter(f"{sys.version_info[0]}.{sys.version_info[1]}") == Path(sys.executable)


@pytest.mark.parametrize(
    ("about", "apart"),
    [
        (f"home = /usr/bin\nversion = {OTHER}.3\n", True),
        (f"version_info = {OTHER}.3.final.0\n", True),
        (f"version = {sys.version.split()[0]}\n", False),
        ("home = /usr/bin\n", False),
        (None, False),
    ],
)
def test_each_python_has_an_environment_of_its_own(tmp_path: Path, about: str | None, apart: bool) -> None:  # noqa: FBT001
    """One that another version made is left to it; one whose Python has gone is made again."""
    named, place = run_py(tmp_path)["named"], tmp_path / ".venv"
    if about is not None:
        place.mkdir()
        (place / "pyvenv.cfg").write_text(about, encoding="utf-8")
        assert named(".venv") == ".venv"
        (place / "bin").mkdir()
        (place / "bin" / "python").touch()
    own = f".venv-{sys.version_info[0]}.{sys.version_info[1]}"
    assert named(".venv") == (own if apart else ".venv")
