"""What is damaged on disk is noticed and never served."""

from __future__ import annotations

import errno
import io
import random
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pytest
from service_rig import Rig, large, quick, rows, vector
from service_world import unreadable

from embatch.errors import DataLoss, NotFound, Unavailable
from embatch.service.input_file import CheckedFile
from embatch.service.intake import Draft
from embatch.shard import RequestRow
from embatch.states import State

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)


def arrow_file(texts: list[str]) -> bytes:
    """Return an Arrow stream of texts."""
    buffer, batch = io.BytesIO(), pa.RecordBatch.from_pydict({"text": texts})
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return buffer.getvalue()


CONTENT = {
    "application/jsonl": b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n' * 24,
    "application/vnd.apache.arrow.stream": arrow_file(["a"] * 24),
}
SEED = 15
FLIPS = 200


def flip(path: Path, chance: random.Random) -> bytes:
    """Flip one bit of a file; return what was there."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)
    return content


def test_two_hundred_flipped_bits_are_noticed(rig: Rig) -> None:
    """One at a time, anywhere in payload and result shards: each read refuses, and none is silent."""
    chance = random.Random(SEED)
    given = [*rows(300), RequestRow("")]
    name = rig.done(rig.service.submit_inline(Draft(), given).name).name
    good = rig.read(name)
    shards = sorted((rig.folder / name).glob("*.arrow"))
    assert len(shards) == 2
    for number in range(FLIPS):
        path = shards[number % 2]
        content = flip(path, chance)
        with pytest.raises(DataLoss):
            rig.read(name)
        path.write_bytes(content)
    assert rig.read(name) == good


@pytest.mark.parametrize("kind", ["payload", "result"])
def test_missing_cut_and_swapped_shards_are_noticed(rig: Rig, kind: str) -> None:
    """A file that is gone, shorter, or that of another shard."""
    name = rig.done(rig.service.submit_inline(Draft(), large(2)).name).name
    one, two = sorted((rig.folder / name).glob(f"{kind}*.arrow"))
    content = one.read_bytes()
    for damage in (b"", content[:-1], content[: len(content) // 2], two.read_bytes()):
        one.write_bytes(damage)
        with pytest.raises(DataLoss):
            rig.read(name)
    one.unlink()
    with pytest.raises(DataLoss):
        rig.read(name)
    one.write_bytes(content)
    assert len(rig.read(name)) == 16


def test_requests_whose_texts_are_damaged_before_their_turn_fail(rig: Rig) -> None:
    """No engine sees them; the other shards are worked, and the whole batch is readable."""
    chance = random.Random(SEED)
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(4)).name
    rig.until(lambda: rig.pool.running == 2)
    flip(rig.folder / name / "payload-00002.arrow", chance)
    rig.pool.open()
    done = rig.done(name)
    assert done.state is State.COMPLETED
    assert (done.batch_stats.successful_request_count, done.batch_stats.failed_request_count) == (24, 8)
    found = rig.read(name)
    assert [row["index"] for row in found] == list(range(32))
    lost, kept = found[16:24], found[:16] + found[24:]
    assert {(row["error_code"], row["error_reason"], row["embedding"]) for row in lost} == {
        (15, "DATA_LOSS", None)
    }
    assert all(row["error_code"] is None for row in kept)
    assert not any(text.startswith("large 2.") for text in rig.pool.worked)
    texts = [str(row.text) for row in large(4)]
    assert all(row["embedding"] == vector(texts[row["index"]]) for row in kept)


def test_a_payload_that_cannot_be_opened_just_now_is_not_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, say: however often it is tried, nothing is given up, and no claim counts."""
    rig.patience = quick
    refused = unreadable(monkeypatch, "payload", 20)
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).batch_stats.successful_request_count == 3
    assert len(refused) == 20
    assert [suspect for _, _, suspect in rig.pool.calls] == [False]
    (shard,) = rig.store.shards(name.removeprefix("batches/"))
    assert shard.attempt == 21
    rig.until(lambda: rig.service.health().reasons == ())


def test_a_disk_that_cannot_be_read_is_asked_ever_more_seldom_and_told_of_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Health says what waits, and goes on saying that the service is ready."""
    waited: list[int] = []

    def patience(failures: int) -> float:
        waited.append(failures)
        return 0.001

    rig.patience = patience
    refused = unreadable(monkeypatch, "payload", 10**6)
    name = rig.service.submit_inline(Draft(), rows(3)).name
    rig.until(lambda: len(refused) >= 12)
    health = rig.service.health()
    assert health.ready
    assert health.reasons == ("the data folder cannot be read just now: Too many open files",)
    assert max(waited) > 6
    assert [record.getMessage() for record in caplog.records] == ["work pauses"]
    rig.service.cancel(name)
    rig.until(lambda: not rig.dispatcher.at_work())
    assert rig.service.health().reasons == ()


def test_one_file_that_cannot_be_read_delays_no_other_batch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even at the highest priority its batch waits while others are worked."""
    unreadable(monkeypatch, "payload-00002", 10**6)
    bad = rig.service.submit_inline(Draft(priority=100), large(4)).name
    rig.until(lambda: rig.service.health().reasons)
    assert rig.done(rig.service.submit_inline(Draft(), rows(3)).name).state is State.COMPLETED
    assert not rig.service.get(bad).done


def test_results_that_cannot_be_opened_just_now_are_not_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a vector nor the text of a request that was not reached."""
    done = rig.done(rig.service.submit_inline(Draft(), rows(3)).name).name
    rig.pool.gated = True
    stopped = rig.service.submit_inline(Draft(), rows(3)).name
    rig.service.cancel(stopped)
    for name, kind in ((done, "result"), (done, "payload"), (stopped, "payload")):
        with monkeypatch.context() as broken:
            unreadable(broken, kind, 1)
            with pytest.raises(Unavailable, match="just now"):
                rig.read(name)
        assert len(rig.read(name)) == 3


@pytest.mark.parametrize("read_before", [0, 1])
def test_a_batch_that_is_deleted_while_it_is_read_is_not_lost_data(rig: Rig, read_before: int) -> None:
    """Its files went with it: it is not found, at the first part or in the middle."""
    name = rig.done(rig.service.submit_inline(Draft(), large(3)).name).name
    parts = rig.service.results(name).parts
    assert sum(next(parts).num_rows for _ in range(read_before)) == 8 * read_before
    rig.service.delete(name)
    with pytest.raises(NotFound, match="deleted"):
        next(parts)


class Flaky:
    """A file on a disk whose first reads fail."""

    def __init__(self, file: BinaryIO, failed: list[int]) -> None:
        self._file, self._failed = file, failed

    def read(self, size: int) -> bytes:
        """Read, in the end."""
        if len(self._failed) < 5:
            self._failed.append(size)
            raise OSError(errno.EIO, "Input/output error")
        return self._file.read(size)


@pytest.mark.parametrize("kind", CONTENT)
def test_an_input_file_that_cannot_be_read_just_now_is_not_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Without free descriptors, or with a disk that fails: told of once, and planned when it can be."""
    rig.patience = quick
    file = rig.upload(CONTENT[kind], kind)
    failed: list[int] = []

    def flaky(stored: BinaryIO, *more: Any) -> CheckedFile:
        return CheckedFile(Flaky(stored, failed), *more)  # type: ignore[arg-type]  # it reads

    monkeypatch.setattr("embatch.service.planner.CheckedFile", flaky)
    refused = unreadable(monkeypatch, rig.service.file(file).path, 5)
    done = rig.done(rig.service.submit_file(Draft(), file).name)
    assert (done.state, done.batch_stats.request_count) == (State.COMPLETED, 24)
    assert (len(refused), len(failed)) == (5, 5)
    assert [record.name for record in caplog.records] == ["embatch.planner"]


def test_a_payload_that_is_gone_fails_its_requests(rig: Rig) -> None:
    """At once: a file that is not there does not come back."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(3)).name
    rig.until(lambda: rig.pool.running == 2)
    (rig.folder / name / "payload-00002.arrow").unlink()
    rig.pool.open()
    assert rig.done(name).batch_stats.failed_request_count == 8
    assert [row["error_reason"] for row in rig.read(name)] == [None] * 16 + ["DATA_LOSS"] * 8


def test_texts_damaged_in_a_cancelled_batch_are_errors_too(rig: Rig) -> None:
    """Their keys are not known any more; their places are."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(2)).name
    rig.service.cancel(name)
    flip(rig.folder / name / "payload-00001.arrow", random.Random(SEED))
    found = rig.read(name)
    assert [row["error_reason"] for row in found] == ["CANCELLED"] * 8 + ["DATA_LOSS"] * 8
    assert [row["key"] for row in found[8:]] == [None] * 8
