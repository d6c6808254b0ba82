"""What this machine's processor can do for an engine."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Final

AFFINITY: Final = "affinity"
"""The option of engines whose threads can be bound: `none`, or `cores`, a core of its own for each."""
_CPUS: Final = Path("/sys/devices/system/cpu")
_CPUINFO: Final = Path("/proc/cpuinfo")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """Return the cores this process may use, two hardware threads of one core counted once."""
    found = len(places(cpus))
    limit, _, period = _read(quota).partition(" ")  # "max 100000", or microseconds of each period
    if limit.isdecimal() and period.isdecimal():
        return max(1, min(found, math.ceil(int(limit) / int(period))))
    return max(1, found)


def places(cpus: Path = _CPUS) -> tuple[int, ...]:
    """Return the number of one hardware thread of each core this process may use, in ascending order."""
    here = hasattr(os, "sched_getaffinity")  # not on macOS
    allowed = os.sched_getaffinity(0) if here else set(range(os.cpu_count() or 1))
    of_core: dict[str, int] = {}
    for cpu in sorted(allowed):
        of_core.setdefault(_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu), cpu)
    return tuple(of_core.values())


def has_amx(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies bfloat16 in tiles (AMX)."""
    return {"amx_tile", "amx_bf16"} <= _flags(cpuinfo)


def has_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies bfloat16 by itself, in tiles or vectors: only then is it fast.

    Twice as fast on Zen 4, which has it in vectors (docs/figures.md); without either it is emulated.
    """
    return has_amx(cpuinfo) or "avx512_bf16" in _flags(cpuinfo)


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """Return what the processor calls itself, such as `AMD EPYC 7763 64-Core Processor`."""
    for line in _read(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _flags(cpuinfo: Path) -> set[str]:
    return set(next((line for line in _read(cpuinfo).splitlines() if line.startswith("flags")), "").split())


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
