"""Compile the kernel: for an installation, for tests without AMX, as a program that tries it.

Standard library only: installing embatch from source runs this. As a command it compiles that program, in
every build that this processor can run, and runs it: `python3 kernel/compile.py [SECONDS [SEED]]`.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
LIBRARY = "libembatch_amx.so"
GENERAL = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-ffp-contract=off",  # a product and a sum are one operation where the source says so, and nowhere else
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-fPIC",
)
STRICT = ("-Wall", "-Wextra", "-Werror")
VECTORS = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
    # Of gcc's own headers, which leave registers undefined on purpose.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
)
PLAIN = ("-DEMBATCH_PORTABLE",)
WITH_VECTORS = (*PLAIN, "-DEMBATCH_VECTORS")
AMX = (*VECTORS, "-mamx-tile", "-mamx-bf16", "-mtune=sapphirerapids")
SPECIAL = ("encoder", "model")
"""What is compiled with the flags above; `detect` must run on every processor."""
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-mfma")
BUILDS = {
    "plain": (SANITIZED, (*SANITIZED, *PLAIN), ()),
    "vectors": (SANITIZED, (*SANITIZED, *WITH_VECTORS), VECTORS),
    "native": (("-static",), (), AMX),
}
"""Flags of a program that tries the kernel: to link it, of every source, of `SPECIAL` besides."""
CANNOT_RUN = 2
"""Exit code of that program on a processor that lacks what its build needs."""


class NotCompiled(Exception):
    """There is no library, and why."""


def compiler() -> list[str]:
    """Return the command of the C++ compiler: `CXX`, or the first that is found.

    Raises:
        NotCompiled: there is none, or no kernel for this machine.
    """
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "AMD64"}:
        raise NotCompiled("the kernel is for Linux on x86-64 processors")
    chosen = os.environ.get("CXX", "").split()
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    if chosen:
        raise NotCompiled(f"there is no compiler {chosen[0]}, as CXX says")
    raise NotCompiled("there is no C++ compiler: install g++ or clang++, or set CXX")


def native(target: Path, flags: Sequence[str] = (), *, wanted: bool = True) -> None:
    """Compile the library of this platform; some seconds. It appears whole or not at all.

    Raises:
        NotCompiled: it is not wanted, there is no compiler, or it is too old to know AMX (gcc 11 and clang 14
            are not).
    """
    if not wanted:
        raise NotCompiled("it is switched off")
    _library(target, flags, AMX)


def portable(target: Path, flags: Sequence[str] = (), *, vectors: bool = False) -> None:
    """Compile a library that computes the same without AMX, tens of times slower: for tests.

    Args:
        target: the library.
        flags: they go to every source.
        vectors: with the native build's vectors, for a processor with AVX-512 and bfloat16; else for any.

    Raises:
        NotCompiled: as `native`.
    """
    build, special = (WITH_VECTORS, VECTORS) if vectors else (PLAIN, ("-march=native",))
    _library(target, (*STRICT, *flags, *build), special)


def variant(target: Path, flags: Sequence[str] = (), *, amx: bool, profiled: bool = False) -> None:
    """Compile a library with further flags, such as `-DEMBATCH_RESIDENT=64`: for benchmarks.

    Args:
        target: the library.
        flags: they go to every source.
        amx: the native build; else the one with the native vectors, whose times mean nothing.
        profiled: one that counts its stages' cycles and can tell the rate of the tiles (`profile.cpp`).

    Raises:
        NotCompiled: as `native`.
    """
    build, special = ((), AMX) if amx else (WITH_VECTORS, VECTORS)
    more, sources = (("-DEMBATCH_PROFILE",), (*SPECIAL, "profile")) if profiled else ((), SPECIAL)
    _library(target, (*flags, *build, *more), special, sources)


def fuzzer(target: Path, build: str) -> None:
    """Compile the program that compares the kernel with float64 at random.

    Args:
        target: the program.
        build: one of `BUILDS`. What runs without AMX does so under the address and the undefined behaviour
            sanitizer.

    Raises:
        NotCompiled: as `native`.
    """
    link, flags, special = BUILDS[build]
    _link(target, _parts((*STRICT, *flags), special, SPECIAL, ("detect", "fuzz")), (*link, "-pthread"))


def wheel_tag(library: Path) -> str:
    """Return the tag of a wheel with this library: for all Pythons, and every Linux that has its glibc.

    Raises:
        NotCompiled: the library does not say which C library it needs.
    """
    needed = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())}
    if not needed:
        raise NotCompiled("the library is not for glibc, and other wheels than manylinux are not made")
    return f"py3-none-manylinux_2_{max(17, *needed)}_x86_64"


def _library(
    target: Path, flags: Sequence[str], special: Sequence[str], sources: Sequence[str] = SPECIAL
) -> None:
    """Compile `sources` with both kinds of flags and the detection with the first alone, and link them."""
    _link(target, _parts(flags, special, sources, ("detect",)), ("-shared", "-Wl,--as-needed", "-Wl,-s"))


def _parts(
    flags: Sequence[str], special: Sequence[str], sources: Sequence[str], others: Sequence[str]
) -> list[tuple[str, Sequence[str]]]:
    found: list[tuple[str, Sequence[str]]] = [(f"{name}.cpp", (*flags, *special)) for name in sources]
    return found + [(f"{name}.cpp", tuple(flags)) for name in others]


def _link(target: Path, parts: Sequence[tuple[str, Sequence[str]]], flags: Sequence[str]) -> None:
    command = compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_in_place(command, target, parts, flags)
    except OSError as problem:  # a full disk, a folder that is not ours
        raise NotCompiled(f"the library cannot be written: {problem}") from problem


def _link_in_place(
    command: list[str], target: Path, parts: Sequence[tuple[str, Sequence[str]]], flags: Sequence[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernel-") as place:
        objects = [Path(place, f"{Path(source).stem}.o") for source, _ in parts]
        running = [
            _begin([*command, *GENERAL, *special, "-c", str(HERE / source), "-o", str(made)])
            for made, (source, special) in zip(objects, parts, strict=True)
        ]
        said = [_end(one) for one in running]
        if any(words is not None for words in said):
            raise NotCompiled(next(words for words in said if words is not None))
        whole = Path(place, target.name)
        problem = _end(_begin([*command, *map(str, objects), "-o", str(whole), *flags]))
        if problem is not None:
            raise NotCompiled(problem)
        whole.replace(target)


def _begin(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _end(running: subprocess.Popen[str]) -> str | None:
    """Return what a command that failed said; `None` if it did not fail."""
    said, _ = running.communicate()
    return f"the C++ compiler failed:\n{said[:4000]}" if running.returncode else None


def main() -> int:
    """Try every build that this processor can run, one after the other, each with the same cases."""
    for build in BUILDS:
        program = HERE.parent / "build" / f"fuzz-{build}"
        try:
            fuzzer(program, build)
        except NotCompiled as problem:
            print(problem, file=sys.stderr)
            return 1
        print(f"{build}: ", end="", flush=True)
        code = subprocess.run([program, *sys.argv[1:]], check=False).returncode
        if code and not (build != "plain" and code == CANNOT_RUN):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
