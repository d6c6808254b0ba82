"""Four times the rows or blocks take four times the work, not sixteen times."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pytest
from growth import MOST, growth_of_little

from embatch import Client
from embatch.escapes import visible
from embatch.runs.certificate import Certificate, Sent
from embatch.runs.ledger import Ledger
from embatch.runs.ledger_lines import Block
from embatch.runs.options import EmbedOptions
from embatch.runs.part import Part, distinct
from embatch.runs.progress import Summary
from embatch.runs.sources import Rows, open_source
from embatch.runs.sources.whereabouts import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = Block(0, 0, 1, 1, 0, 0, 0, 1, 0, 0.0, 0, "models/m")


def test_rows_of_one_text_and_of_many() -> None:
    """Telling duplicates apart."""
    assert growth_of_little(lambda size: lambda: distinct(["the same"] * size, range(size)), 2_000) < MOST

    def made(size: int) -> Callable[[], object]:
        texts = [f"text {number}" for number in range(size)]
        return lambda: distinct(texts, range(size))

    assert growth_of_little(made, 2_000) < MOST


def test_notes_of_many_blocks() -> None:
    """Each of which has a note of its own."""

    def made(size: int) -> Callable[[], object]:
        blocks = [replace(BLOCK, number=number, notes=(f"note {number}",)) for number in range(size)]
        return lambda: Summary.of(blocks, None)

    assert growth_of_little(made, 500) < MOST


@pytest.mark.parametrize("engine", [{}, {"identity": "x"}])
def test_judging_each_of_many_blocks(tmp_path: Path, engine: dict[str, object]) -> None:
    """What a block costs does not depend on how many there are."""

    def made(size: int) -> Callable[[], object]:
        ledger = _ledger(tmp_path / f"{size}.embatch", size, engine)
        judge = Certificate(Client("gemini", api_key="none"), ledger, EmbedOptions(), 0.9)
        rows = Rows(0, pa.array([0]), [None], {0: "fault"})
        sent = Sent(0, rows, Part.of(rows), None, {}, [])

        def judged() -> None:
            for _ in range(size):
                judge.block(sent, None, None)

        return judged

    assert growth_of_little(made, 200) < MOST


def test_a_ledger_of_many_blocks(tmp_path: Path) -> None:
    """Opening it again."""

    def made(size: int) -> Callable[[], object]:
        folder = tmp_path / f"{size}.embatch"
        return lambda: _ledger(folder, size, {})

    assert growth_of_little(made, 500) < MOST


def _ledger(folder: Path, blocks: int, engine: dict[str, object]) -> Ledger:
    """Return a ledger of so many blocks, whose parts are empty, closed again."""
    if not folder.exists():
        folder.mkdir()
        lines = [orjson.dumps({"model": None})]
        for number in range(blocks):
            part = f"part-{number:06}-0.arrow"
            (folder / part).touch()
            lines.append(orjson.dumps(asdict(replace(BLOCK, number=number, part=part, engine=engine))))
        (folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    ledger = Ledger.open(folder, {"model": None})
    ledger.close()
    assert len(ledger.blocks) == blocks
    return ledger


def test_many_rows_to_be_found(tmp_path: Path) -> None:
    """Where each of them stands."""

    def made(size: int) -> Callable[[], object]:
        path = tmp_path / f"{size}.jsonl"
        path.write_bytes(b'{"text":""}\n' * size)
        source = open_source(path, None, None)
        return lambda: whereabouts(source, range(size))

    assert growth_of_little(made, 2_000) < MOST


@pytest.mark.parametrize("character", ["x", "\x1b", "\u200d", "\ufe0f", "\u202e", "\udcff", "\u0915\u200d"])
def test_long_names(character: str) -> None:
    """Of what is shown as it is, and of what is not."""
    assert growth_of_little(lambda size: lambda: visible(character * size), 2_000) < MOST
