"""What is shown: nothing that a terminal obeys or hides, and everything else as it is."""

from __future__ import annotations

import unicodedata

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.escapes import json_visible, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\nerror: forged\tb", r"a\r\nerror: forged\tb"),
        ("\x9b31m \x85 \x7f \x00 \x08", r"\x9b31m \x85 \x7f \x00 \x08"),
        ("\u202egpj.exe\u2066\u2069", r"\u202egpj.exe\u2066\u2069"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("half \udcff\ud800", r"half \udcff\ud800"),
        ("ad\u200bmin\u2060 \ufeffbom \u00adsoft", r"ad\u200bmin\u2060 \ufeffbom \xadsoft"),
        (
            "a\u200db caf\u00e9\u200d\u00e9 \u0430\u200c\u0431",
            "a\\u200db caf\u00e9\\u200d\u00e9 \u0430\\u200c\u0431",
        ),
        ("x\ufe0f\ufe0f \U000e0041\U000e0100", r"x\ufe0f\ufe0f \U000e0041\U000e0100"),
        ("\u3164\u115f\uffa0\u034f", r"\u3164\u115f\uffa0\u034f"),
    ],
)
def test_what_is_hidden_is_shown(text: str, shown: str) -> None:
    """Controls, marks of direction and lines, half characters, and what is drawn as nothing."""
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "caf\u00e9 na\u00efve \u65e5\u672c\u3000\u8a9e \\x1b [bold]x[/bold]",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a joiner that shapes it
        "\u0915\u094d\u200d\u0937",  # Devanagari, likewise
        "\u2764\ufe0f\u200d\U0001f525 \U0001f468\u200d\U0001f469\u200d\U0001f467 1\ufe0f\u20e3",
        "\u845b\U000e0100",  # a form of a Chinese character
    ],
)
def test_what_can_be_seen_stays(text: str) -> None:
    """Letters of every script, pictures of several characters, blanks, and what only looks like an escape."""
    assert visible(text) == text


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    """Whatever the text, it is one line of characters that can be printed, and is shown alike twice."""
    shown = visible(text)
    assert not {unicodedata.category(one) for one in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(shown) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_means_the_same(text: str) -> None:
    """Another program reads what was there, and a terminal obeys none of it."""
    line = json_visible(orjson.dumps({"name": text}).decode())
    assert orjson.loads(line) == {"name": text}
    assert visible(line) == line
