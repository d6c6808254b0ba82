"""What a ledger says of batches that cost money: each line of an intent, torn anywhere; older versions."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger import block, rows

from embatch import Batch, FailedPrecondition, InvalidArgument, State
from embatch.client.fingerprint import fingerprint
from embatch.runs.intents import OPEN, Fate, Intent
from embatch.runs.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ABOUT = {"version": 2, "input": "digest", "target": "gemini", "base address": "https://a"}
NOW = 1_800_000_000.0
BATCH = replace(Batch("batches/b", "models/m", State.PENDING, "b", 0, None, None, None), input_file="files/f")


def intent(number: int, attempt: int = 0) -> Intent:
    """Return an intent of a block of three rows."""
    return Intent(number, 3 * number, 3, 3, 9, attempt, fingerprint(number, attempt), NOW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a ledger is."""
    return tmp_path / "out.embatch"


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    """A fresh one."""
    opened = Ledger.open(folder, ABOUT, {"token": "t"})
    yield opened
    opened.close()


def again(ledger: Ledger, folder: Path, **more: Any) -> Ledger:
    """Return the ledger as a later call finds it."""
    ledger.close()
    return Ledger.open(folder, ABOUT, {"token": "u"}, **more)


def moves(ledger: Ledger) -> list[tuple[Fate, str]]:
    """Take an intent its whole way, with a quarantine and another attempt, and tell each station."""
    first, second = intent(0), intent(0, 1)

    def station() -> tuple[Fate, str]:
        found = ledger.intents.of(0)
        assert found is not None
        return found.fate, found.batch

    seen: list[tuple[Fate, str]] = []
    for move in (
        lambda: ledger.intend(first),
        lambda: ledger.created(first.fingerprint, NOW, None, "RESOURCE_EXHAUSTED"),
        lambda: ledger.intend(first),
        lambda: ledger.quarantine(first.fingerprint, NOW, "nobody knows"),
        lambda: ledger.created(first.fingerprint, NOW, BATCH),
        lambda: ledger.created(first.fingerprint, NOW, BATCH, "FAILED"),
        lambda: ledger.intend(second),
        lambda: ledger.quarantine(second.fingerprint, NOW, "nobody knows"),
        lambda: ledger.quarantine(second.fingerprint, NOW, "given up", abandoned=True),
        lambda: ledger.intend(intent(0, 2)),
        lambda: ledger.created(intent(0, 2).fingerprint, NOW, BATCH),
        lambda: ledger.commit(block(0), rows(0)),
    ):
        move()
        seen.append(station())
    return seen


WAY = [
    (Fate.UNKNOWN, ""),
    (Fate.REFUSED, ""),
    (Fate.UNKNOWN, ""),
    (Fate.QUARANTINED, ""),
    (Fate.CREATED, "batches/b"),
    (Fate.OVER, "batches/b"),
    (Fate.UNKNOWN, ""),
    (Fate.QUARANTINED, ""),
    (Fate.OVER, ""),
    (Fate.UNKNOWN, ""),
    (Fate.CREATED, "batches/b"),
    (Fate.DONE, "batches/b"),
]


def test_an_intent_goes_its_way(ledger: Ledger, folder: Path) -> None:
    """And a later call finds it where it was; all of its attempts are remembered."""
    assert moves(ledger) == WAY
    later = again(ledger, folder)
    assert list(later.intents) == list(ledger.intents)
    assert [one.fate for one in later.intents] == [Fate.OVER, Fate.OVER, Fate.DONE]
    assert later.intents.open() == []
    assert later.intents.find(intent(0).fingerprint).file == "files/f"
    with pytest.raises(KeyError):
        later.intents.find(intent(1).fingerprint)
    later.close()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_torn_ledger_knows_what_its_whole_lines_say(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere: the intent is at the station of the last whole line, and never further."""
    folder = tmp_path_factory.mktemp("torn") / "out.embatch"
    ledger = Ledger.open(folder, ABOUT)
    moves(ledger)
    ledger.close()
    log = folder / "ledger.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[: data.draw(st.integers(content.index(b"\n") + 1, len(content)))])
    whole = log.read_bytes().count(b"\n") - 1
    later = Ledger.open(folder, ABOUT)
    found = later.intents.of(0)
    later.close()
    assert (None if found is None else (found.fate, found.batch)) == (WAY[whole - 1] if whole else None)


def test_what_may_have_been_paid_is_not_forgotten(ledger: Ledger, folder: Path) -> None:
    """Each is named; once they are settled the run begins anew."""
    for number in range(8):
        ledger.intend(intent(number))
    ledger.created(intent(1).fingerprint, NOW, BATCH)
    ledger.quarantine(intent(2).fingerprint, NOW, "nobody knows")
    ledger.created(intent(3).fingerprint, NOW, None, "PERMISSION_DENIED")
    with pytest.raises(FailedPrecondition) as refused:
        again(ledger, folder, restart=True)
    assert refused.value.field == "--restart"
    said = str(refused.value)
    assert "has 7 batches that may have been paid" in said
    assert "rows 0-2: not known which; rows 3-5: batches/b; rows 6-8: not known which; rows 12-14" in said
    assert "; and 2 more)" in said
    assert "embatch runs abandon" in said
    later = again(ledger, folder)
    for one in later.intents.open():
        assert one.fate in OPEN
        later.quarantine(one.fingerprint, NOW, "given up", abandoned=True)
    fresh = again(later, folder, restart=True)
    assert list(fresh.intents) == []
    fresh.close()


def test_a_version_that_nobody_knows_is_refused(ledger: Ledger, folder: Path) -> None:
    """By name, without a way to forget it: what was paid may stand in it."""
    ledger.close()
    log = folder / "ledger.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"version":2', b'"version":3'))
    content = log.read_bytes() + b'{"paid":{"dollars":1}}\n'
    log.write_bytes(content)
    for restart in (False, True):
        with pytest.raises(FailedPrecondition, match=r"has version 3, this one reads up to 2") as refused:
            Ledger.open(folder, ABOUT, restart=restart)
        assert "--restart" not in str(refused.value)
    assert log.read_bytes() == content


def test_a_ledger_of_version_1_goes_on(folder: Path) -> None:
    """Its blocks count, what it does not say of the target is not held against it, and intents follow."""
    folder.mkdir()
    part = Ledger.open(folder.with_name("other"), ABOUT)
    kept = part.commit(block(0), rows(0))
    part.close()
    (folder.with_name("other") / kept.part).rename(folder / kept.part)
    about = {"version": 1, "input": "digest", "target": "gemini"}
    lines = [{**about, "begun": {"token": "old"}}, asdict(kept), {"verdict": "done"}]
    (folder / "ledger.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    ledger = Ledger.open(folder, ABOUT, {"token": "new"})
    assert (ledger.blocks[0], ledger.verdict, ledger.begun) == (kept, "done", {"token": "old"})
    assert ledger.about == about  # what its batches are known by
    ledger.intend(intent(1))
    later = again(ledger, folder)
    assert [one.number for one in later.intents.open()] == [1]
    later.close()


def test_what_the_caller_left_open_stands_as_it_was(ledger: Ledger, folder: Path) -> None:
    """Whoever names it has to name what the first call named."""
    ledger.close()
    about = {**ABOUT, "block rows": 5}
    Ledger.open(folder.with_name("five.embatch"), about).close()
    found = Ledger.open(folder.with_name("five.embatch"), {**about, "block rows": 9}, unsaid=("block rows",))
    assert found.about == about
    found.close()
    with pytest.raises(InvalidArgument, match=r"block rows \(5 then, 9 now\)"):
        Ledger.open(folder.with_name("five.embatch"), {**about, "block rows": 9})
