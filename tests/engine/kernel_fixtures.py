"""Fixtures of the kernel's tests: builds that compute the same without AMX, only slower.

They are compiled once and kept in `build`, under names that change with their source.
"""

from __future__ import annotations

import fcntl
import hashlib
import runpy
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from embatch.engine.amx.library import ELSEWHERE, SWITCH, opened
from embatch.engine.machine import processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


def compiled(*flags: str, build: Literal["portable", "vectors", "native"] = "portable") -> Path:
    """Return a build; what wants it is skipped where nothing can be compiled."""
    digest = hashlib.sha256(processor().encode())  # it is compiled for this very one
    for flag in flags:
        digest.update(flag.encode())
    for source in sorted({*(ROOT / "kernel").glob("*.*")} - {*(ROOT / "kernel").glob("fuzz*")}):
        digest.update(source.read_bytes())
    library = ROOT / "build" / f"{build}-{digest.hexdigest()[:16]}.so"
    compile_ = runpy.run_path(str(ROOT / "kernel" / "compile.py"))
    library.parent.mkdir(exist_ok=True)
    with (library.parent / f"{build}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not library.exists():
                compile_["compiler"]()
                if build == "native":
                    compile_["native"](library, flags)
                else:
                    compile_["portable"](library, flags, vectors=build == "vectors")
        except compile_["NotCompiled"] as problem:
            if "failed" in str(problem):
                raise
            pytest.skip(str(problem))
    return library


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[int, int], Path]:
    """Makes a library that gives these answers, and has of the other functions no more than their names."""

    def make(interface: int, supported: int) -> Path:
        library, source = tmp_path / "stand-in.so", tmp_path / "stand-in.cpp"
        answers = {"interface": interface, "supported": supported}
        answers |= dict.fromkeys(("load", "forward", "exact_rows", "free"), 0)
        source.write_text(
            "".join(f'extern "C" int embatch_amx_{name}() {{ return {n}; }}\n' for name, n in answers.items())
        )
        compile_ = runpy.run_path(str(ROOT / "kernel" / "compile.py"))
        try:
            command = compile_["compiler"]()
        except compile_["NotCompiled"] as problem:
            pytest.skip(str(problem))
        subprocess.run([*command, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        return library

    return make


@pytest.fixture(scope="session")
def portable() -> Path:
    """The library that computes the same on any processor."""
    return compiled()


@pytest.fixture(scope="session")
def pieces() -> Path:
    """The same, but sums of more than 64 inputs are added up in pieces; little is computed with it."""
    return compiled("-DEMBATCH_RESIDENT=2", "-O1")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The library with the native vectors and the portable tiles; tests are skipped where it cannot run."""
    library = compiled(build="vectors")
    problem = opened(library).refusal()
    if problem:
        pytest.skip("this processor has no AVX-512 with bfloat16")
    return library


@pytest.fixture(scope="session")
def native() -> Path:
    """The library as it is shipped; tests are skipped where it cannot run."""
    library = compiled(build="native")
    problem = opened(library).refusal()
    if problem:
        pytest.skip(problem)
    return library


@pytest.fixture(scope="module")
def kernel(portable: Path) -> Iterator[Path]:
    """The processor seems to have AMX: whatever looks for the kernel finds the portable build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ELSEWHERE, str(portable))
        patch.delenv(SWITCH, raising=False)
        yield portable
