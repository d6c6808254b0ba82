"""Batches from files: acknowledged at once, planned afterwards, the same shards however often it is tried."""

from __future__ import annotations

import functools
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from service_rig import MODEL, OTHER, Rig, quick, tree, vector

from embatch.engine.models import Catalog
from embatch.errors import AlreadyExists, FailedPrecondition, NoSuchFile, Unavailable
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest_plugins = ("rig_fixture",)

ARROW = "application/vnd.apache.arrow.stream"


def line(text: str, **more: Any) -> bytes:
    """Return one line of an input file."""
    return json.dumps({"request": {"content": {"parts": [{"text": text}]}}, **more}).encode() + b"\n"


def long_file(shards: int) -> bytes:
    """Return a file that makes so many shards, eight requests each, some of them faulty."""
    return b"".join(
        line("" if at % 11 == 5 else f"text {at} ".ljust(66_000, "x"), key=f"k{at}")
        for at in range(8 * shards)
    )


def held_at(rig: Rig, shard: int) -> tuple[threading.Event, threading.Event]:
    """Hold the planner before it writes a shard; return what tells of it, and what lets it go on."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if f"payload-{shard:05}" in path:
            reached.set()
            assert go_on.wait(120)

    rig.blobs.before_write = hold
    return reached, go_on


def arrow_file(**columns: Any) -> bytes:
    """Return an Arrow stream with these columns."""
    buffer, batch = io.BytesIO(), pa.RecordBatch.from_pydict(columns)
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


def test_a_file_batch_from_upload_to_its_results(rig: Rig) -> None:
    """Good lines, bad and blank ones: every request ends once, keys come back, bad ones say their line."""
    content = (
        line("one", key="a", metadata={"n": 1})
        + b"\n\r\n"
        + b"{not json\n"
        + line("two", key="a")
        + line("", key="c")
        + b'"text"\n'
        + line("last", custom_id="e").rstrip()
    )
    name = rig.upload(content)
    batch = rig.service.submit_file(Draft(display_name="file"), name)
    assert (batch.state, batch.input_file, batch.responses_file) == (State.PENDING, name, None)
    done = rig.done(batch.name)
    assert done.state is State.COMPLETED
    assert done.responses_file == f"files/{batch.name.replace('batches/', 'batch-')}"
    assert not rig.service.inline(batch.name)
    found = rig.read(batch.name)
    assert [row["index"] for row in found] == list(range(6))
    assert [row["key"] for row in found] == ["a", None, "a", "c", None, "e"]
    reasons = [None, "BAD_LINE", "DUPLICATE_KEY", "EMPTY_TEXT", "BAD_LINE", None]
    assert [row["error_reason"] for row in found] == reasons
    assert "line 4" in found[1]["error_message"]
    assert "line 7" in found[4]["error_message"]
    assert found[0]["embedding"] == vector("one")
    assert json.loads(found[0]["metadata"]) == {"n": 1}
    assert (done.batch_stats.successful_request_count, done.batch_stats.failed_request_count) == (2, 4)


def test_an_arrow_file_gives_the_same_as_its_lines(rig: Rig) -> None:
    """Texts, keys, metadata and dimensions arrive alike on both ways."""
    texts = [f"text {at}" for at in range(50)]
    lines = b"".join(line(text, key=f"k{at}", metadata={"at": at}) for at, text in enumerate(texts))
    arrow = arrow_file(
        text=texts,
        key=[f"k{at}" for at in range(50)],
        metadata=[json.dumps({"at": at}, separators=(",", ":")) for at in range(50)],
    )
    names = [
        rig.service.submit_file(Draft(), rig.upload(content, kind)).name
        for content, kind in ((lines, "application/jsonl"), (arrow, ARROW))
    ]
    for name in names:
        assert rig.done(name).batch_stats.successful_request_count == 50
    assert rig.read(names[0]) == rig.read(names[1])


@pytest.mark.parametrize(
    ("content", "kind", "word"),
    [
        (b"", "application/jsonl", "no request"),
        (b"\n\n \r\n", "text/plain", "no request"),
        (b"no arrow", ARROW, "Arrow"),
        (b"", ARROW, "Arrow"),
        (arrow_file(words=["a"]), ARROW, "text"),
        (arrow_file(text=[1, 2]), ARROW, "int64"),
        (arrow_file(text=["a"], colour=["red"]), ARROW, "colour"),
        (arrow_file(text=["a", "b"])[:200], ARROW, "Arrow"),
        (line("a") * 11, "application/jsonl", "at most 10"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_fails_its_batch(
    tmp_path: Path, content: bytes, kind: str, word: str
) -> None:
    """With a reason that a user understands, and without a shard."""
    rig = Rig(tmp_path / "data", settings=Settings(file_requests=10))
    try:
        file = rig.upload(content, kind)
        batch = rig.done(rig.service.submit_file(Draft(), file).name)
        assert batch.state is State.FAILED
        assert word in (batch.error or "")
        assert batch.batch_stats.request_count == 0
        assert list(rig.service.results(batch.name).parts) == []
        rig.until(lambda: rig.files() == {rig.service.file(file).path})
    finally:
        rig.stop()


def test_counts_appear_when_planning_has_ended_and_the_file_is_pinned_until_then(rig: Rig) -> None:
    """Nothing is counted or claimed of a half-planned batch, and its file cannot go."""
    reached, go_on = held_at(rig, 2)
    file = rig.upload(long_file(4))
    name = rig.service.submit_file(Draft(), file).name
    assert reached.wait(120)
    batch = rig.service.get(name)
    assert (batch.state, batch.batch_stats.request_count) == (State.PENDING, 0)
    with pytest.raises(FailedPrecondition):
        rig.service.delete_file(file)
    rig.clock.turn(rig.settings.file_expiry + 1)
    rig.service.uploads.sweep()
    assert rig.service.file(file).id in file
    assert rig.pool.calls == []
    go_on.set()
    assert rig.done(name).batch_stats.request_count == 32
    rig.service.delete_file(file)
    with pytest.raises(NoSuchFile):
        rig.service.file(file)


# The thread that dies of it is the point.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_planning_cut_short_is_begun_anew_with_the_same_shards(rig: Rig) -> None:
    """Killed at each of several shards: what was half written goes, and the result is as if undisturbed."""
    content = long_file(6)
    undisturbed = rig.service.submit_file(Draft(), rig.upload(content)).name
    rig.done(undisturbed)
    expected = payloads(rig, undisturbed)
    assert len(expected) == 6
    for cut in (0, 3, 5):
        reached = threading.Event()

        def die(path: str, cut: int = cut, reached: threading.Event = reached) -> None:
            if f"payload-0000{cut}" in path:
                reached.set()
                raise SystemExit  # ends the planner's thread as a kill would, with files left behind

        rig.blobs.before_write = die
        name = rig.service.submit_file(Draft(), rig.upload(content)).name
        assert reached.wait(120)
        rig.until(functools.partial(gone, name))
        left = rig.folder / name / "payload-00009.arrow"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half a shard of an earlier try")
        rig.restart()
        assert rig.done(name).state is State.COMPLETED
        assert payloads(rig, name) == expected
        assert rig.read(name) == rig.read(undisturbed)


# The thread that dies of it is the point.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_shards_are_worked_while_the_file_is_read_and_never_twice(rig: Rig) -> None:
    """What was embedded before planning was cut short counts; counts appear at the end, all at once."""
    content = long_file(20)
    undisturbed = rig.service.submit_file(Draft(), rig.upload(content)).name
    sound = rig.done(undisturbed).batch_stats.successful_request_count
    rig.pool.worked.clear()

    named, died = threading.Event(), threading.Event()

    def die(path: str) -> None:
        assert named.wait(120)
        if "payload-00017" in path:
            rig.until(lambda: len(done(rig, name)) == 16)
            batch = rig.service.get(name)
            assert (batch.state, batch.batch_stats.request_count) == (State.PROCESSING, 0)
            died.set()
            raise SystemExit

    rig.blobs.before_write = die
    name = rig.service.submit_file(Draft(), rig.upload(content)).name
    named.set()
    assert died.wait(30)
    rig.until(functools.partial(gone, name))
    assert set(rig.pool.worked.values()) == {1}
    assert len(rig.pool.worked) == 16 * 8
    rig.restart()
    assert rig.done(name).batch_stats.successful_request_count == sound
    assert len(rig.pool.worked) == sound - 16 * 8
    assert payloads(rig, name) == payloads(rig, undisturbed)
    assert rig.read(name) == rig.read(undisturbed)


def test_what_was_finished_before_a_cancel_stays_though_the_file_was_not_read_to_its_end(rig: Rig) -> None:
    """The rest of the file is not known: neither counted nor kept."""
    reached, go_on = held_at(rig, 18)
    file = rig.upload(long_file(40))
    name = rig.service.submit_file(Draft(), file).name
    assert reached.wait(120)
    rig.until(lambda: len(done(rig, name)) == 16)
    cancelled = rig.service.cancel(name)
    go_on.set()
    rig.until(lambda: sum("payload" in path for path in rig.files()) == 16)
    assert rig.service.get(name) == cancelled
    assert cancelled.batch_stats.successful_request_count == 16 * 8
    assert [row["index"] for row in rig.read(name)] == list(range(cancelled.batch_stats.request_count))


def done(rig: Rig, name: str) -> list[int]:
    """Return the numbers of the shards that are worked."""
    shards = rig.store.shards(name.removeprefix("batches/"))
    return [shard.number for shard in shards if shard.state == "done"]


def gone(name: str) -> bool:
    """Return whether nobody reads a batch's file any more."""
    return not any(thread.name == name.replace("batches/", "planner ") for thread in threading.enumerate())


def payloads(rig: Rig, name: str) -> dict[str, str]:
    """Return the digests of a batch's payload files."""
    return {path: digest for path, digest in tree(rig.folder / name).items() if "payload" in path}


def until_closing(rig: Rig) -> Callable[[str], None]:
    """Return what holds each write of the planner until its service is stopped."""
    closing = rig.service.closing

    def hold(_: str) -> None:
        assert closing.wait(120)

    return hold


def test_the_service_stopped_while_planning_leaves_it_to_the_next(rig: Rig) -> None:
    """A graceful stop does not wait for the file's end."""
    rig.blobs.before_write = until_closing(rig)
    name = rig.service.submit_file(Draft(), rig.upload(long_file(5))).name
    rig.restart()
    assert rig.done(name).batch_stats.request_count == 40


def test_cancelled_while_planned_it_stays_cancelled_without_files(rig: Rig) -> None:
    """Planning notices, at the latest at its end; nothing of the batch is ever worked."""
    reached, go_on = held_at(rig, 2)
    file = rig.upload(long_file(4))
    name = rig.service.submit_file(Draft(), file).name
    assert reached.wait(120)
    cancelled = rig.service.cancel(name)
    go_on.set()
    rig.until(lambda: rig.files() == {rig.service.file(file).path})
    assert rig.service.get(name) == cancelled
    assert (cancelled.state, cancelled.batch_stats.request_count) == (State.CANCELLED, 0)
    assert rig.read(name) == []
    assert rig.pool.calls == []
    rig.service.delete(name)


def test_deleted_while_planned_it_leaves_nothing(rig: Rig) -> None:
    """Neither row nor folder, and the next file is planned."""
    reached, go_on = held_at(rig, 2)
    file = rig.upload(long_file(4))
    name = rig.service.submit_file(Draft(), file).name
    assert reached.wait(120)
    rig.service.cancel(name)
    rig.service.delete(name)
    go_on.set()
    following = rig.service.submit_file(Draft(), file).name
    rig.done(following)
    assert not any(path.startswith(name) for path in rig.files())


def test_an_input_file_that_was_damaged_fails_its_batch(rig: Rig) -> None:
    """A flipped bit makes another text, not a bad line: only the checksum can tell."""
    for kind, content in (
        ("application/jsonl", line("a river") * 50),
        (ARROW, arrow_file(text=["a river"] * 50)),
    ):
        file = rig.upload(content, kind)
        stored = rig.folder / rig.service.file(file).path
        damaged = bytearray(stored.read_bytes())
        damaged[damaged.rindex(b"river")] ^= 1
        stored.write_bytes(damaged)
        batch = rig.done(rig.service.submit_file(Draft(), file).name)
        assert batch.state is State.FAILED
        assert "upload it again" in (batch.error or "")
    assert rig.pool.calls == []


def test_an_input_file_that_is_gone_fails_its_batch(rig: Rig) -> None:
    """As when somebody tidied up the data folder."""
    file = rig.upload(line("a"))
    (rig.folder / rig.service.file(file).path).unlink()
    batch = rig.done(rig.service.submit_file(Draft(), file).name)
    assert batch.state is State.FAILED
    assert "gone" in (batch.error or "")


def test_a_full_disk_delays_planning_and_fails_nothing(tmp_path: Path) -> None:
    """It is tried again, from the beginning, and other files are planned meanwhile."""
    rig = Rig(tmp_path / "data")
    rig.patience = quick
    try:
        tries: list[str] = []

        def refuse(path: str) -> None:
            if "payload-00001" in path and len(tries) < 3:
                tries.append(path)
                raise Unavailable("the disk is full", reason="STORAGE_FULL")

        rig.blobs.before_write = refuse
        full = rig.service.submit_file(Draft(), rig.upload(long_file(3))).name
        small = rig.service.submit_file(Draft(), rig.upload(line("a"))).name
        assert rig.done(small).state is State.COMPLETED
        assert rig.done(full).batch_stats.request_count == 24
        assert len(tries) == 3
    finally:
        rig.stop()


def test_a_file_of_a_model_that_is_not_served_waits_for_it(tmp_path: Path) -> None:
    """Neither failed nor planned; the service that serves it again plans it."""
    rig = Rig(tmp_path / "data")
    rig.patience = quick
    try:
        rig.blobs.before_write = until_closing(rig)
        name = rig.service.submit_file(Draft(model="other"), rig.upload(line("a"))).name
        rig.restart(Catalog([MODEL]))
        here = rig.service.submit_file(Draft(), rig.upload(line("b"))).name
        assert rig.done(here).state is State.COMPLETED
        assert not rig.service.get(name).done
        rig.restart(Catalog([OTHER]))
        assert rig.done(name).state is State.COMPLETED
        assert rig.read(name)[0]["embedding"] == vector("a", OTHER)
    finally:
        rig.stop()


def test_a_bug_while_planning_fails_that_batch_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The planner lives on, and the log says where it happened."""

    def fail(path: str) -> None:
        raise ZeroDivisionError(path)

    rig.blobs.before_write = fail
    batch = rig.done(rig.service.submit_file(Draft(), rig.upload(line("a"))).name)
    assert batch.state is State.FAILED
    assert "bug" in (batch.error or "")
    assert any(record.exc_info and record.name == "embatch.planner" for record in caplog.records)
    rig.blobs.before_write = lambda _: None
    following = rig.done(rig.service.submit_file(Draft(), rig.upload(line("a"))).name)
    assert following.state is State.COMPLETED


def test_rows_of_a_file_are_judged_like_inline_ones(rig: Rig) -> None:
    """An unknown task type, dimensions above native and another model fail their rows; notes appear."""
    content = b"".join(
        [
            b'{"request":{"content":{"parts":[{"text":"a"}]},"taskType":"DANCE"}}\n',
            b'{"request":{"content":{"parts":[{"text":"a"}]},"outputDimensionality":9}}\n',
            b'{"request":{"content":{"parts":[{"text":"a"}]},"model":"models/other"}}\n',
            b'{"request":{"content":{"parts":[{"text":"a"}]},"model":"models/test","outputDimensionality":4}}\n',
            b'{"request":{"content":{"parts":[{"text":"a"}]},"taskType":"CLUSTERING"}}\n',
        ]
    )
    done = rig.done(rig.service.submit_file(Draft(), rig.upload(content)).name)
    reasons = [row["error_reason"] for row in rig.read(done.name)]
    assert reasons == ["BAD_FIELD", "BAD_FIELD", "MODEL_MISMATCH", None, None]
    assert len(done.notes) == 2


def test_a_file_submit_repeated_with_its_key_is_one_batch(rig: Rig) -> None:
    """Planned once, whoever asks again."""
    file = rig.upload(line("a"))
    draft = Draft(idempotency_key="k", body_digest="d")
    names = {rig.service.submit_file(draft, file).name for _ in range(3)}
    (name,) = names
    rig.done(name)
    assert rig.service.submit_file(draft, file).name == name
    rig.service.delete_file(file)
    assert rig.service.submit_file(draft, file).name == name
    with pytest.raises(AlreadyExists):
        rig.service.submit_file(Draft(idempotency_key="k", body_digest="another"), file)
    with pytest.raises(NoSuchFile):
        rig.service.submit_file(Draft(idempotency_key="new", body_digest="d"), file)
    assert len(rig.pool.calls) == 1
