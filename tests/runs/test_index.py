"""The index of runs: whatever is torn, killed or written at once, what was told before is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.runs.index import KEPT, LEAST, IndexedRun, RunIndex, RunPlace, read

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
LEDGER = "/data/out.parquet.embatch"
PLACE = RunPlace(LEDGER, "out.parquet", "gemini", "https://g")


def told(data: Path, run: str, now: float = NOW, output: str = "out.parquet") -> RunIndex:
    """Begin a run at a time."""
    index = RunIndex(data, run, RunPlace(LEDGER, output, "gemini", "https://g"), [], lambda: now)
    index.begin()
    assert index.notes == []
    return index


def test_what_a_run_told(tmp_path: Path) -> None:
    """Each line adds to the earlier ones; the run whose last line is the latest comes first."""
    first = told(tmp_path, "a")
    told(tmp_path, "b", NOW + 1)
    first.tell({"batches": 2})
    first.tell({"batches": 3})
    assert [one.run for one in read(tmp_path)] == ["b", "a"]
    late = RunIndex(tmp_path, "a", PLACE, [], lambda: NOW + 5)
    late.tell(
        {
            "state": "done",
            "rows": 10,
            "tokens": 70,
            "cost": 0.25,
            "failed": 1,
            "cpu_seconds": 1.5,
            "ended": NOW + 5,
        }
    )
    expected = IndexedRun(
        *("a", LEDGER, "out.parquet", "gemini", "https://g", "done", 3, 10, 1, 70, 1.5, 0.25),
        *(NOW, NOW + 5, NOW + 5),
    )
    assert read(tmp_path)[0] == expected
    again = told(tmp_path, "a", NOW + 9)  # the same command once more
    assert (read(tmp_path)[0].state, read(tmp_path)[0].ended, read(tmp_path)[0].batches) == (
        "running",
        None,
        3,
    )
    again.tell({"state": "stopped"})
    assert read(tmp_path)[0].state == "stopped"


def test_there_is_none(tmp_path: Path) -> None:
    """Nobody is asked to make one."""
    assert read(tmp_path / "none") == []
    (tmp_path / "runs").touch()
    assert read(tmp_path) == []


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """It names outputs."""
    told(tmp_path, "a")
    for path in (tmp_path / "runs", *(tmp_path / "runs").iterdir()):
        assert path.stat().st_mode & 0o077 == 0


@given(st.data())
@settings(max_examples=40)
def test_a_torn_line_is_dropped(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut anywhere, what stands in whole lines is there, and the next line is whole."""
    folder = tmp_path_factory.mktemp("data")
    for name in "abc":
        told(folder, name)
    path = folder / "runs" / "index.jsonl"
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = max(0, content[:cut].count(b"\n") - 1)
    assert {one.run for one in read(folder)} == set("abc"[:whole])
    told(folder, "d" * 5000)
    assert {one.run for one in read(folder)} == {*"abc"[:whole], "d" * 5000}
    assert all(orjson.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize(
    "line", [b"\xff\n", b"[]\n", b'{"run":"x"}\n', b'{"at":1}\n', b'{"run":["x"],"at":1}\n']
)
def test_a_damaged_line_hides_no_other(tmp_path: Path, line: bytes) -> None:
    """Another version's names are left out as well."""
    told(tmp_path, "a")
    with (tmp_path / "runs" / "index.jsonl").open("ab") as file:
        file.write(line + b'{"run":"n","at":1.0,"colour":"red"}\n')
    told(tmp_path, "b")
    assert {one.run for one in read(tmp_path)} == {"a", "b", "n"}


def test_it_is_put_together_and_forgets_what_is_old(tmp_path: Path) -> None:
    """It stays small however much is told; a year after its end a run is gone, one that goes on is not."""
    path = tmp_path / "runs" / "index.jsonl"
    told(tmp_path, "old").tell({"state": "done"})
    told(tmp_path, "kept").tell({"rows": 5})
    RunIndex(tmp_path, "kept", PLACE, [], lambda: NOW + 100).tell({"batches": 7})

    def late() -> None:
        place = RunPlace(LEDGER, "x" * 20_000, "gemini", "https://g")
        RunIndex(tmp_path, "late", place, [], lambda: NOW + KEPT + 50).begin()

    late()
    while path.stat().st_size > 40_000 or path.stat().st_size < 2 * 20_000 - 1:
        before = path.stat().st_size
        assert before <= LEAST + 21_000
        late()
        if path.stat().st_size < before:
            break
    assert {one.run: (one.batches, one.rows) for one in read(tmp_path)} == {"late": (0, 0), "kept": (7, 5)}


WRITE = """
import sys
from pathlib import Path
from embatch.runs.index import RunIndex, RunPlace

data, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    index = RunIndex(data, f"{name}-{number}", RunPlace("l", "o" * 12_000, "p", "t"), [])
    index.begin()
    index.tell({"state": "done", "rows": number})
    assert not index.notes
    print(number, flush=True)
"""


def writing(data: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    """Tell of so many runs in a process of its own."""
    command = [sys.executable, "-c", WRITE, str(data), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Every line of both is there, though the index was put together meanwhile."""
    with writing(tmp_path, "a", 25) as one, writing(tmp_path, "b", 25) as other:
        assert one.wait(120) == other.wait(120) == 0
    runs = read(tmp_path)
    assert {one.run for one in runs} == {f"{name}-{number}" for name in "ab" for number in range(25)}
    assert all((one.state, one.rows) == ("done", int(one.run[2:])) for one in runs)


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """What it had told of is there, and others go on."""
    with writing(tmp_path, "a", 100_000) as child:
        assert child.stdout is not None
        for _ in range(30):  # past the first time that it is put together
            last = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    told(tmp_path, "b")
    runs = {one.run for one in read(tmp_path)}
    assert {"b", *(f"a-{number}" for number in range(int(last) + 1))} <= runs


def test_an_index_that_cannot_be_written_is_told_and_no_more(tmp_path: Path) -> None:
    """The run goes on, and its note says why."""
    (tmp_path / "runs").touch()
    index = RunIndex(tmp_path, "a", PLACE, [])
    index.begin()
    index.tell({"state": "done"})
    (note,) = index.notes
    assert f"the index of runs in {tmp_path} is not written" in note
