"""A batch is paid once: killed at any step, with replies lost and lists late, no block is created twice."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from hosted.behaviour import Behaviour, Fault
from payer import BLOCK, BLOCKS, KILLED, Paid, Payer, paid, paid_by_vertex, payer

from embatch.client.fingerprint import in_name, unmarked
from embatch.runs.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = pytest.mark.hosted

DAY = 24 * 3600.0
KEY = "canary-of-a-key-0123456789"
ROWS = BLOCK * BLOCKS
EACH_ONCE = {f"in.jsonl rows {first}-{first + BLOCK - 1}": 1 for first in range(0, ROWS, BLOCK)}
IN_DOUBT = (Step.LISTED.name, Step.SETTLED.name)
"""Steps that a run comes to only where something is in doubt."""
SAMPLE = ("INTENDED", "CREATED", "STORED", "COMMITTED", "INPUT_DROPPED")


@pytest.fixture(scope="module")
def process() -> Iterator[Payer]:
    """A process that embeds on demand."""
    with payer() as one:
        yield one


@pytest.fixture(scope="module")
def calm(process: Payer, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The rows of a run that nobody disturbed."""
    with paid(process, tmp_path_factory.mktemp("calm")) as run:
        assert run.call()["rows"] == ROWS
        return run.vectors()


def finished(run: Paid, **more: Any) -> dict[str, Any]:
    """Have a call end well; nothing of the run is left anywhere but its output."""
    found = run.call(**more)
    assert (found["code"], found.get("rows"), found.get("failed")) == (0, ROWS, 1), found
    assert not run.ledger.exists()
    assert run.left() == []
    return found


def inputs_of_unread(run: Paid) -> bool:
    """Return whether the provider still has the input of each batch whose rows are not in the ledger."""
    if not run.ledger.exists():
        return True
    read = {line["number"] for line in run.lines("block")}
    known = {line["fingerprint"] for line in run.lines("created")}
    wanted = {line["fingerprint"] for line in run.lines("intent") if line["number"] not in read} & known
    return wanted <= {in_name(name) for name in run.left()}


@pytest.mark.parametrize("step", SAMPLE)
def test_killed_at_a_step_nothing_is_paid_twice(
    process: Payer, calm: list[Any], tmp_path: Path, step: str
) -> None:
    """The same command goes on, has each batch created once, and gives the same rows."""
    with paid(process, tmp_path) as run:
        assert run.call(kill={step: 2})["code"] == KILLED
        assert run.steps()[-1] == step
        assert inputs_of_unread(run)
        finished(run)
        assert run.texts_created() == EACH_ONCE
        assert run.vectors() == calm


@pytest.mark.parametrize("step", ["CREATED", "COMMITTED"])
def test_killed_at_a_step_nothing_is_paid_twice_on_vertex(process: Payer, tmp_path: Path, step: str) -> None:
    """Its jobs are known by their labels; one that was taken and not answered is found, too."""
    behaviour = Behaviour(faults=(Fault("create", calls=(1,), cut="handled"),))
    with paid_by_vertex(process, tmp_path, behaviour) as run:
        assert run.call(kill={step: 2})["code"] == KILLED
        assert inputs_of_unread(run)
        finished(run)
        assert run.texts_created() == EACH_ONCE


@pytest.mark.long
@pytest.mark.parametrize("service", [paid, paid_by_vertex], ids=["gemini", "vertex"])
@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(),
        Behaviour(lists_late_seconds=40.0, list_size=1),
        Behaviour(faults=(Fault("create", calls=(2,), cut="handled"),)),
        Behaviour(faults=(Fault("create", calls=(1, 3), status=503),)),
        Behaviour(faults=(Fault("create", calls=(2,), status=504, handled=True),), lists_late_seconds=400.0),
    ],
    ids=["calm", "lists late", "reply lost", "refused by 503", "taken and 504"],
)
def test_killed_at_every_step_and_again_nothing_is_paid_twice(
    process: Payer,
    tmp_path: Path,
    behaviour: Behaviour,
    service: Callable[[Payer, Path, Behaviour], AbstractContextManager[Paid]],
) -> None:
    """At each step of a run, and a second time at any step of the call that goes on."""
    at, kills, creates, seen, rows = 0, 0, 0, set[str](), list[Any]()
    while True:
        at += 1
        chance = random.Random(at)
        with service(process, tmp_path / str(at), behaviour) as run:
            first = run.call(kill={"ANY": at})
            if first["code"] == 0:
                break
            second = run.call(kill={"ANY": chance.randint(1, 40)})
            kills += (first["code"] == KILLED) + (second["code"] == KILLED)
            assert inputs_of_unread(run)
            if second["code"] == KILLED or run.ledger.exists():
                finished(run)
            seen |= set(run.steps())
            creates += sum(run.texts_created().values())
            assert run.texts_created() == EACH_ONCE
            rows = rows or run.vectors()
            assert run.vectors() == rows
    runs = at - 1
    print(f"\n{runs} runs of {BLOCKS} batches, {kills} kills, {creates / runs:.3f} creates a run")  # noqa: T201
    assert seen >= {step.name for step in Step} - set(IN_DOUBT)
    assert runs >= 40


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (Fault("create", calls=(2,), cut="handled"), False),
        (Fault("create", calls=(2,), status=500, handled=True), False),
        (Fault("create", calls=(2,), status=503), True),
        (Fault("create", calls=(2,), cut="body", at=10), False),
    ],
    ids=["reply lost", "taken and 500", "refused by 503", "reply cut"],
)
def test_a_create_of_unknown_fate_is_looked_for(
    process: Payer, tmp_path: Path, fault: Fault, *, waits: bool
) -> None:
    """What is in the list is adopted; what is not, though the lists be late, is created after a while."""
    behaviour = Behaviour(faults=(fault,), lists_late_seconds=20.0)
    with paid(process, tmp_path, behaviour) as run:
        began = run.google.counts()["now"]
        found = finished(run)
        assert "it is not known whether a batch of rows 3-5 was created" in found["told"][0]
        assert run.texts_created() == EACH_ONCE
        assert (run.google.counts()["now"] - began >= 15 * 60) == waits


def test_what_was_never_sent_is_created_once_its_age_is_proof(process: Payer, tmp_path: Path) -> None:
    """By a machine whose clock is wrong, too: an hour behind, or an hour before."""
    for wrong in (-3600.0, 3600.0):
        with paid(process, tmp_path / str(wrong)) as run:
            assert run.call(kill={"INTENDED": 1})["code"] == KILLED
            began = run.google.counts()["now"]
            finished(run, wrong=wrong)
            assert run.texts_created() == EACH_ONCE
            # Two lists lie between in any case.
            assert run.google.counts()["now"] - began >= 5 * 60


def test_what_nobody_can_tell_after_a_day_is_left_to_people(process: Payer, tmp_path: Path) -> None:
    """All else is done and kept; the batch is not created again, and the run cannot be forgotten."""
    with paid(process, tmp_path) as run:
        assert run.call(kill={"INTENDED": 2})["code"] == KILLED
        run.google.clock.advance(DAY)
        for _ in range(2):
            found = run.call()
            assert (found["error"], found["field"]) == ("FailedPrecondition", "--out")
            assert "1 batches of which nobody can tell" in found["message"]
            assert (
                "rows 3-5: nobody knows whether it was created, 24 hours after it was to be"
                in found["message"]
            )
            assert "embatch runs adopt" in found["message"]
        assert sorted(line["number"] for line in run.lines("block")) == [0, 2]
        assert len(run.lines("quarantine")) == 1
        assert run.google.counts()["creates"] == 2
        refused = run.call(restart=True)
        assert (refused["error"], refused["field"]) == ("FailedPrecondition", "--restart")
        assert "rows 3-5: not known which" in refused["message"]
        assert run.ledger.exists()


@pytest.mark.parametrize(("account", "more"), [("project", []), ("other", ["rows 0-2: batches/"])])
def test_lists_of_another_key_prove_nothing(
    process: Payer, tmp_path: Path, account: str, more: list[str]
) -> None:
    """What they do not hold is left to people at once; so is what that key cannot see."""
    with paid(process, tmp_path, keys={"key-one": "project", "key-two": account}) as run:
        assert run.call(kill={"INTENDED": 2}, key="key-one")["code"] == KILLED
        found = run.call(key="key-two")
        for said in (*more, "rows 3-5: the key is another one than the run began with"):
            assert said in found["message"]


def test_what_lists_of_another_key_hold_is_ours(process: Payer, tmp_path: Path) -> None:
    """The mark says so, whoever asks."""
    with paid(process, tmp_path, keys={"key-one": "project", "key-two": "project"}) as run:
        assert run.call(kill={"CREATED": 2}, key="key-one")["code"] == KILLED
        finished(run, key="key-two")
        assert run.texts_created() == EACH_ONCE


def test_what_is_in_the_list_after_a_day_is_adopted(process: Payer, tmp_path: Path) -> None:
    """However long ago it was created: it is there."""
    with paid(process, tmp_path) as run:
        assert run.call(kill={"CREATED": 2})["code"] == KILLED
        run.google.clock.advance(DAY)
        finished(run)
        assert run.texts_created() == EACH_ONCE


def test_a_run_with_batches_in_flight_is_not_forgotten(process: Payer, tmp_path: Path) -> None:
    """Whatever the command is then; the batches that are paid for are named."""
    with paid(process, tmp_path) as run:
        assert run.call(kill={"KNOWN": 2})["code"] == KILLED
        names = [job["name"] for job in run.google.counts()["jobs"]]
        refused = run.call(restart=True, block_rows=2)
        assert refused["error"] == "FailedPrecondition"
        for at, name in enumerate(names):
            assert f"rows {at * BLOCK}-{at * BLOCK + 2}: {name}" in refused["message"]
        finished(run, restart=False)
        assert run.texts_created() == EACH_ONCE


def test_blocks_are_committed_as_their_batches_end(process: Payer, calm: list[Any], tmp_path: Path) -> None:
    """One that stays holds up none; what is resumed with holes is whole, whatever the command says now."""
    with paid(process, tmp_path, Behaviour(stays="PENDING", staying_batches=(1,))) as run:
        assert run.call(kill={"BATCH_DROPPED": 2})["code"] == KILLED
        assert [line["number"] for line in run.lines("block")] == [1, 2]
        run.google.release()
        finished(run, block_rows=None)
        assert run.texts_created() == EACH_ONCE
        assert run.vectors() == calm


def test_a_batch_that_failed_is_followed_by_another_one(process: Payer, tmp_path: Path) -> None:
    """The next call makes it, under a mark of its own: nothing was paid for the first."""
    with paid(process, tmp_path, Behaviour(ends=("FAILED",))) as run:
        found = run.call()
        assert found["error"] == "BatchFailed"
        finished(run)
        jobs = [job["display_name"] for job in run.google.counts()["jobs"]]
        assert run.texts_created() == {**EACH_ONCE, "in.jsonl rows 0-2": 2}
        assert len({unmarked(name) for name in jobs}) == BLOCKS + 1


def test_a_batch_that_was_deleted_elsewhere_is_left_to_people(process: Payer, tmp_path: Path) -> None:
    """It was paid, and its results are gone: whether to pay again is not for a program to say."""
    with paid(process, tmp_path) as run:
        assert run.call(kill={"POLLED": 1})["code"] == KILLED
        gone = run.lines("created")[0]["batch"]
        run.call(delete=gone)
        found = run.call()
        assert f"{gone} is not there any more" in found["message"]
        assert run.google.counts()["creates"] == BLOCKS


def test_no_key_stands_in_a_ledger(process: Payer, tmp_path: Path) -> None:
    """Nor anything that tells it: its digest is salted."""
    with paid(process, tmp_path, keys={KEY: "project"}) as run:
        assert run.call(kill={"POLLED": 1})["code"] == KILLED
        assert KEY not in run.ledger.read_text("utf-8")
        header = json.loads(run.ledger.read_text("utf-8").splitlines()[0])
        assert header["begun"]["key"].keys() == {"salt", "digest"}
        assert header["base address"] == run.google.url
