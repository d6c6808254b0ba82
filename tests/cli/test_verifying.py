"""`--verify` and `--verify-calls`: what is refused, what may be spent, and how the verdict is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embatch import Client, InvalidArgument
from embatch.cli.verifying import budget, report_alignment
from embatch.runs.alignment.sampling import Verify

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hosted() -> Iterator[Client]:
    """A client of a hosted service, which is not called."""
    with Client("gemini", api_key="the-key") as client:
        yield client


def test_what_may_be_spent_is_said_before(hosted: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """40 texts of a long run, 1 % of a short one, as many as the user says, or none."""
    said = [
        (None, None, 1_000_000, "all rows by each other, and at most 40 texts embedded again"),
        (None, None, 250, "at most 3 texts"),
        (None, None, None, "at most 40 texts"),
        ("sample", None, 5_000, "check: at most 20 texts"),
        ("full", 1, 10, "at most 1 text embedded"),
        ("none", None, 10, "check: none"),
    ]
    for verify, calls, rows, words in said:
        found = budget(hosted, verify, calls, rows)
        assert found.verify is Verify(verify or "full")
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verify", "calls", "flag"), [("all", None, "--verify"), ("full", -1, "--verify-calls")]
)
def test_what_makes_no_sense_is_refused(hosted: Client, verify: str, calls: int | None, flag: str) -> None:
    """Before anything is sent, naming the flag."""
    with pytest.raises(InvalidArgument, match=flag):
        budget(hosted, verify, calls, 10)


def test_a_service_with_a_certificate_is_told_apart() -> None:
    """Its own path is the better one, and nobody pays there."""
    with Client("http://127.0.0.1:9") as client:
        assert budget(client, None, None, 10).verify is Verify.FULL
        for verify, calls, flag in (("none", None, "--verify"), (None, 3, "--verify-calls")):
            with pytest.raises(InvalidArgument, match=f"{flag} is for hosted targets"):
                budget(client, verify, calls, 10)


@pytest.mark.parametrize("verdict", ["sound", "damaged", "in doubt", "not comparable", "not checked"])
def test_every_verdict_has_its_words(verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not sound says what it means."""
    found = {
        "verdict": verdict,
        "surveyed_rows": 3_000,
        "rows": 3_000,
        "calls": 30,
        "power": "p",
        "not_found": "n",
    }
    report_alignment(found, 1.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"check: {verdict}; 3,000 of 3,000 texts")
    assert "30 embedded again, 1.2 s" in lines[0]
    assert len(lines) == (2 if verdict == "sound" else 3)
