"""What the documentation shows is what the code does."""

from __future__ import annotations

import doctest
import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from serving import MODEL, serving

import embatch.vectors
from embatch.errors import Reason
from embatch.settings import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def test_the_lifecycle_is_drawn_from_the_transition_table() -> None:
    """docs/lifecycle.md holds the diagram that its script draws today."""
    drawn = runpy.run_path(str(DOCS / "lifecycle.py"))["drawn"]
    page = (DOCS / "lifecycle.md").read_text("utf-8")
    assert drawn(page) == page, "renew it with: python docs/lifecycle.py"


def test_every_setting_is_documented_with_its_default() -> None:
    """docs/operations.md has one row for each setting: variable, default, unit."""
    page = (DOCS / "operations.md").read_text("utf-8")
    for setting in fields(Settings):
        row = f"| `{PREFIX}{setting.name.upper()}` | {setting.default:,} | {setting.metadata['unit']} |"
        assert row in page, f"docs/operations.md lacks: {row}"


def test_every_reason_is_documented() -> None:
    """docs/lifecycle.md explains each reason a request can fail for."""
    page = (DOCS / "lifecycle.md").read_text("utf-8")
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []


def test_doctests_of_the_public_names_hold() -> None:
    """The examples in docstrings print what they say."""
    outcome = doctest.testmod(embatch.vectors)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service on a real port that also answers to the name of Google's model."""
    alias = ("--alias", f"gemini-embedding-001={MODEL}")
    with serving(tmp_path_factory.mktemp("docs") / "data", *alias) as service:
        yield service.url


@pytest.mark.filterwarnings("ignore:.*experimental.*")  # Google's client, of its own method
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_pages_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every Python block does what it says, after the blocks above it on its page."""
    monkeypatch.setenv("EMBATCH_DATA", str(tmp_path))
    names: dict[str, object] = {"texts": ["first text", "second text"]}
    for block in _blocks(page, "python"):
        shown = block
        if "http://127.0.0.1:8080" in block:
            shown = block.replace("http://127.0.0.1:8080", request.getfixturevalue("own_service"))
        exec(compile(shown, page.name, "exec"), names)  # noqa: S102  (our own page)
        if "result" in names:
            assert names["result"].to_numpy().shape == (2, 384)  # type: ignore[attr-defined]
        if "job" in names:
            assert str(names["job"].name).startswith("batches/")  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_pages_have_their_flags(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `embatch` command shown names a command and flags that there are."""
    from embatch.cli import app

    lines = [line for block in _blocks(page, "") for line in block.splitlines()]
    for words in (line.split("#")[0].split() for line in lines if line.startswith("embatch ")):
        commands, _, _ = app.parse_commands(words[1:])
        with pytest.raises(SystemExit, match="0"):
            app([*commands, "--help"])
        said = capsys.readouterr().out
        assert [
            word for word in words[1 + len(commands) :] if word.startswith("-") and word not in said
        ] == [], words
