"""What the documentation shows is what the code does."""

from __future__ import annotations

import doctest
import runpy
from dataclasses import fields
from pathlib import Path

import embatch.vectors
from embatch.errors import Reason
from embatch.settings import PREFIX, Settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_lifecycle_is_drawn_from_the_transition_table() -> None:
    """docs/lifecycle.md holds the diagram that its script draws today."""
    drawn = runpy.run_path(str(DOCS / "lifecycle.py"))["drawn"]
    page = (DOCS / "lifecycle.md").read_text()
    assert drawn(page) == page, "renew it with: python docs/lifecycle.py"


def test_every_setting_is_documented_with_its_default() -> None:
    """docs/operations.md has one row for each setting: variable, default, unit."""
    page = (DOCS / "operations.md").read_text()
    for setting in fields(Settings):
        row = f"| `{PREFIX}{setting.name.upper()}` | {setting.default:,} | {setting.metadata['unit']} |"
        assert row in page, f"docs/operations.md lacks: {row}"


def test_every_reason_is_documented() -> None:
    """docs/lifecycle.md explains each reason a request can fail for."""
    page = (DOCS / "lifecycle.md").read_text()
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []


def test_doctests_of_the_public_names_hold() -> None:
    """The examples in docstrings print what they say."""
    outcome = doctest.testmod(embatch.vectors)
    assert outcome.attempted > 0
    assert outcome.failed == 0
