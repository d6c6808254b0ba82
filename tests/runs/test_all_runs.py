"""What `embatch runs` says of runs that were killed, and what people settle with it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow.parquet as pq
import pytest
from hosted.gemini import GeminiStandIn
from payer import BLOCK, BLOCKS, KILLED, Paid, Payer, paid, payer

from embatch import Client, cli
from embatch.client.fingerprint import fingerprint
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns
from embatch.runs.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.hosted

DAY = 24 * 3600.0
ROWS = BLOCK * BLOCKS


@pytest.fixture(scope="module")
def process() -> Iterator[Payer]:
    """A process that embeds on demand."""
    with payer() as one:
        yield one


@pytest.fixture
def run(process: Payer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paid]:
    """A run whose provider the commands find too."""
    with paid(process, tmp_path / "run") as one:
        assert isinstance(one.google, GeminiStandIn)
        monkeypatch.setenv("GOOGLE_API_KEY", one.google.key)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", one.google.url)
        yield one


def command(run: Paid, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """Run `embatch runs …` here; return the objects of its output, or what it said where it failed."""
    with pytest.raises(SystemExit) as left:
        cli.main(["runs", *words, "--data", str(run.folder / "data")])
    found = capsys.readouterr()
    assert left.value.code == code, found.err
    if "--json" in words and not code:
        return [orjson.loads(line) for line in found.out.splitlines()]
    return found.out + found.err


def out(run: Paid) -> str:
    """Return the output's path."""
    return str(run.folder / "out.parquet")


def listed(run: Paid, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the one run there is."""
    (one,) = command(run, capsys, "--json")
    assert isinstance(one, dict)
    return one


def finished(run: Paid) -> None:
    """Have the same command end well."""
    found = run.call()
    assert (found["code"], found.get("rows"), found.get("failed")) == (0, ROWS, 1), found


def test_a_run_from_its_beginning_to_its_end(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed it is stopped, with what is in flight; done it is there with its numbers, without its ledger."""
    assert run.call(kill={"COMMITTED": 1})["code"] == KILLED
    one = listed(run, capsys)
    assert (one["output"], one["ledger"]) == (out(run), f"{out(run)}.embatch")
    assert (one["state"], one["provider"], one["target"]) == ("stopped", "gemini", run.google.url)
    assert (one["rows"], one["batches"], one["in_flight"]) == (BLOCK, BLOCKS, BLOCKS - 1)
    assert (one["unknown"], one["quarantined"], one["ended"]) == (0, 0, None)
    assert one["open_tokens"] > 0
    said = command(run, capsys, out(run))
    for job in run.google.counts()["jobs"][1:]:
        assert job["name"] in said
    finished(run)
    one = listed(run, capsys)
    assert (one["state"], one["rows"], one["failed"], one["batches"]) == ("done", ROWS, 1, BLOCKS)
    assert (one["in_flight"], one["open_tokens"]) == (0, 0)
    assert one["tokens"] > 0
    bill = orjson.loads(pq.read_schema(out(run)).metadata[b"embatch.cost"])
    assert one["cost"] == pytest.approx(bill["dollars"])
    assert bill["ways"]["batch"] == pytest.approx(one["tokens"] * 0.075e-6)
    assert one["ended"] >= one["began"]
    (same,) = command(run, capsys, out(run), "--json")
    assert same == {**one, "intents": []}
    assert out(run) in command(run, capsys)
    assert os.environ["GOOGLE_API_KEY"] not in (run.folder / "data" / "runs" / "index.jsonl").read_text()


def test_an_output_begun_anew_is_another_run(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """What was stopped before it is shown as gone, and the ledger is not taken for its own."""
    assert run.call(kill={"COMMITTED": 1})["code"] == KILLED
    command(run, capsys, "abandon", out(run), "--in-flight")
    assert run.call(restart=True, block_rows=2, kill={"KNOWN": 2})["code"] == KILLED
    new, old = command(run, capsys, "--json")
    assert (new["state"], new["in_flight"], new["batches"]) == ("stopped", 2, 2)
    assert (old["state"], old["in_flight"], old["batches"]) == ("gone", 0, BLOCKS)
    assert [one["run"] for one in command(run, capsys, out(run), "--json")] == [new["run"]]


def test_a_run_at_work_is_seen_and_left_alone(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """It is running while a process has its ledger, and nothing of it can be settled."""
    assert run.call(kill={"INTENDED": 1})["code"] == KILLED
    assert listed(run, capsys)["state"] == "stopped"
    with closing(Ledger.take_up(run.ledger.parent)):
        assert listed(run, capsys)["state"] == "running"
        for words in (("abandon", out(run), "--unknown"), ("adopt", out(run), "batches/b")):
            assert "another embatch is writing" in command(run, capsys, *words, code=1)
    assert listed(run, capsys)["unknown"] == 1


def test_a_lost_batch_is_adopted_by_hand(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """The run reads it as its own, and no row is paid twice."""
    assert run.call(kill={"CREATED": 2})["code"] == KILLED
    first, lost = (job["name"] for job in run.google.counts()["jobs"])
    (before,) = command(run, capsys, out(run), "--json")
    assert [one["fate"] for one in before["intents"]] == ["created", "unknown"]
    assert "nothing is in doubt about rows 0-2" in command(run, capsys, "adopt", out(run), first, code=1)
    assert "not found" in command(run, capsys, "adopt", out(run), "batches/none", code=1)
    said = command(run, capsys, "adopt", out(run), lost)
    assert f"rows 3-5: {lost} (" in said
    assert "nothing more is paid" in said
    (after,) = command(run, capsys, out(run), "--json")
    assert [(one["fate"], one["batch"]) for one in after["intents"]] == [
        ("created", first),
        ("created", lost),
    ]
    finished(run)
    assert run.google.counts()["creates"] == BLOCKS
    assert "LISTED" not in run.steps()


def test_a_batch_of_other_texts_is_not_adopted(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """Another run's mark, or another number of requests, is refused; one without a mark needs its block."""
    assert run.call(kill={"INTENDED": 2})["code"] == KILLED
    texts, mark = ["a", "b", "c"], fingerprint("another")
    with Client("gemini", data=run.folder) as client:
        batches = [
            ForRuns(client).submit(these, RequestDefaults(), BatchOptions("By hand", fingerprint=by))
            for these, by in ((texts, mark), (texts[:2], None), (texts, None))
        ]
    marked, short, right = (batch.name for batch in batches)
    assert "the mark of another run" in command(
        run, capsys, "adopt", out(run), marked, "--block", "1", code=2
    )
    assert "no mark that says which rows" in command(run, capsys, "adopt", out(run), right, code=2)
    assert "2 requests, and rows 3-5" in command(
        run, capsys, "adopt", out(run), short, "--block", "1", code=2
    )
    assert "is not of block 7" in command(run, capsys, "adopt", out(run), right, "--block", "7", code=2)
    assert "nothing is in doubt" in command(run, capsys, "adopt", out(run), right, "--block", "0", code=1)
    assert run.lines("created")[1:] == []
    (settled,) = command(run, capsys, "adopt", out(run), right, "--block", "1", "--json")
    assert (settled["fate"], settled["batch"], settled["requests"]) == ("created", right, 3)
    assert settled["cost"] == pytest.approx(settled["tokens"] * 0.075e-6)


def test_what_is_given_up_is_embedded_again(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what the command names: quarantined by default; it says what that costs, and does not pay it."""
    assert run.call(kill={"INTENDED": 2})["code"] == KILLED
    said = command(run, capsys, "abandon", out(run), code=1)
    assert "nothing to give up, but there is rows 0-2: created batches/" in said
    run.google.clock.advance(DAY)
    assert run.call()["error"] == "FailedPrecondition"
    assert listed(run, capsys)["quarantined"] == 1
    assert "embatch runs adopt" in command(run, capsys, out(run))
    said = command(run, capsys, "abandon", out(run))
    assert "rows 3-5: given up" in said
    assert "costs about" in said
    assert run.google.counts()["creates"] == BLOCKS - 1
    finished(run)
    assert run.google.counts()["creates"] == BLOCKS


def test_a_batch_that_is_there_is_given_up_by_its_name(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """It says that the batch goes on with the provider, and how that is stopped."""
    assert run.call(kill={"KNOWN": 2})["code"] == KILLED
    first, second = (job["name"] for job in run.google.counts()["jobs"])
    said = command(run, capsys, "abandon", out(run), second)
    assert f"rows 3-5: given up, with {second}" in said
    assert f"embatch cancel {second} --to gemini" in said
    (settled,) = command(run, capsys, "abandon", out(run), first, "--json")
    assert (settled["fate"], settled["batch"]) == ("over", first)
    assert "nothing to give up under" in command(run, capsys, "abandon", out(run), first, code=1)


def test_another_provider_than_the_runs_is_not_asked(
    run: Paid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches may bear the same names."""
    assert run.call(kill={"INTENDED": 1})["code"] == KILLED
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    said = command(run, capsys, "adopt", out(run), "batches/b", code=1)
    assert f"the run's batches are with {run.google.url}, and this goes to http://127.0.0.1:9" in said


def test_what_cannot_be_read_hides_no_other_run(run: Paid, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged ledger is told of, and one of a later version; of an unknown output nothing is said."""
    assert run.call(kill={"COMMITTED": 1})["code"] == KILLED
    content = run.ledger.read_bytes()
    for was, now, why in (
        (b'{"block', b'{"black', "damaged at line"),
        (b'"version":2', b'"version":9', "another version of embatch"),
    ):
        run.ledger.write_bytes(content.replace(was, now))
        one = listed(run, capsys)
        assert why in one["trouble"]
        assert one["batches"] == BLOCKS
        assert why in command(run, capsys)
        assert why in command(run, capsys, out(run), code=1)
    assert "no run of" in command(run, capsys, f"{out(run)}.other", code=1)
    assert "has no ledger" in command(run, capsys, "abandon", f"{out(run)}.other", code=1)
