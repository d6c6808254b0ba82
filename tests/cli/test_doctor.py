"""`embatch doctor` as people and scripts read it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson

from embatch.engine.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from pathlib import Path


def _doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embatch", "doctor", *arguments],
        env={**os.environ, "EMBATCH_AMX": "off", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_says_which_engine_serves_and_why() -> None:
    """The machine, the engine of the default model, and what stood against the faster one."""
    done = _doctor()
    assert done.returncode == 0, done.stderr
    machine, _, model, *rest = done.stdout.splitlines()
    assert machine.endswith("AMX: switched off by EMBATCH_AMX=off")
    assert model == f"{DEFAULT_MODEL}: 384 dimensions, texts of up to 256 tokens"
    assert rest[0].startswith("  engine    openvino, ")
    assert rest[1] == "  not amx   switched off by EMBATCH_AMX=off"
    assert "same bytes" in rest[2]


def test_one_object_a_line_for_scripts(tmp_path: Path) -> None:
    """Models that cannot be served do not keep the others from being tried; the exit code tells."""
    done = _doctor("--json", "--precision", "f32", "--model", str(tmp_path), "--model", DEFAULT_MODEL)
    assert done.returncode == 1, done.stderr
    machine, broken, good = map(orjson.loads, done.stdout.splitlines())
    assert machine["cores"] >= 1
    assert broken["model"] == str(tmp_path)
    assert "config.json" in broken["error"]
    assert (good["engine"], good["precision"], good["invariant"]) == ("openvino", "f32", False)
    assert good["passed_over"] == {"amx": "it computes in bf16 only"}


def test_an_engine_that_cannot_be_used() -> None:
    """Asked for by name, what stands against it is the answer."""
    done = _doctor("--engine", "amx")
    assert done.returncode == 1
    assert "  cannot be served: the amx engine cannot be used: switched off by EMBATCH_AMX=off" in done.stdout
