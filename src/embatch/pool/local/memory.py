"""How much memory loaded engines take, how much they may, and which of them goes when it is too much."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_SHARE: Final = 2
"""Of all memory, one part in so many is the engines' by default."""
_CGROUP: Final = Path("/proc/self/cgroup")
_MOUNT: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_WEIGHTS: Final = (".safetensors", ".onnx", ".onnx_data", ".bin")
_PS_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that has a process."""

    model: str
    lane: str
    bytes: int
    """What its process takes."""
    used: int
    """Higher than that of every engine that was used before."""


@dataclass(frozen=True, slots=True)
class Unloading:
    """Which engines make room."""

    idle: tuple[LoadedEngine, ...] = ()
    """They go at once."""
    busy: frozenset[str] = frozenset()
    """Models whose engines go once nobody uses them: idle ones alone do not make room enough."""


def unloading(
    engines: Sequence[LoadedEngine], limit: int, *, needed: int, keep: str, busy: Collection[str]
) -> Unloading:
    """Return what makes room for the engine of a model, the least recently used ones first.

    Args:
        engines: all that have a process.
        limit: bytes that they may take together.
        needed: bytes that the one takes that is about to be loaded; 0 where it is loaded already.
        keep: the model whose engines stay, however large they are.
        busy: models that somebody uses just now.
    """
    over = sum(engine.bytes for engine in engines) + needed - limit
    idle: list[LoadedEngine] = []
    leaving: set[str] = set()
    others = sorted((one for one in engines if one.model != keep), key=lambda engine: engine.used)
    for engine in sorted(others, key=lambda engine: engine.model in busy):  # idle ones first, in their order
        if over <= 0:
            break
        over -= engine.bytes
        if engine.model in busy:
            leaving.add(engine.model)
        else:
            idle.append(engine)
    return Unloading(tuple(idle), frozenset(leaving))


def allowed(setting: int) -> int:
    """Return the bytes that loaded engines may take: what was set, or for 0 half of what there is."""
    return setting or (available() // _SHARE)


def available(cgroup: Path = _CGROUP, mount: Path = _MOUNT) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _read(cgroup).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0" and not controllers:
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A group is bound by those above it too; within a container the path may be that of outside.
        folder = root / place.lstrip("/")
        for group in (folder, *folder.parents):
            limit = _read(group / name).strip()
            if limit.isdecimal():
                found = min(found, int(limit))
            if group == root:
                break
    return found


def taken(pid: int) -> int:
    """Return the bytes of memory that a process takes, its part of what it shares; 0 for one that is gone."""
    for line in _read(_PROC / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    if _PROC.is_dir():
        pages = _read(_PROC / str(pid) / "statm").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0
    try:  # macOS
        said = subprocess.run(  # noqa: S603  (a number is all that is not ours)
            ["/bin/ps", "-o", "rss=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PS_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(said.stdout) << 10 if said.stdout.strip().isdecimal() else 0


def expected(model: str) -> int:
    """Return the bytes that an engine takes at the least: those of the weights in a model's folder."""
    folder = Path(model)
    if not folder.is_absolute():
        return 0
    sizes: dict[str, list[int]] = {}
    for file in (*folder.glob("*"), *folder.glob("onnx/*")):
        if file.suffix in _WEIGHTS and file.is_file():
            sizes.setdefault(file.suffix, []).append(file.stat().st_size)
    return max(map(sum, sizes.values()), default=0)  # one form of them is loaded


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
