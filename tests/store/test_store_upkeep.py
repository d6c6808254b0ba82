"""What a store must do, whatever its database: change, delete, prune, page, files, several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from storing import (
    NOW,
    accept,
    accept_file,
    add_file,
    at,
    claim,
    commit,
    new_batch,
    payload,
    upload,
    uploaded,
    work_off,
)

from embatch.errors import AlreadyExists, FailedPrecondition, NoSuchFile, NotFound
from embatch.states import State
from embatch.store.times import micros

if TYPE_CHECKING:
    from embatch.store.store import Store

pytest_plugins = ("store_databases",)


def test_update_changes_what_is_named_and_nothing_else(store: Store) -> None:
    """A name can be changed and emptied, a priority changed; what is not named stays."""
    before = accept(store, "a", priority=3)
    assert store.update("a", now=at(1)) == replace(before, update_time=at(1))
    named = store.update("a", display_name="new", now=at(2))
    assert named == replace(before, display_name="new", update_time=at(2))
    assert store.update("a", display_name=None, priority=-7, now=at(3)) == replace(
        before, display_name=None, priority=-7, update_time=at(3)
    )


def test_notes_are_replaced(store: Store) -> None:
    """Notes known only after planning take the place of the first ones."""
    accept(store, "a")
    store.note("a", ("one", 'two "quoted" ü'))
    assert store.get("a").notes == ("one", 'two "quoted" ü')


def test_only_a_final_batch_can_be_deleted(store: Store) -> None:
    """A running batch must be cancelled first; a deleted one leaves neither shards nor its key behind."""
    store.accept(new_batch("a", key="k"), [payload()])
    with pytest.raises(FailedPrecondition, match="cancel it first"):
        store.delete("a")
    claim(store)
    with pytest.raises(FailedPrecondition, match="PROCESSING"):
        store.delete("a")
    store.cancel("a", NOW)
    store.delete("a")
    assert (store.ids_of_batches(), store.shards("a"), store.claim(NOW)) == (set(), [], None)
    with pytest.raises(NotFound):
        store.delete("a")
    _, existed = store.accept(new_batch("a", key="k"), [payload(), payload(1)])
    assert not existed
    assert len(store.shards("a")) == 2


def test_prunable_are_those_that_ended_before(store: Store) -> None:
    """Final batches come up for pruning by the time they ended, oldest first; active ones never."""
    for number in range(4):
        accept(store, f"b{number}")
        store.cancel(f"b{number}", at(10 - number))
    accept(store, "active", age=10**6)
    assert store.prunable(at(10), 10) == ["b3", "b2", "b1"]
    assert store.prunable(at(11), 2) == ["b3", "b2"]
    assert store.prunable(at(7), 10) == []


def test_pages_hold_every_batch_once_while_others_arrive_and_go(store: Store) -> None:
    """What was there at the first page is seen exactly once, whatever is added or deleted meanwhile."""
    there = [accept(store, f"b{number:02}", age=number // 3) for number in range(20)]
    order = [r.id for r in sorted(there, key=lambda r: (r.create_time, r.id), reverse=True)]
    store.cancel("b19", NOW)
    seen: list[str] = []
    after: tuple[int, str] | None = None
    while page := store.list(6, after):
        seen += [record.id for record in page]
        after = (micros(page[-1].create_time), page[-1].id)
        accept(store, f"new{len(seen)}", age=-1)
        if "b19" in store.ids_of_batches() and "b19" not in seen:
            store.delete("b19")
    assert seen == [name for name in order if name != "b19"]
    assert {record.id for record in store.list(4, None)} == {"new6", "new12", "new18", "new19"}


def test_a_page_counts_each_batch_by_itself(store: Store) -> None:
    """Counts of one batch do not leak into its neighbour on the page."""
    accept(store, "a", shards=3, age=1)
    accept(store, "b")
    accept_file(store, "c")
    while (found := store.claim(NOW)) is not None:
        commit(store, found, failed=1 if found.batch_id == "a" else 0)
    counted = {
        r.id: (r.state, r.request_count, r.successful_count, r.failed_count) for r in store.list(9, None)
    }
    assert counted == {
        "a": (State.COMPLETED, 9, 6, 3),
        "b": (State.COMPLETED, 3, 3, 0),
        "c": (State.PENDING, 0, 0, 0),
    }


def test_text_is_kept_as_it_was_written(store: Store) -> None:
    """Names come back to the last character, whatever they hold."""
    name = "'; DROP TABLE batch; -- \u202e\U0001f986 e\u0301 \\ \" \t"
    store.accept(replace(new_batch("a"), display_name=name), [payload()])
    assert store.get("a").display_name == name


# files


def test_an_upload_becomes_a_file(store: Store) -> None:
    """An upload is remembered until it is finished; then its file is there and the upload is not."""
    begun = upload("t", "f")
    store.begin_upload(begun)
    assert store.upload("t") == begun
    assert store.uploads() == [begun]
    file = uploaded("f")
    store.finish_upload("t", file)
    assert store.file("f") == file
    assert store.uploads() == []
    with pytest.raises(NotFound):
        store.upload("t")
    with pytest.raises(NotFound):
        store.finish_upload("t", file)


def test_a_name_that_is_taken_is_refused(store: Store) -> None:
    """A file's id belongs to one file or upload; refusing leaves both as they were."""
    add_file(store, uploaded("f"))
    store.begin_upload(upload("t", "g"))
    for taken in ("f", "g"):
        with pytest.raises(AlreadyExists, match=f"files/{taken}"):
            store.begin_upload(upload("u", taken))
    with pytest.raises(AlreadyExists):
        store.finish_upload("t", uploaded("f"))
    assert store.uploads() == [upload("t", "g")]


def test_a_dropped_upload_is_gone(store: Store) -> None:
    """Dropping is safe to repeat and frees the name."""
    store.begin_upload(upload("t", "f"))
    assert store.drop_upload("t")
    assert not store.drop_upload("t")
    assert store.uploads() == []
    store.begin_upload(upload("u", "f"))


def test_a_missing_file_is_told_by_its_id(store: Store) -> None:
    """Whoever answers for it has words of its own for that."""
    for ask in (store.file, store.delete_file):
        with pytest.raises(NoSuchFile, match="there is no file files/nothing") as missing:
            ask("nothing")
        assert missing.value.file_id == "nothing"


def test_a_file_is_told_by_where_its_bytes_stand(store: Store) -> None:
    """Its name may be another one's by now: that one stays."""
    add_file(store, uploaded("f"))
    assert store.file_at("files/f") == store.file("f")
    for path in ("files/g", "f", ""):
        with pytest.raises(NotFound):
            store.file_at(path)
        with pytest.raises(NoSuchFile):
            store.delete_file("f", path=path)
    assert store.delete_file("f", path="files/f") == "files/f"
    with pytest.raises(NotFound):
        store.file_at("files/f")


def test_files_are_listed_newest_first(store: Store) -> None:
    """Files page like batches."""
    for number in range(5):
        add_file(store, uploaded(f"f{number}", age=number // 2))
    first = store.files(3, None)
    assert [file.id for file in first] == ["f1", "f0", "f3"]
    assert [file.id for file in store.files(3, (micros(first[-1].create_time), "f3"))] == ["f2", "f4"]


def test_a_file_is_kept_while_a_batch_reads_it(store: Store) -> None:
    """An input file is pinned until its batch is planned or has ended, also past its time."""
    add_file(store, uploaded("f", lives=10.0))
    add_file(store, uploaded("g", lives=10.0))
    add_file(store, uploaded("for-ever", lives=None))
    accept_file(store, "a")
    with pytest.raises(FailedPrecondition):
        store.delete_file("f")
    assert [file.id for file in store.expired_files(at(10))] == ["g"]
    assert store.expired_files(at(9)) == []
    store.plan("a", [payload()], complete=True, now=NOW)
    assert sorted(file.id for file in store.expired_files(at(10))) == ["f", "g"]
    store.delete_file("f")
    work_off(store)
    accept_file(store, "b")
    store.cancel("b", NOW)
    store.delete_file("g")
    assert [file.id for file in store.files(9, None)] == ["for-ever"]


# several processes

CLAIMER = """
import json, sys
from storing import NOW
from embatch.store.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while (found := store.claim(NOW)) is not None:
    print(json.dumps([found.batch_id, found.number, found.attempt]), flush=True)
store.close()
"""


def test_two_processes_never_claim_the_same_attempt(store: Store, database_url: str) -> None:
    """Claims of two processes on one database are disjoint, and together they are all there is."""
    for number in range(6):
        accept(store, f"b{number}", shards=25)
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{CLAIMER}", database_url]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    # Both are up before either begins, so that they really compete.
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in _started(processes)]
    claims = [[tuple(json.loads(line)) for line in output] for output in outputs]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(claims[0]) + len(claims[1]) == 150
    assert len({*claims[0], *claims[1]}) == 150


def _started(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes
