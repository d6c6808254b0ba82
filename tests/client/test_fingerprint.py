"""The mark of a batch: no two things share one, and it comes back from wherever it was put."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.batch import DISPLAY_NAME, FILE_ID
from embatch.client.fingerprint import NAME, PREFIX, SEPARATOR, fingerprint, in_name, marked, unmarked

TEXTS = st.text(st.characters(), max_size=8)
"""Lone surrogates among them, as files have them."""
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MARKS = st.lists(TEXTS, max_size=3).map(fingerprint)


def _kinds(value: Any) -> Any:
    """Return a value in a form that two share only where they are one: True is not 1, -0.0 not 0.0."""
    if isinstance(value, dict):
        return {name: _kinds(one) for name, one in value.items()}
    return [_kinds(one) for one in value] if isinstance(value, list) else (type(value), repr(value))


@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
def test_two_things_share_none(one: list[Any], other: list[Any]) -> None:
    """However they are nested, and whatever kinds they are of; the same thing has always the same."""
    assert (fingerprint(*one) == fingerprint(*other)) == (_kinds(one) == _kinds(other))
    assert fingerprint(*one) == fingerprint(*one)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.data())
def test_texts_cut_otherwise_are_others(texts: list[str], data: st.DataObject) -> None:
    """The same characters in other texts, the same texts in another order or in two lists."""
    at = data.draw(st.integers(0, len(texts) - 1))
    cut = data.draw(st.integers(0, len(texts[at])))
    others = [*texts[:at], texts[at][:cut], texts[at][cut:], *texts[at + 1 :]]
    assert fingerprint(texts) != fingerprint(others)
    assert fingerprint(texts) != fingerprint(texts[:at], texts[at:])
    assert fingerprint(texts) == fingerprint(iter(texts)) == fingerprint(tuple(texts))
    assert (fingerprint(texts[::-1]) == fingerprint(texts)) == (texts[::-1] == texts)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_the_order_of_keys_says_nothing(mapping: dict[str, Any]) -> None:
    """Two dictionaries that are equal are one thing."""
    assert fingerprint(mapping) == fingerprint(dict(reversed(mapping.items())))


def test_it_stays() -> None:
    """What stands in ledgers and at providers is found by every later version."""
    parts = ("run", 3, ["a", "ü", "\ud800"], None, True, 0.5, b"x", {"b": 1, "a": [2]})
    assert fingerprint(*parts) == "xzyflvkchco4seclucie5gr6pgrxrzsq"
    assert fingerprint() == "j5j43immfovaya2uxnpzupwl4xwrfk2n"


@pytest.mark.parametrize("thing", [{1, 2}, object(), frozenset({"a"})])
def test_what_has_no_order_or_no_form_is_refused(thing: object) -> None:
    """Another process would give another one."""
    with pytest.raises(TypeError, match=type(thing).__name__):
        fingerprint("a", [thing])


@given(MARKS)
def test_it_fits_where_it_goes(mark: str) -> None:
    """Gemini's ids of files, and the labels of Vertex."""
    assert len(PREFIX + mark) == 40
    assert FILE_ID.fullmatch(PREFIX + mark)
    assert re.fullmatch("[a-z0-9_-]{1,63}", mark)


@given(st.text(max_size=8), st.sampled_from([0, *range(NAME - 9, NAME + 2), DISPLAY_NAME]), MARKS, MARKS)
def test_a_name_comes_back_without_its_mark(name: str, more: int, mark: str, other: str) -> None:
    """Cut where it leaves no room; only what stands at the end is a mark, and only one of them."""
    name = "x" * more + name
    shown = marked(name, mark)
    assert len(shown) <= DISPLAY_NAME
    assert unmarked(shown) == (name[:NAME], mark)
    assert unmarked(shown + ".") == (shown + ".", None)
    assert unmarked(f"{name}{SEPARATOR}{mark[1:]}") == (f"{name}{SEPARATOR}{mark[1:]}", None)
    assert unmarked(marked(marked("a", other), mark)) == (marked("a", other), mark)


@given(MARKS)
def test_it_is_found_in_the_name_of_a_file(mark: str) -> None:
    """Of either provider; a name that only looks like one has none."""
    for name in (
        f"files/{PREFIX}{mark}",
        f"gs://b/folder/{PREFIX}{mark}.jsonl",
        f"gs://b/{PREFIX}{mark}/in.jsonl",
    ):
        assert in_name(name) == mark
    others: list[str | None] = [
        None,
        f"files/{mark}",
        f"files/{PREFIX}{mark}a",
        f"files/{PREFIX}{mark}-1",
        f"files/my{PREFIX}{mark}",
        f"files/{PREFIX}{mark[1:]}",
    ]
    assert [in_name(name) for name in others] == [None] * len(others)
