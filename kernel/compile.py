"""Compile the kernel: for an installation, for tests on any processor, as a program that tries it.

Standard library only: installing embatch from source runs this. As a command it compiles that program and
runs it: `python3 kernel/compile.py [SECONDS [SEED]]`.
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
AMX = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
    *("-mamx-tile", "-mamx-bf16", "-mtune=sapphirerapids"),
    # Of gcc's own headers, which leave registers undefined on purpose.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
SPECIAL = ("encoder", "model")
"""What is compiled with the flags above; `detect` must run on every processor."""
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-mfma")


NO_AMX = 2
"""Exit code of that program on a processor without AMX."""


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
    raise NotCompiled("there is no C++ compiler: install g++ or clang++, or set CXX")


def native(target: Path, flags: Sequence[str] = (), *, wanted: bool = True) -> None:
    """Compile the library of this platform; some seconds. It appears whole or not at all.

    Raises:
        NotCompiled: it is not wanted, there is no compiler, or it is too old to know AMX (gcc 11 and clang 12
            are not).
    """
    if not wanted:
        raise NotCompiled("it is switched off")
    _library(target, [(f"{name}.cpp", (*AMX, *flags)) for name in SPECIAL] + [("detect.cpp", tuple(flags))])


def portable(target: Path) -> None:
    """Compile the library that computes the same on any processor, tens of times slower: for tests.

    Raises:
        NotCompiled: as `native`.
    """
    flags = ("-DEMBATCH_PORTABLE", "-march=native", *STRICT)
    _library(target, [(f"{name}.cpp", flags) for name in (*SPECIAL, "detect")])


def fuzzer(target: Path, *, amx: bool) -> None:
    """Compile the program that compares the kernel with float64 at random.

    Args:
        target: the program.
        amx: for a processor with AMX; else the portable kernel under the address and the undefined
            behaviour sanitizer.

    Raises:
        NotCompiled: as `native`.
    """
    link = ("-static", "-pthread") if amx else (*SANITIZED, "-pthread")
    plain = STRICT if amx else (*STRICT, *SANITIZED, "-DEMBATCH_PORTABLE")
    special = (*plain, *AMX) if amx else plain
    parts = [(f"{name}.cpp", special) for name in SPECIAL] + [("detect.cpp", plain), ("fuzz.cpp", plain)]
    _link(target, parts, link)


def wheel_tag(library: Path) -> str:
    """Return the tag of a wheel with this library: for all Pythons, and every Linux that has its glibc.

    Raises:
        NotCompiled: the library does not say which C library it needs.
    """
    needed = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())}
    if not needed:
        raise NotCompiled("the library is not for glibc, and other wheels than manylinux are not made")
    return f"py3-none-manylinux_2_{max(17, *needed)}_x86_64"


def _library(target: Path, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
    _link(target, parts, ("-shared", "-Wl,--as-needed", "-Wl,-s"))


def _link(target: Path, parts: Sequence[tuple[str, Sequence[str]]], flags: Sequence[str]) -> None:
    command = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
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
    """Try the portable kernel under sanitizers, then the native one where there is AMX."""
    for name, amx in (("sanitized", False), ("native", True)):
        program = HERE.parent / "build" / f"fuzz-{name}"
        try:
            fuzzer(program, amx=amx)
        except NotCompiled as problem:
            print(problem, file=sys.stderr)
            return 1
        print(f"{name}: ", end="", flush=True)
        code = subprocess.run([program, *sys.argv[1:]], check=False).returncode
        if code and not (amx and code == NO_AMX):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
