"""What is acknowledged is durable, what is refused leaves nothing, repeating gives the same batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from service_rig import DIMENSIONS, MODEL, Rig, embedded, large, rows, together, vector

from embatch.engine.models import Catalog, ServedModel
from embatch.engine.protocol import EngineSpec
from embatch.errors import (
    AlreadyExists,
    Code,
    EngineTrouble,
    InvalidArgument,
    NoSuchFile,
    NotFound,
    Reason,
    RequestError,
    Unavailable,
)
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.shard import RequestRow, failed_results
from embatch.states import State

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)


def test_an_inline_batch_from_submit_to_its_vectors(rig: Rig) -> None:
    """Every request comes back once, in order, with its key, its metadata and the vector of its text."""
    texts = ["one", "two\0three", "one", "Ä🙂", "ein e\u0301", "ein \u00e9"]
    given = [RequestRow(text, key=f"k{at}", metadata=f'{{"at":{at}}}') for at, text in enumerate(texts)]
    batch = rig.service.submit_inline(Draft(display_name="All", priority=-3), given)
    assert (batch.state, batch.display_name, batch.priority) == (State.PENDING, "All", -3)
    assert (batch.batch_stats.request_count, batch.batch_stats.pending_request_count) == (6, 6)
    done = rig.done(batch.name)
    assert done.state is State.COMPLETED
    assert (done.model, done.end_time, done.error) == ("models/test", rig.clock(), None)
    stats = done.batch_stats
    assert (stats.successful_request_count, stats.pending_request_count) == (6, 0)
    found = rig.read(batch.name)
    assert [row["index"] for row in found] == list(range(6))
    assert [(row["key"], row["metadata"]) for row in found] == [(row.key, row.metadata) for row in given]
    assert [row["embedding"] for row in found] == [vector(text) for text in texts]
    results = rig.service.results(batch.name)
    assert (results.dimensions, results.native) == (0, DIMENSIONS)
    assert rig.service.inline(batch.name)


def test_payload_is_on_disk_before_the_batch_is_in_the_database(rig: Rig) -> None:
    """At the moment of the transaction all shards stand under their final names."""
    seen: list[set[str]] = []
    rig.before["accept"] = lambda: seen.append(rig.files())
    batch = rig.service.submit_inline(Draft(), large(3))
    assert seen == [{batch.name, *(f"{batch.name}/payload-0000{at}.arrow" for at in range(3))}]


@pytest.mark.parametrize(
    ("draft", "given", "error", "reason"),
    [
        (Draft(), [], InvalidArgument, "EMPTY_BATCH"),
        (Draft(), rows(6), InvalidArgument, "TOO_MANY_REQUESTS_IN_BATCH"),
        (Draft(model="nothing"), rows(1), NotFound, "MODEL_NOT_FOUND"),
        (Draft(model="../../etc/passwd"), rows(1), NotFound, "MODEL_NOT_FOUND"),
        (Draft(display_name="x" * 513), rows(1), InvalidArgument, None),
        (Draft(priority=1 << 63), rows(1), InvalidArgument, "OUT_OF_RANGE"),
        (Draft(), [*rows(2), RequestRow("a", task_type="DANCE")], InvalidArgument, None),
        (Draft(), [*rows(2), RequestRow("a", dimensions=9)], InvalidArgument, "OUT_OF_RANGE"),
    ],
)
def test_what_is_wrong_by_its_form_is_refused_whole(
    tmp_path: Path, draft: Draft, given: list[RequestRow], error: type[Exception], reason: str | None
) -> None:
    """The refusal names a field and leaves neither a row nor a file."""
    rig = Rig(tmp_path / "data", settings=Settings(inline_requests=5))
    try:
        with pytest.raises(error) as caught:
            rig.service.submit_inline(draft, iter(given))
        assert getattr(caught.value, "reason") == reason  # noqa: B009  (the types differ)
        assert getattr(caught.value, "field")  # noqa: B009
        assert rig.files() == set()
        assert rig.service.list(10, None).items == ()
    finally:
        rig.stop()


def test_faulty_content_fails_its_request_alone(rig: Rig) -> None:
    """Good neighbours keep their places and vectors; the faulty one carries its reason."""
    given = [RequestRow("a", key="x"), RequestRow(" ", key="y"), RequestRow("b", key="x"), RequestRow("c")]
    done = rig.done(rig.service.submit_inline(Draft(), given).name)
    assert done.state is State.COMPLETED
    assert (done.batch_stats.successful_request_count, done.batch_stats.failed_request_count) == (2, 2)
    found = rig.read(done.name)
    reasons = [None, Reason.EMPTY_TEXT.value, Reason.DUPLICATE_KEY.value, None]
    assert [row["error_reason"] for row in found] == reasons
    assert [row["embedding"] for row in found] == [vector("a"), None, None, vector("c")]
    assert [row["key"] for row in found] == ["x", "y", "x", None]


def test_a_batch_of_faulty_requests_only_completes(rig: Rig) -> None:
    """All failed is COMPLETED: each request has its error."""
    done = rig.done(rig.service.submit_inline(Draft(), [RequestRow("")] * 20).name)
    assert done.state is State.COMPLETED
    assert (done.batch_stats.request_count, done.batch_stats.failed_request_count) == (20, 20)
    assert {row["error_reason"] for row in rig.read(done.name)} == {Reason.EMPTY_TEXT.value}


def test_fifty_submits_with_one_key_make_one_batch(rig: Rig) -> None:
    """All of them get the same batch, whoever was first, and only its files stay."""
    names: list[str] = []
    draft = Draft(idempotency_key="once", body_digest="d")
    together(50, lambda _: names.append(rig.service.submit_inline(draft, rows(20)).name))
    assert len(names) == 50
    (name,) = set(names)
    done = rig.done(name)
    assert [one.name for one in rig.service.list(100, None).items] == [name]
    assert rig.files() == {name, f"{name}/payload-00000.arrow", f"{name}/result-00000-1.arrow"}
    # Once it is done, and after a restart, it is still the same.
    assert rig.service.submit_inline(draft, rows(20)) == done
    rig.restart()
    assert rig.service.submit_inline(draft, rows(20)) == done


def test_a_key_belongs_to_its_body(rig: Rig) -> None:
    """The same key with another body is refused and changes nothing; once the batch is deleted it is free."""
    first = rig.service.submit_inline(Draft(idempotency_key="k", body_digest="1"), rows(2))
    with pytest.raises(AlreadyExists) as caught:
        rig.service.submit_inline(Draft(idempotency_key="k", body_digest="2"), rows(3))
    assert caught.value.reason == "IDEMPOTENCY_MISMATCH"
    rig.done(first.name)
    assert {name.split("/")[1] for name in rig.files()} == {first.name.split("/")[1]}
    rig.service.delete(first.name)
    again = rig.service.submit_inline(Draft(idempotency_key="k", body_digest="2"), rows(3))
    assert rig.done(again.name).batch_stats.successful_request_count == 3


def test_without_a_key_the_same_submit_makes_two_batches(rig: Rig) -> None:
    """As the live service does."""
    names = {rig.service.submit_inline(Draft(), rows(1)).name for _ in range(2)}
    assert len(names) == 2


def test_a_submit_that_the_disk_refuses_leaves_nothing(rig: Rig) -> None:
    """Not the shards before the one that failed, nor those of a transaction that was refused."""
    full = Unavailable("the disk is full", reason="STORAGE_FULL")

    def refuse_second(path: str) -> None:
        if "00001" in path:
            raise full

    rig.blobs.before_write = refuse_second
    with pytest.raises(Unavailable):
        rig.service.submit_inline(Draft(), large(3))
    assert rig.files() == set()
    rig.blobs.before_write = lambda _: None

    def refuse() -> None:
        raise full

    rig.before["accept"] = refuse
    with pytest.raises(Unavailable):
        rig.service.submit_inline(Draft(), rows(3))
    assert rig.files() == set()


def test_when_the_fate_of_a_submit_is_unknown_its_texts_are_kept(rig: Rig) -> None:
    """The batch may turn up after the restart; if it does not, the next start removes the folder."""

    def unknown() -> None:
        raise Unavailable("the storage reported an error", reason="STORAGE_ERROR")

    rig.after["accept"] = unknown
    with pytest.raises(Unavailable):
        rig.service.submit_inline(Draft(), rows(3))
    del rig.after["accept"]
    rig.before["accept"] = unknown
    with pytest.raises(Unavailable):
        rig.service.submit_inline(Draft(), rows(3))
    del rig.before["accept"]
    assert len({name.split("/")[1] for name in rig.files()}) == 2
    rig.restart()
    (batch,) = rig.service.list(10, None).items
    assert rig.done(batch.name).batch_stats.successful_request_count == 3
    assert {name.split("/")[1] for name in rig.files()} == {batch.name.split("/")[1]}


def test_dimensions_of_a_model_that_only_loading_tells(tmp_path: Path) -> None:
    """They are asked of the engine, for an answer that names the maximum; without a wish nobody asks."""
    silent = ServedModel("silent", EngineSpec("hashing", "silent", options={"dimensions": "8"}))
    rig = Rig(tmp_path / "data", catalog=Catalog([silent]))
    try:
        with pytest.raises(InvalidArgument, match="8"):
            rig.service.submit_inline(Draft(), [RequestRow("a", dimensions=9)])
        batch = rig.service.submit_inline(Draft(), [RequestRow("a", dimensions=8)])
        assert len(rig.read(rig.done(batch.name).name)[0]["embedding"]) == 8
        rig.pool.broken["silent"] = EngineTrouble("it does not start", retry_after=0.01)
        with pytest.raises(EngineTrouble):
            rig.service.submit_inline(Draft(), [RequestRow("a", dimensions=9)])
        waiting = rig.service.submit_inline(Draft(), [RequestRow("a")])
        del rig.pool.broken["silent"]
        assert rig.done(waiting.name).state is State.COMPLETED
    finally:
        rig.stop()


def test_notes_come_with_the_batch(rig: Rig) -> None:
    """At the submit and on every look."""
    batch = rig.service.submit_inline(Draft(), [RequestRow("a", task_type="CLUSTERING")])
    assert len(batch.notes) == 1
    assert "CLUSTERING" in batch.notes[0]
    assert rig.done(batch.name).notes == batch.notes


def test_pages_show_every_batch_once_newest_first(rig: Rig) -> None:
    """Whatever the size of the page, also for batches of the same moment."""
    names = []
    for number in range(7):
        names.append(rig.service.submit_inline(Draft(), rows(1)).name)
        rig.clock.turn(number % 2)
    for size in (1, 2, 3, 7, 50):
        seen: list[str] = []
        token: str | None = None
        while True:
            page = rig.service.list(size, token)
            assert len(page.items) <= size
            seen += [batch.name for batch in page.items]
            token = page.next_page_token
            if token is None:
                break
        assert sorted(seen) == sorted(names)
        times = [rig.service.get(name).create_time for name in seen]
        assert times == sorted(times, key=lambda time: time or rig.clock(), reverse=True)
    with pytest.raises(InvalidArgument):
        rig.service.list(0, None)


def test_name_and_priority_can_be_changed(rig: Rig) -> None:
    """Each alone or both; what is wrong by its form is refused, and an absent batch is not found."""
    name = rig.service.submit_inline(Draft(display_name="a", priority=1), rows(1)).name
    assert rig.service.update(name, display_name="b").display_name == "b"
    changed = rig.service.update(name, priority=-(1 << 63))
    assert (changed.display_name, changed.priority) == ("b", -(1 << 63))
    assert rig.service.update(name).priority == -(1 << 63)
    with pytest.raises(InvalidArgument):
        rig.service.update(name, display_name="x" * 513)
    with pytest.raises(InvalidArgument):
        rig.service.update(name, priority=1 << 63)
    with pytest.raises(NotFound):
        rig.service.update("batches/nothing", priority=1)


@pytest.mark.parametrize(
    "name", ["nothing", "batches/", "batches/a/b", "batches/../a", "batches/A", "batches/nothing", "files/a"]
)
def test_a_batch_that_is_not_there_is_not_found(rig: Rig, name: str) -> None:
    """Whatever is asked of it, and however it is spelled."""
    for ask in (
        rig.service.get,
        rig.service.cancel,
        rig.service.delete,
        rig.service.results,
        rig.service.inline,
    ):
        with pytest.raises(NotFound):
            ask(name)


def test_queries_answer_at_once_and_refuse_faults(rig: Rig) -> None:
    """In the order given; a fault names its place, and so do dimensions above the native number."""
    part = rig.service.interactive.embed(None, [RequestRow("b"), RequestRow("a", dimensions=2)])
    assert part.column("embedding").to_pylist() == [vector("b"), vector("a")]
    for bad in (RequestRow(""), RequestRow(None), RequestRow("\ud800")):
        with pytest.raises(InvalidArgument) as caught:
            rig.service.interactive.embed("models/test", [RequestRow("a"), bad])
        assert caught.value.field == "requests[1].text"
    with pytest.raises(InvalidArgument) as caught:
        rig.service.interactive.embed("models/test", [RequestRow("a"), RequestRow("a", dimensions=9)])
    assert caught.value.field == "requests[1].output_dimensionality"
    with pytest.raises(InvalidArgument):
        rig.service.interactive.embed(None, [])
    with pytest.raises(NotFound):
        rig.service.interactive.embed("nothing", [RequestRow("a")])
    assert rig.pool.calls == []


def test_a_query_that_an_engine_cannot_bear_is_refused_whole(rig: Rig) -> None:
    """The first such request is named, with what the engine said of it."""

    def query(model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        fault = RequestError(Code.INTERNAL, Reason.ENGINE_CRASH, "it dies of this")
        good, bad = embedded(model, requests.slice(0, 1)), failed_results(1, 2, DIMENSIONS, fault)
        parts = [part.replace_schema_metadata(None) for part in (good, bad)]
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    rig.pool.query = query  # type: ignore[method-assign]  # a pool whose engine dies
    with pytest.raises(InvalidArgument) as caught:
        rig.service.interactive.embed(None, rows(3))
    assert (caught.value.field, caught.value.message) == ("requests[1].text", "it dies of this")


def test_which_submits_wait_for_a_model_to_load(tmp_path: Path) -> None:
    """Those whose dimensions only loading tells, and those of a run, whose cache asks for the identity."""
    unknown = ServedModel("unknown", EngineSpec("hashing", "x", options={"dimensions": "8"}), None)
    rig = Rig(tmp_path / "data", catalog=Catalog([MODEL, unknown]))
    waits = rig.service.waits_for_engine
    assert not waits(Draft(), rows(2, dimensions=4))
    assert not waits(Draft("unknown"), rows(2))
    assert waits(Draft("unknown"), [*rows(2), RequestRow("a", dimensions=4)])
    assert waits(Draft(run="run"), rows(1))
    assert not waits(Draft(run="run"), ())  # from a file: that is planned later
    with pytest.raises(NotFound):
        waits(Draft("nothing"), rows(1))
    rig.stop()


def test_a_file_that_is_not_there_makes_no_batch(rig: Rig) -> None:
    """The error says what is missing, and nothing is half created."""
    for name in ("files/nothing", "nothing", "files/../a", "files/batch-abc"):
        with pytest.raises(NoSuchFile):
            rig.service.submit_file(Draft(), name)
    assert rig.service.list(10, None).items == ()
