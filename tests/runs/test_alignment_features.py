"""What texts look like from here: the same text gives the same numbers at any time and in any company."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.runs.alignment import ngrams
from embatch.runs.alignment.features import Features
from embatch.runs.alignment.spool import CHUNK, Spool
from embatch.runs.alignment.static_vectors import StaticVectors


def _like(one: str, other: str) -> float:
    rows = ngrams.sketch([one, other])
    return float(rows[0] @ rows[1])


@settings(max_examples=25)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_company_changes_nothing(texts: list[str]) -> None:
    """Each text alone gives what it gives among others."""
    together = ngrams.sketch(texts)
    for text, row in zip(texts, together, strict=True):
        assert np.array_equal(ngrams.sketch([text])[0], row)


def test_many_texts_are_read_in_parts_that_nobody_sees() -> None:
    """A text at the edge of what is hashed at once is no different from any other."""
    texts = [f"{number} passages of some length stand here " * 60 for number in range(250)]
    assert np.array_equal(
        ngrams.sketch(texts)[[0, 100, 249]], ngrams.sketch([texts[0], texts[100], texts[249]])
    )


def test_the_numbers_stay_what_they_were() -> None:
    """What was kept of earlier runs is compared with them: another way to hash needs another name."""
    row = ngrams.sketch(["The quick brown fox, twice: the Quick BROWN fox."])[0]
    assert np.flatnonzero(np.abs(row) > 0.12).tolist() == [159, 172, 190, 192, 236, 244, 369, 458, 461]
    assert Features(None).name == "ngrams-1"


def test_texts_that_share_words_look_alike() -> None:
    """Case and spaces are nothing, word forms little, other words all."""
    assert _like("Install the  package", "install THE package") == pytest.approx(1.0, abs=0.01)
    assert _like("installing packages quickly", "install a package quickly") > 0.4
    assert abs(_like("installing packages quickly", "der Hund bellt im Garten")) < 0.25


def test_what_says_nothing_is_nought() -> None:
    """Neither a blank nor half a character stops anything."""
    rows = ngrams.sketch(["", "  ", "\ud800", "你好世界"])
    assert np.isfinite(rows).all()
    assert not rows[:2].any()
    assert rows[3].any()


def test_static_vectors_know_what_words_mean() -> None:
    """Texts without a common word are alike by what they say, and the program's log stays as it was."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    static = StaticVectors.installed()
    assert static is not None
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level)
    dog, puppy, tax, nothing = static.embed(["a dog barks", "the puppy growled", "quarterly tax returns", ""])
    assert dog @ puppy > dog @ tax + 0.1
    assert not nothing.any()
    assert np.array_equal(static.embed(["\ud800 dog"])[0], static.embed(["? dog"])[0])
    both = Features(static)
    assert both.of(["one", "two"]).shape == (2, both.width)
    assert both.name.startswith("ngrams-1+wordllama-")


def test_without_the_extra_ngrams_serve_alone() -> None:
    """Where the package is not installed nothing is missed."""
    script = (
        "import sys; sys.modules['wordllama'] = None; "
        "from embatch.runs.alignment.features import Features; print(Features.installed().name)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "ngrams-1"


def test_a_file_gives_back_what_memory_does() -> None:
    """In order or not, in parts or one by one, before and after more was added."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(CHUNK + 50, 8)).astype(np.float32)
    with Spool(8, held=100) as filed, Spool(8, held=10**6) as held:
        for spool in (filed, held):
            for first in range(0, len(rows), 64):
                spool.append(rows[first : first + 64])
                if first == 640:
                    assert np.array_equal(spool.take(np.array([3, 700, 2])), _half(rows[[3, 700, 2]]))
        wanted = random.permutation(len(rows))[:500]
        assert np.array_equal(filed.take(wanted), held.take(wanted))
        assert np.array_equal(filed.take(wanted), _half(rows[wanted]))
        assert np.array_equal(np.vstack([chunk for _, chunk in filed.chunks()]), _half(rows))
        assert [first for first, _ in filed.chunks()] == [0, CHUNK]


def _half(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float16).astype(np.float32)
