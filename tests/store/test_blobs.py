"""FolderBlobs: durable in the right order, whole or not there at all, and never served damaged."""

from __future__ import annotations

import errno
import random
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from embatch import durable
from embatch.errors import DataLoss, Unavailable
from embatch.service.cutting import ShardCutter
from embatch.shard import REQUESTS, RequestRow, results_schema
from embatch.store import blobs as blobs_module
from embatch.store.blobs import FolderBlobs

PATH = "batches/abc/payload-00000.arrow"


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    """The blobs of an empty data folder."""
    made = FolderBlobs(tmp_path / "data")
    made.ensure_layout()
    return made


def names(folder: Path) -> list[str]:
    """Return what stands in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def shard(count: int = 50) -> pa.RecordBatch:
    """Return a payload shard."""
    cutter = ShardCutter()
    for number in range(count):
        assert cutter.add(RequestRow(f"text {number} ü\0", key=f"k{number}", metadata="{}")) is None
    made = cutter.rest()
    assert made is not None
    return made


def test_what_was_written_is_read(blobs: FolderBlobs) -> None:
    """Payloads and results come back with their schema, values, nulls and order."""
    first = shard()
    assert first.schema.equals(REQUESTS)
    assert blobs.read(PATH, blobs.write(PATH, first)).equals(first)
    vectors = pa.RecordBatch.from_pylist(
        [
            {"index": 0, "embedding": [1.0, -0.5], "tokens": 3, "truncated": False},
            {"index": 1, "tokens": 0, "truncated": False, "error_code": 3, "error_message": "no"},
        ],
        schema=results_schema(2),
    )
    path = "batches/abc/result-00000-1.arrow"
    assert blobs.read(path, blobs.write(path, vectors)).equals(vectors)


def test_equal_shards_have_equal_digests(blobs: FolderBlobs) -> None:
    """The bytes depend on the rows alone, so a repeated attempt gives the same digest."""
    assert blobs.write(PATH, shard()) == blobs.write("batches/other/payload-00000.arrow", shard())


def test_a_repeated_write_replaces_the_file_whole(blobs: FolderBlobs) -> None:
    """The name stands for the last shard written, and no temporary file is left."""
    old = blobs.write(PATH, shard(1))
    new = blobs.write(PATH, shard(2))
    assert blobs.read(PATH, new).num_rows == 2
    with pytest.raises(DataLoss, match="checksum"):
        blobs.read(PATH, old)
    assert names(blobs.path(PATH).parent) == ["payload-00000.arrow"]


def test_every_flipped_bit_is_noticed(blobs: FolderBlobs) -> None:
    """Of 200 single flipped bits anywhere in the file, none is served."""
    digest = blobs.write(PATH, shard())
    place = blobs.path(PATH)
    good = place.read_bytes()
    chance = random.Random(15)
    noticed = 0
    for _ in range(200):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        place.write_bytes(damaged)
        with pytest.raises(DataLoss):
            blobs.read(PATH, digest)
        noticed += 1
    place.write_bytes(good)
    assert blobs.read(PATH, digest).num_rows == 50
    assert noticed == 200


def test_missing_short_long_and_swapped_files_are_noticed(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else can happen to a file is damage too."""
    digest = blobs.write(PATH, shard())
    place = blobs.path(PATH)
    good = place.read_bytes()
    for content in (b"", good[:-1], good[: len(good) // 2], good + b"\0"):
        place.write_bytes(content)
        with pytest.raises(DataLoss, match="checksum"):
            blobs.read(PATH, digest)
    blobs.write(PATH, shard(49))
    with pytest.raises(DataLoss, match="checksum"):
        blobs.read(PATH, digest)
    monkeypatch.setattr(blobs_module, "LARGEST", 10)
    with pytest.raises(DataLoss, match="larger than any shard"):
        blobs.read(PATH, digest)
    blobs.remove(PATH)
    blobs.remove(PATH)
    with pytest.raises(DataLoss, match="cannot be read"):
        blobs.read(PATH, digest)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "batches/../../x", ""])
def test_a_path_out_of_the_folder_is_damage(blobs: FolderBlobs, path: str) -> None:
    """A damaged path in the database reads and writes nothing elsewhere."""
    with pytest.raises(DataLoss):
        blobs.read(path, "")
    with pytest.raises(DataLoss):
        blobs.write(path, shard(1))


def test_only_the_owner_can_enter(blobs: FolderBlobs) -> None:
    """Folders are 0700, files 0600, whatever the umask would allow."""
    blobs.write(PATH, shard(1))
    place = blobs.path(PATH)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    for folder in (
        place.parent,
        place.parent.parent,
        blobs.root,
        blobs.root / "files",
        blobs.root / "uploads",
    ):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_batches_come_and_go(blobs: FolderBlobs) -> None:
    """Folders are listed by batch; removing one is safe to repeat, and its name can be used again."""
    assert list(blobs.strays(0.0)) == []
    blobs.write(PATH, shard(1))
    assert list(blobs.strays(0.0)) == ["batches/abc"]
    blobs.remove_batch("abc")
    blobs.remove_batch("abc")
    assert list(blobs.strays(0.0)) == []
    assert blobs.read(PATH, blobs.write(PATH, shard(1))).num_rows == 1


class Journal:
    """What a shard's way to the disk did, in order; it can be cut short after so many steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.last = 10**6
        real_sync, real_replace, real_mkdir = durable.sync, Path.replace, Path.mkdir

        def sync(descriptor: int) -> None:
            self._step(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            real_sync(descriptor)

        def replace(source: Path, target: Path) -> Path:
            self._step(f"rename {Path(source).name} to {Path(target).name}")
            return real_replace(source, target)

        def mkdir(folder: Path, *args: int, **options: int) -> None:
            if not folder.exists():
                self._step(f"make {folder.name}")
            real_mkdir(folder, *args, **options)  # type: ignore[arg-type]  # passed through as it came

        monkeypatch.setattr(blobs_module, "sync", sync)
        monkeypatch.setattr(durable, "sync", sync)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "mkdir", mkdir)

    def _step(self, what: str) -> None:
        if len(self.steps) >= self.last:
            raise OSError(errno.EIO, "the power went out")
        head, _, rest = what.partition(" .")
        self.steps.append(f"{head} temporary {rest.partition(' ')[2]}".strip() if rest else head)


FIRST_WRITE = [
    "make abc",
    "sync batches",
    "sync temporary",
    "rename temporary to payload-00000.arrow",
    "sync abc",
]


def test_everything_is_synced_in_the_order_a_power_cut_demands(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name of the new folder, bytes, then the rename and its folder; the next shard needs no new folder."""
    journal = Journal(monkeypatch)
    blobs.write(PATH, shard(1))
    assert journal.steps == FIRST_WRITE
    journal.steps.clear()
    blobs.write("batches/abc/payload-00001.arrow", shard(1))
    assert journal.steps == ["sync temporary", "rename temporary to payload-00001.arrow", "sync abc"]


def test_a_folder_that_an_earlier_process_made_is_synced_all_the_same(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is there may not be there after a power cut: its maker may have died before its fsync."""
    blobs.path(PATH).parent.mkdir()
    later = FolderBlobs(blobs.root)
    journal = Journal(monkeypatch)
    later.write(PATH, shard(1))
    assert journal.steps == ["sync data", "sync batches", *FIRST_WRITE[2:]]


def test_a_write_cut_short_anywhere_leaves_no_half_file(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it came, the name is absent or stands for the whole shard, and repeating succeeds."""
    whole = shard()
    digest = blobs.write("batches/whole/payload-00000.arrow", whole)
    journal = Journal(monkeypatch)
    for last in range(len(FIRST_WRITE)):
        journal.steps.clear()
        journal.last = last
        blobs.remove_batch("abc")
        with pytest.raises(Unavailable) as failed:
            blobs.write(PATH, whole)
        assert failed.value.reason == "STORAGE_ERROR"
        assert journal.steps == FIRST_WRITE[:last]
        folder = blobs.path(PATH).parent
        left = names(folder) if folder.exists() else []
        assert left == (["payload-00000.arrow"] if last > FIRST_WRITE.index("sync temporary") + 1 else [])
        if left:
            assert blobs.read(PATH, digest).equals(whole)
    journal.last = 10**6
    assert blobs.write(PATH, whole) == digest


def test_a_full_disk_is_told_apart(blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is something a user can mend, so it has a reason of its own; nothing is left behind."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(blobs_module, "sync", full)
    with pytest.raises(Unavailable) as failed:
        blobs.write(PATH, shard(1))
    assert (failed.value.reason, failed.value.retryable) == ("STORAGE_FULL", True)
    assert names(blobs.path(PATH).parent) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_full_sync_that_fails_is_an_error(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On macOS: what the drive could not keep is not said to be durable."""
    _full_sync(monkeypatch, number)
    with pytest.raises(Unavailable):
        blobs.write(PATH, shard(1))


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_a_file_system_without_a_full_sync_is_synced_as_it_can(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On macOS, on a network drive for instance: fsync it is then."""
    synced = _full_sync(monkeypatch, number)
    blobs.write(PATH, shard(1))
    assert synced


def _full_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the system have a full sync that fails so; return what fsync is called with."""
    synced: list[int] = []

    def refuse(*_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(durable, "FULL_SYNC", 51)
    monkeypatch.setattr("embatch.durable.fcntl.fcntl", refuse)
    monkeypatch.setattr("embatch.durable.os.fsync", synced.append)
    return synced


def test_many_threads_can_begin_one_batch(blobs: FolderBlobs) -> None:
    """Shards of one new batch written at once all stand in its folder, each its own."""
    start = threading.Barrier(8)

    def write(number: int) -> tuple[str, str]:
        start.wait(timeout=120)
        path = f"batches/abc/payload-{number:05}.arrow"
        return path, blobs.write(path, shard(number + 1))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(8)))
    assert [blobs.read(path, digest).num_rows for path, digest in written] == [1, 2, 3, 4, 5, 6, 7, 8]
