"""The examples run as they stand: against a private service in a data folder of its own, and hosted ones."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hosted_targets import TARGETS, hosted_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(data: Path, script: str, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env={**os.environ, "EMBATCH_DATA": str(data), "NO_COLOR": "1", "COLUMNS": "200", **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path: Path) -> None:
    """Ten texts go in, ten embeddings come out, and alike texts are nearer than unlike ones."""
    said = _run(tmp_path, "quickstart.py")
    assert "COMPLETED: 10 of 10 embedded, 0 failed" in said
    alike, unlike = (float(number) for number in re.findall(r"like\s+(-?[\d.]+)  machine", said))
    assert alike > unlike
    assert re.search(r"384 dimensions\s+1\.54 GB, 100%", said)
    assert re.search(r"256 dimensions\s+1\.02 GB, 67%", said)


def test_production(tmp_path: Path) -> None:
    """The hole fails alone, is mended by a retry of only itself, and the right passages are found."""
    database = tmp_path / "kb.db"
    said = _run(tmp_path / "data", "production.py", "--database", str(database))
    assert "success rate 90.0 %" in said
    assert "10 embeddings stored" in said
    best = re.findall(r"^  0\.\d+  (.*)$", said, re.MULTILINE)[0]
    assert best.startswith("Killing the service loses nothing")
    with closing(sqlite3.connect(database)) as open_:
        ((state,),) = open_.execute("SELECT state FROM embedding_job").fetchall()
        ((vectors,),) = open_.execute("SELECT count(embedding) FROM document").fetchall()
    assert state == "COMPLETED"
    assert vectors == 10


@pytest.fixture(scope="module", params=TARGETS)
def hosted(request: pytest.FixtureRequest) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A hosted target and the variables that its user has set; a stand-in answers."""
    with hosted_target(request.param) as environ:
        yield request.param, environ


@pytest.mark.hosted
def test_quickstart_on_a_hosted_service(tmp_path: Path, hosted: tuple[str, Mapping[str, str]]) -> None:
    """The same script does the same elsewhere; only the target is another."""
    target, environ = hosted
    said = _run(tmp_path, "quickstart.py", "--target", target, "--dimensions", "768", environ=environ)
    assert "COMPLETED: 10 of 10 embedded, 0 failed" in said
    assert "dimensions 768, length 1.0000" in said


@pytest.mark.hosted
def test_production_on_a_hosted_service(tmp_path: Path, hosted: tuple[str, Mapping[str, str]]) -> None:
    """There too the hole fails alone and is mended, and all vectors stand in the database."""
    target, environ = hosted
    database = tmp_path / "kb.db"
    flags = ("--database", str(database), "--target", target)
    said = _run(tmp_path / "data", "production.py", *flags, environ=environ)
    assert "success rate 90.0 %" in said
    assert "document 10: " in said
    with closing(sqlite3.connect(database)) as open_:
        ((state,),) = open_.execute("SELECT state FROM embedding_job").fetchall()
        vectors = [
            np.frombuffer(blob, np.float32) for (blob,) in open_.execute("SELECT embedding FROM document")
        ]
    assert state == "COMPLETED"
    np.testing.assert_allclose([np.linalg.norm(vector) for vector in vectors], np.ones(10), rtol=1e-5)


def test_demo_on_a_small_corpus(tmp_path: Path) -> None:
    """The demo's whole way on 60 passages: progress, final counts, cost both ways, neighbours."""
    said = _run(tmp_path, "demo.py", "--count", "60")
    assert re.search(r"COMPLETED: 60 of 60 embedded, 0 failed", said)
    assert re.search(r"seconds per 1,000 texts: [\d.]+ as a batch, [\d.]+ one by one", said)
    assert said.count("\n? ") == 4


def test_the_corpus_is_the_same_each_time() -> None:
    """Two processes cut the same passages in the same order, without repeats."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import corpus\nfor p in corpus.passages(500): print(p)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script, str(EXAMPLES)], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].splitlines())) == 500
