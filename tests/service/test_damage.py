"""What is damaged on disk is noticed and never served."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from service_rig import QUICK, Rig, large, rows, vector

from embatch.errors import DataLoss
from embatch.service import Draft
from embatch.shard import RequestRow
from embatch.states import State

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)

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
    """Too many open files, say: the shard is tried again before anything is given up."""
    monkeypatch.setattr("embatch.dispatcher._AGAIN", QUICK)
    read = rig.blobs.read
    failed: list[str] = []

    def refuse(relative: str, digest: str) -> object:
        if len(failed) < 2:
            failed.append(relative)
            raise DataLoss("it cannot be read") from OSError(24, "Too many open files")
        return read(relative, digest)

    monkeypatch.setattr(rig.blobs, "read", refuse)
    done = rig.done(rig.service.submit_inline(Draft(), rows(3)).name)
    assert (len(failed), done.batch_stats.successful_request_count) == (2, 3)


def test_a_payload_that_is_gone_fails_its_requests(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the attempts that a file which cannot be opened is given."""
    monkeypatch.setattr("embatch.dispatcher._AGAIN", QUICK)
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
