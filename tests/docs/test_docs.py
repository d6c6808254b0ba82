"""What the documentation shows is what the code does."""

from __future__ import annotations

import doctest
import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hosted_targets import TARGETS, hosted_target
from serving import MODEL, Served, serving

import embatch.vectors
from embatch.errors import Reason
from embatch.settings import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = DOCS / "guide.md"
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


def _anchor(heading: str) -> str:
    """Return the anchor of a heading as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    """A link to another page, or to a part of one, finds it."""
    lost = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        headings = re.findall(r"^#+ (.*)$", place.read_text("utf-8"), re.MULTILINE) if place.is_file() else []
        if not place.exists() or (anchor and anchor not in map(_anchor, headings)):
            lost.append(target)
    assert lost == []


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service on a real port that also answers to the name of Google's model."""
    flags = ("--alias", f"gemini-embedding-001={MODEL}", "--engine-option", "dimensions=384")
    with serving(tmp_path_factory.mktemp("docs") / "data", *flags) as service:
        yield service


def _run(block: str, page: Path, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block; what stands as a comment behind a `print` is what it prints."""
    capsys.readouterr()
    exec(compile(block, page.name, "exec"), names)  # noqa: S102  (our own page)
    printed = capsys.readouterr().out.splitlines()
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", block, re.MULTILINE)
    assert [line for line in expected if line not in printed] == [], f"{page.name}:\n{block}"


@pytest.mark.filterwarnings("ignore:.*experimental.*")  # Google's client, of its own method
@pytest.mark.parametrize("page", [page for page in PAGES if page != GUIDE], ids=lambda page: page.name)
def test_python_on_the_pages_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Every Python block does what it says, after the blocks above it on its page."""
    monkeypatch.setenv("EMBATCH_DATA", str(tmp_path))
    names: dict[str, object] = {"texts": ["first text", "second text"]}
    for block in _blocks(page, "python"):
        shown = block
        if "http://127.0.0.1:8080" in block:
            shown = block.replace("http://127.0.0.1:8080", request.getfixturevalue("own_service").url)
        _run(shown, page, names, capsys)
        if "result" in names:
            assert names["result"].to_numpy().shape == (2, 384)  # type: ignore[attr-defined]
        if "job" in names:
            assert str(names["job"].name).startswith("batches/")  # type: ignore[attr-defined]


def test_the_guide_runs_on_the_local_service(
    own_service: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Python block of the guide does what it says on a service of embatch."""
    monkeypatch.setenv("EMBATCH_DATA", str(own_service.data))
    _guide("Client()", capsys)


_CLIENTS = {"gemini": 'Client("gemini")', "vertex": 'Client(auth="vertex_ai")'}


@pytest.mark.hosted
@pytest.mark.parametrize("target", TARGETS)
def test_the_guide_runs_on_hosted_services(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same blocks do the same on what stands in for Gemini and Vertex; only the target differs."""
    with hosted_target(target) as environ:
        for name, value in {**environ, "EMBATCH_DATA": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        _guide(_CLIENTS[target], capsys)


def _guide(client: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the guide, its clients made as `client` says."""
    names: dict[str, Any] = {}
    for block in _blocks(GUIDE, "python"):
        _run(block.replace("Client()", client), GUIDE, names, capsys)
        if "result" in names:
            vectors = names["result"].to_numpy(failed="raise")
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


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
