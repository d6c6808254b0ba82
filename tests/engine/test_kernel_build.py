"""Building: a platform wheel with the library, a pure one without, and what is said where it cannot be."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
LIBRARY = "embatch/engine/amx/libembatch_amx.so"
pytest_plugins = ("kernel_fixtures",)

NOWHERE = {"CXX": "/nowhere/c++"}


def build(
    out: Path, tree: Path, environment: Mapping[str, str], *, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    """Build a wheel of a copy of the source."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a source distribution holds, so that no build touches the installation the tests run in."""
    place = tmp_path_factory.mktemp("tree")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(place)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = place.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", archive, "-C", place], check=True)  # as pip does
    (unpacked,) = (path for path in place.iterdir() if path.is_dir())
    return unpacked


def test_a_platform_wheel(tree: Path, tmp_path: Path, portable: Path) -> None:
    """It is for every Python, says which glibc it needs, and its library answers on any processor."""
    build(tmp_path, tree, {"EMBATCH_KERNEL": "require"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    script = "from embatch.engine import amx; from embatch.engine.amx import library; print(amx.__file__)\n"
    script += "print(library.opened(library._file()).refusal(), amx.unavailable(), sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    place, said = done.stdout.splitlines()
    assert place.startswith(str(tmp_path))
    refusal, unavailable = said.split("|")
    assert refusal == unavailable


@pytest.mark.parametrize("environment", [{"EMBATCH_KERNEL": "off"}, NOWHERE])
def test_a_pure_wheel(tree: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    """Unwanted or without a compiler the wheel is pure, and building says so once."""
    done = build(tmp_path, tree, environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert LIBRARY not in opened.namelist()
        assert "embatch/engine/amx/engine.py" in opened.namelist()
    assert (done.stdout + done.stderr).count("OpenVINO serves") == 1


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="there is no kernel for this machine"
)
def test_a_wheel_that_must_have_it(tree: Path, tmp_path: Path) -> None:
    """`EMBATCH_KERNEL=require` fails with the reason; another word is an error."""
    done = build(tmp_path, tree, {**NOWHERE, "EMBATCH_KERNEL": "require"}, fails=True)
    assert "no compiler /nowhere/c++" in done.stderr
    done = build(tmp_path, tree, {"EMBATCH_KERNEL": "perhaps"}, fails=True)
    assert "EMBATCH_KERNEL must be auto, off or require" in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_a_compiler_that_fails(tree: Path, tmp_path: Path) -> None:
    """What it said stands in the reason; nothing half compiled is left."""
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho unknown option -mamx-tile\nexit 1\n")
    broken.chmod(0o755)
    done = build(tmp_path, tree, {"CXX": str(broken), "EMBATCH_KERNEL": "require"}, fails=True)
    assert "unknown option -mamx-tile" in done.stderr
    assert not list((tree / "src" / LIBRARY).parent.glob(".kernel-*"))


def test_a_library_that_cannot_be_written(portable: Path, tmp_path: Path) -> None:
    """It is a reason like any other to go on without it: `auto` then installs without the kernel."""
    compile_ = runpy.run_path(str(ROOT / "kernel" / "compile.py"))
    (tmp_path / "file").touch()
    with pytest.raises(compile_["NotCompiled"], match="cannot be written"):
        compile_["native"](tmp_path / "file" / "library.so")


def test_leftovers_are_not_packed(tree: Path, tmp_path: Path) -> None:
    """What a killed build leaves beside the library is in no wheel."""
    leftover = (tree / "src" / LIBRARY).parent / ".kernel-left"
    leftover.mkdir()
    (leftover / "encoder.o").touch()
    try:
        build(tmp_path, tree, {"EMBATCH_KERNEL": "off"})
    finally:
        shutil.rmtree(leftover)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert not [name for name in opened.namelist() if ".kernel-" in name]


@pytest.mark.long
def test_the_kernel_at_random(portable: Path) -> None:
    """`run.py test-kernel` compiles every build that can run here and finds no fault in any of them."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "kernel" / "compile.py"), "30", "1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain: " in done.stdout
    assert "least cosine 0.99" in done.stdout
