"""What is shown of a run and of its cost: rates of this call alone, and what is not known is said to be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import serving

from embatch import Batch, Client
from embatch.cli.cost_table import cost_table
from embatch.cli.display import Display
from embatch.runs.cost import estimate
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.prices import DEFAULT
from embatch.runs.progress import RunProgress
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKING = Batch("batches/b", "models/m", State.PROCESSING, "b", 0, None, None, None)
ENDED = replace(WORKING, state=State.COMPLETED)
WARMING = ((1.0, 10), (5.0, 200), (9.0, 400), (16.0, 700), (32.0, 1_600))
"""Seconds and tokens of an engine that has only begun: some hundredths of a percent."""


def shown(capsys: pytest.CaptureFixture[str], *polls: tuple[float, RunProgress]) -> list[str]:
    """Return the lines that polls at these seconds show."""
    now = 0.0
    display = Display(lambda: now)
    for moment, standing in polls:
        now = moment
        display.run(standing)
    return capsys.readouterr().err.splitlines()


def test_a_rate_is_of_this_call(capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier call did is not counted, whatever the rate is of and whenever that changes."""
    earlier = (20_000, 1_300_000)
    lines = shown(
        capsys,
        (1.0, RunProgress(20_000, None, 1_300_000, None, 0, WORKING, *earlier)),
        (2.0, RunProgress(20_100, None, 1_306_500, None, 0, WORKING, *earlier)),
        (6.0, RunProgress(20_900, None, 1_358_500, None, 0, WORKING, *earlier)),  # by rows
        (12.0, RunProgress(22_100, 40_000, 1_436_500, 2_600_000, 0, WORKING, *earlier)),  # by tokens
        # A batch that the service had finished comes in at once.
        (13.0, RunProgress(32_300, 40_000, 2_099_500, 2_600_000, 0, ENDED, 30_000, 1_950_000)),
    )
    assert [line.split(", ")[2] for line in lines] == ["200 rows/s", "13,000 tokens/s", "13,000 tokens/s"]
    assert lines[1].endswith("1 min 30 s left")


def test_where_nothing_is_worked_no_rate_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """All had been done before."""
    lines = shown(capsys, (9.0, RunProgress(60, 60, 700, 700, 1, ENDED, 60, 700)))
    assert lines == ["COMPLETED 60/60, 1 failed"]


def test_nothing_is_estimated_before_enough_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """Not in the first seconds, nor from a small part of the whole for half a minute."""
    polls = [(at, RunProgress(0, 40_000, tokens, 1_000_000, 0, WORKING)) for at, tokens in WARMING]
    lines = shown(capsys, *polls)
    assert [line.endswith(" left") for line in lines] == [False, False, True]
    lines = shown(capsys, *((at, replace(one, tokens=100 * one.tokens)) for at, one in polls))
    assert [line.endswith(" left") for line in lines] == [False, True, True]


def test_an_end_is_shown_once_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """When its rows are committed, and not when the service is done with it."""
    lines = shown(
        capsys,
        (1.0, RunProgress(90, 100, 500, 500, 0, ENDED, settled=False)),
        (1.1, RunProgress(100, 100, 500, 500, 10, ENDED)),
    )
    assert lines == ["COMPLETED 100/100, 10 failed"]


def test_every_row_is_counted(client: Client, tmp_path: Path) -> None:
    """Duplicates, rows that cannot be read and failed ones too; nothing jumps back, the end is the whole."""
    texts = [*(f"{tmp_path.name} {number % 7}" for number in range(30)), "", "", None, None, "last"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    seen: list[RunProgress] = []
    options = RunOptions(tmp_path / "data", block_rows=12)
    source, out = open_source(tmp_path / "in.parquet", None, None), str(tmp_path / "out.jsonl")

    def show(standing: RunProgress) -> None:
        seen.append(standing)

    embed_dataset(client, source, out, EmbedOptions(), options, show)
    rows = [one.rows for one in seen]
    assert rows == sorted(rows)
    assert [one.rows for one in seen if one.batch.done and not one.settled] == [12, 24, 35]
    assert [(one.rows, one.failed) for one in seen if one.settled] == [(12, 0), (24, 0), (35, 4)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service."""
    with serving(tmp_path_factory.mktemp("cost") / "data") as service, Client(service.url) as client:
        yield client


def costs(
    client: Client, source: Path, capsys: pytest.CaptureFixture[str], *, sample: int | None, measure: int
) -> str:
    """Return the table of a file, with its lines flat."""
    cost_table(estimate(client, open_source(source, None, None), None, DEFAULT, sample, measure))
    return capsys.readouterr().out


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A hundred different texts as lines, and beside them as Parquet."""
    texts = [f"the text with the number {number}" for number in range(100)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", "utf-8")
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    return tmp_path


def test_a_sample_says_what_it_stands_for(
    client: Client, hundred: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For all rows where the file says how many it has; for itself where it does not."""
    said = costs(client, hundred / "in.parquet", capsys, sample=20, measure=0)
    assert said.startswith("100 rows (extrapolated from 20), 100 texts")
    said = costs(client, hundred / "in.txt", capsys, sample=20, measure=0)
    assert said.startswith("20 rows (the first ones alone: the input goes on and does not say how far)")
    for sample in (None, 100, 1000):
        said = costs(client, hundred / "in.txt", capsys, sample=sample, measure=0)
        assert said.startswith("100 rows, 100 texts, 100 different")


def test_why_a_machine_was_not_measured_is_said(
    client: Client, hundred: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few texts, or too few asked for; not where nobody asked."""
    few = hundred / "few.txt"
    few.write_text("one\ntwo\none\n", "utf-8")
    said = costs(client, few, capsys, sample=None, measure=256)
    assert "work here was not measured: that takes 64 different texts, and there are 2" in said
    said = costs(client, hundred / "in.txt", capsys, sample=None, measure=10)
    assert "work here was not measured: that takes 64 different texts, and --measure gives 10" in said
    assert "measured" not in costs(client, hundred / "in.txt", capsys, sample=None, measure=0)
    assert "here, as a batch" in costs(client, hundred / "in.txt", capsys, sample=None, measure=64)
