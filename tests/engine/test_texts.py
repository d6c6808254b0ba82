"""Prompts, titles, and the cut before the tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.engine.texts import CHARACTERS_PER_TOKEN, compose, cut

E5 = {"RETRIEVAL_QUERY": "query: ", "RETRIEVAL_DOCUMENT": "passage: "}
GEMMA = {"RETRIEVAL_DOCUMENT": "title: none | text: ", "": "task: search | query: "}


@pytest.mark.parametrize(
    ("task", "title", "prompts", "seen"),
    [
        (None, None, {}, "text"),
        ("RETRIEVAL_QUERY", None, {}, "text"),
        ("RETRIEVAL_QUERY", None, E5, "query: text"),
        ("CLUSTERING", None, E5, "text"),
        (None, None, E5, "text"),
        ("RETRIEVAL_DOCUMENT", "Title", {}, "Title text"),
        ("RETRIEVAL_DOCUMENT", "Title", E5, "passage: Title text"),
        ("RETRIEVAL_DOCUMENT", "", E5, "passage: text"),
        ("RETRIEVAL_DOCUMENT", "Title", GEMMA, "title: Title | text: text"),
        ("RETRIEVAL_DOCUMENT", None, GEMMA, "title: none | text: text"),
        ("RETRIEVAL_QUERY", "Title", E5, "query: text"),
        (None, None, GEMMA, "task: search | query: text"),
        ("CLUSTERING", None, GEMMA, "task: search | query: text"),
    ],
)
def test_what_the_model_sees(task: str | None, title: str | None, prompts: dict[str, str], seen: str) -> None:
    """The task's own prompt, else the default one; a title only for documents."""
    assert compose("text", task, title, prompts) == seen


@given(st.text(max_size=600), st.integers(1, 3))
def test_the_cut_keeps_the_beginning_and_says_so(text: str, max_tokens: int) -> None:
    """What is kept is a prefix within the limit; the flag is set exactly if something is gone."""
    kept, shortened = cut(text, max_tokens)
    assert text.startswith(kept)
    assert len(kept) == min(len(text), CHARACTERS_PER_TOKEN * max_tokens)
    assert shortened == (kept != text)
