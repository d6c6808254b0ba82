"""Fixtures of the kernel's tests: its portable build, which computes the same on any processor, only slower.

It is compiled once and kept in `build`, under a name that changes with its source.
"""

from __future__ import annotations

import fcntl
import hashlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embatch.engine.amx.library import ELSEWHERE, SWITCH

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def portable() -> Path:
    """The library; tests that want it are skipped where nothing can be compiled."""
    digest = hashlib.sha256()
    for source in sorted({*(ROOT / "kernel").glob("*.*")} - {ROOT / "kernel" / "fuzz.cpp"}):
        digest.update(source.read_bytes())
    library = ROOT / "build" / f"portable-{digest.hexdigest()[:16]}.so"
    compile_ = runpy.run_path(str(ROOT / "kernel" / "compile.py"))
    library.parent.mkdir(exist_ok=True)
    with (library.parent / "portable.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not library.exists():
                compile_["compiler"]()
                compile_["portable"](library)
        except compile_["NotCompiled"] as problem:
            if "failed" in str(problem):
                raise
            pytest.skip(str(problem))
    return library


@pytest.fixture(scope="module")
def kernel(portable: Path) -> Iterator[Path]:
    """The processor seems to have AMX: whatever looks for the kernel finds the portable build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ELSEWHERE, str(portable))
        patch.delenv(SWITCH, raising=False)
        yield portable
