"""The corpus of the benchmarks is the same for everyone who makes it, and is what it says it is."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.corpus import digest, passages, token_counts, write  # noqa: E402  (found by the line above)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """A corpus of seed 0."""
    return passages(2000)


def test_the_same_seed_gives_the_same_bytes(texts: list[str], tmp_path: Path) -> None:
    """The command, in a process of its own, writes these very texts; Parquet holds the same."""
    command = [sys.executable, str(ROOT / "benchmarks" / "corpus.py"), "-o", str(tmp_path / "corpus.jsonl")]
    done = subprocess.run(
        [*command, "--count", "2000"], capture_output=True, text=True, check=True, timeout=120
    )
    assert digest(texts) in done.stderr
    assert "2000 texts, 1900 distinct" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == texts
    write(texts, tmp_path / "corpus.parquet")
    assert pq.read_table(tmp_path / "corpus.parquet").to_pylist() == rows


def test_another_seed_gives_other_texts(texts: list[str]) -> None:
    """Hardly a passage is in both: other files are taken, and cut elsewhere."""
    other = passages(2000, seed=1)
    assert len(set(other) & set(texts)) < 0.05 * len(set(texts))


def test_one_text_in_twenty_is_a_copy(texts: list[str]) -> None:
    """The share is exact, and the copies stand anywhere, not beside their originals or at the end."""
    assert len(texts) - len(set(texts)) == 100
    first: dict[str, int] = {}
    apart = [index - first.setdefault(text, index) for index, text in enumerate(texts)]
    assert statistics.median(distance for distance in apart if distance) > 100
    assert len(set(texts[:1000])) < 1000


def test_lengths_are_mixed(texts: list[str]) -> None:
    """Half are shorter than about 80 tokens, and some are longer than the model reads."""
    tokens = token_counts(texts)
    assert 60 <= statistics.median(tokens) <= 100
    assert sum(one > 256 for one in tokens) > 0.03 * len(tokens)
    assert max(tokens) > 512


def test_too_many_are_refused() -> None:
    """What the files cannot give is said, not filled up with copies."""
    with pytest.raises(ValueError, match="distinct passages are wanted, and the files here give"):
        passages(10_000, files=[Path(statistics.__file__)])
