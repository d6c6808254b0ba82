"""Cores and instruction sets, read from files such as Linux has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from embatch.engine.machine import cores, has_amx, has_bf16, places
from embatch.engine.openvino import choose_precision
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be allowed on processors 0 to 3."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


def test_threads_of_one_core_count_once(four: None, tmp_path: Path) -> None:
    """Two hardware threads of a core share its arithmetic."""
    for cpu in range(4):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0,2\n" if cpu % 2 == 0 else "1,3\n")
    assert cores(tmp_path, tmp_path / "none") == 2
    assert places(tmp_path) == (0, 1)
    assert places(tmp_path / "none") == (0, 1, 2, 3)
    assert cores(tmp_path / "none", tmp_path / "none") == 4


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 4)]
)
def test_a_container_limit_counts(four: None, tmp_path: Path, quota: str, count: int) -> None:
    """More threads than the container's share would only wait for each other."""
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores(tmp_path, tmp_path / "cpu.max") == count


def test_what_is_fast_is_read_from_the_flags(tmp_path: Path) -> None:
    """AMX is tiles and bfloat16, as whole words; bfloat16 is fast there and in vectors."""
    file = tmp_path / "cpuinfo"
    for flags, tiles, bf16 in (
        ("fpu amx_bf16 avx2 amx_tile", True, True),
        ("fpu amx_bf16x amx_tile", False, False),
        ("fpu avx512_bf16 avx512f", False, True),
        ("fpu avx512f", False, False),
    ):
        file.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert (has_amx(file), has_bf16(file)) == (tiles, bf16)
    assert not has_bf16(tmp_path / "none")


def test_precision() -> None:
    """bf16 by itself only where it is fast, on request where it is possible, else an error."""
    assert choose_precision("auto", able=True, fast=True) == "bf16"
    assert choose_precision("auto", able=True, fast=False) == "f32"
    assert choose_precision("auto", able=False, fast=True) == "f32"
    assert choose_precision("f32", able=True, fast=True) == "f32"
    assert choose_precision("bf16", able=True, fast=False) == "bf16"
    with pytest.raises(InvalidArgument, match="no bfloat16"):
        choose_precision("bf16", able=False, fast=False)
    with pytest.raises(InvalidArgument, match="precision must be"):
        choose_precision("int8", able=True, fast=True)
