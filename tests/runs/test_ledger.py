"""The ledger: what it says was done is done, whatever tore it; other runs are refused; parts are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.errors import DataLoss, FailedPrecondition, InvalidArgument
from embatch.runs.ledger import Ledger, folder_of
from embatch.runs.ledger_lines import Block
from embatch.runs.parity import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ABOUT = {"input": "digest", "model": None}


def block(number: int, failed: int = 0) -> Block:
    """Return a block of three rows."""
    return Block(
        number=number,
        first=3 * number,
        rows=3,
        failed=failed,
        retryable=failed,
        duplicates=0,
        cached=0,
        tokens=7,
        truncated=0,
        cpu_seconds=0.5,
        native=2,
        model="models/m",
        engine={"identity": "x"},
        notes=("a note",),
        sample=Sample(1, 0.999, 1.0, 1.0, 1.0, 3, 0.01),
    )


@pytest.fixture
def opened() -> Iterator[Callable[..., Ledger]]:
    """Open ledgers that are closed when the test has ended."""
    ledgers: list[Ledger] = []

    def open_(*args: Any, **options: Any) -> Ledger:
        ledgers.append(Ledger.open(*args, **options))
        return ledgers[-1]

    yield open_
    for ledger in ledgers:
        ledger.close()


def rows(number: int, word: str = "a") -> pa.RecordBatch:
    """Return the rows of a block."""
    return pa.RecordBatch.from_pydict({"id": [f"{word}{number}-{at}" for at in range(3)]})


def test_what_was_committed_is_there_after_the_next_start(
    tmp_path: Path, opened: Callable[..., Ledger]
) -> None:
    """Blocks with everything that is known of them, and their rows."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    kept = [ledger.commit(block(number), rows(number)) for number in range(2)]
    ledger.close()
    again = opened(tmp_path / "out.embatch", ABOUT)
    assert list(again.blocks.values()) == kept
    assert again.verdict is None
    assert [again.rows(one) for one in kept] == [rows(0), rows(1)]
    again.end("done")
    again.close()
    assert opened(tmp_path / "out.embatch", ABOUT).verdict == "done"


def test_a_later_try_takes_the_place_of_an_earlier(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """Its part replaces the first one's, and the run is not done any more."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    ledger.commit(block(0, failed=1), rows(0))
    ledger.end("done")
    ledger.commit(block(0), rows(0, "b"))
    ledger.close()
    again = opened(tmp_path / "out.embatch", ABOUT)
    assert again.verdict is None
    assert again.blocks[0].failed == 0
    assert again.rows(again.blocks[0]) == rows(0, "b")
    assert len(list((tmp_path / "out.embatch").glob("part-*"))) == 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_torn_ledger_keeps_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, it holds exactly the blocks whose lines are whole, and goes on."""
    folder = tmp_path_factory.mktemp("torn") / "out.embatch"
    ledger = Ledger.open(folder, ABOUT)
    for number in range(3):
        ledger.commit(block(number), rows(number))
    ledger.close()
    log = folder / "ledger.jsonl"
    content = log.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    log.write_bytes(content[:cut])
    whole = max(0, content[:cut].count(b"\n") - 1)
    again = Ledger.open(folder, ABOUT)
    assert sorted(again.blocks) == list(range(whole))
    for number in range(whole, 3):
        again.commit(block(number), rows(number))
    again.close()
    last = Ledger.open(folder, ABOUT)
    assert sorted(last.blocks) == [0, 1, 2]
    assert [last.rows(last.blocks[number]) for number in range(3)] == [rows(number) for number in range(3)]
    last.close()


def test_another_run_is_refused(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """It says what differs, and --restart forgets the old one with its parts."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    ledger.commit(block(0), rows(0))
    ledger.close()
    other = {**ABOUT, "model": "other"}
    with pytest.raises(InvalidArgument, match=r"another model.*--restart"):
        opened(tmp_path / "out.embatch", other)
    with pytest.raises(InvalidArgument):
        opened(tmp_path / "out.embatch", {"input": "digest"})
    fresh = opened(tmp_path / "out.embatch", other, restart=True)
    assert fresh.blocks == {}
    assert not list((tmp_path / "out.embatch").glob("part-*"))


def test_what_the_first_call_decided_stays(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """Until the run begins anew; a ledger from before it was kept opens, and has nothing of it."""
    folder, log = tmp_path / "out.embatch", tmp_path / "out.embatch" / "ledger.jsonl"
    opened(folder, ABOUT, {"token": "a"}).close()
    ledger = opened(folder, ABOUT, {"token": "b"})
    assert (ledger.about, ledger.begun) == (ABOUT, {"token": "a"})
    ledger.commit(block(0), rows(0))
    ledger.close()
    about, *blocks = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(about.replace(b',"begun":{"token":"a"}', b"") + b"".join(blocks))
    older = opened(folder, ABOUT, {"token": "c"})
    assert (older.about, older.begun, sorted(older.blocks)) == (ABOUT, {}, [0])
    older.close()
    opened(folder, ABOUT, {"token": "d"}, restart=True).close()
    assert opened(folder, ABOUT, {"token": "e"}).begun == {"token": "d"}


def test_two_at_once_are_refused(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """The second process hears it at once; when the first has ended it may go on."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    with pytest.raises(FailedPrecondition, match="another embatch"):
        opened(tmp_path / "out.embatch", ABOUT)
    ledger.close()
    opened(tmp_path / "out.embatch", ABOUT).close()


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_part_is_not_served(tmp_path: Path, opened: Callable[..., Ledger], harm: str) -> None:
    """Its rows are an error that names the remedy."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    kept = ledger.commit(block(0), rows(0))
    path = tmp_path / "out.embatch" / kept.part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:100])
    with pytest.raises(DataLoss, match="--restart"):
        ledger.rows(kept)


def test_a_damaged_line_is_an_error(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """Not the last one, which a crash explains, but one before it."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    ledger.commit(block(0), rows(0))
    ledger.close()
    log = tmp_path / "out.embatch" / "ledger.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for damaged in (b"{]\n", b'{"number": 1}\n', b"[]\n"):
        log.write_bytes(lines[0] + damaged + lines[1])
        with pytest.raises(DataLoss, match="line 2"):
            opened(tmp_path / "out.embatch", ABOUT)


def test_a_ledger_is_beside_its_file_or_in_the_data_folder(tmp_path: Path) -> None:
    """Outputs that are no files have theirs by the digest of their address."""
    assert folder_of(str(tmp_path / "out.parquet"), tmp_path) == tmp_path / "out.parquet.embatch"
    one, two = (folder_of(f"s3://bucket/{name}", tmp_path / "data") for name in "ab")
    assert one != two
    assert one.parent == two.parent == tmp_path / "data" / "runs"


def test_removing_leaves_nothing(tmp_path: Path, opened: Callable[..., Ledger]) -> None:
    """Once the output holds all there is to know."""
    ledger = opened(tmp_path / "out.embatch", ABOUT)
    ledger.commit(block(0), rows(0))
    ledger.remove()
    assert not (tmp_path / "out.embatch").exists()
