"""What any blobs must do, of a folder or of a bucket: whole shards, files to stream, and strays told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from embatch.errors import DataLoss, NotFound, Unavailable
from embatch.store.blobs import Blobs, FolderBlobs
from embatch.store.spool import Spool, finished_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATH = "batches/abc/payload-00000.arrow"
BATCH = pa.RecordBatch.from_pydict({"text": ["ü", None], "index": [0, 1]})


@pytest.fixture(params=["folder"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """Empty blobs, of each kind in turn."""
    assert request.param == "folder"
    made = FolderBlobs(tmp_path / "data")
    made.ensure_layout()
    return made


@pytest.fixture
def upload(blobs: Blobs) -> Callable[[str, bytes], str]:
    """Return what puts a file there, as an upload does, and returns its path."""

    def put(token: str, content: bytes) -> str:
        assert isinstance(blobs, FolderBlobs)
        spool = Spool(blobs)
        spool.begin(token)
        spool.append(token, 0, content)
        spool.digest(token)
        spool.publish(token)
        spool.drop(token)
        return finished_path(token)

    return put


def test_a_shard_comes_back_as_it_was_written(blobs: Blobs) -> None:
    """A repeated write replaces it whole: the older digest fits no more."""
    old = blobs.write(PATH, BATCH)
    assert blobs.read(PATH, old).equals(BATCH)
    new = blobs.write(PATH, BATCH.slice(0, 1))
    assert blobs.read(PATH, new).num_rows == 1
    with pytest.raises(DataLoss):
        blobs.read(PATH, old)
    assert blobs.write("batches/other/payload-00000.arrow", BATCH) == old


def test_what_is_not_there_is_told_and_removed_without_a_word(blobs: Blobs) -> None:
    """A shard that is gone is lost; a file that is gone is not found; removing either again is no error."""
    digest = blobs.write(PATH, BATCH)
    for _ in range(2):
        blobs.remove(PATH)
        blobs.remove("files/token")
        blobs.remove_batch("abc")
    with pytest.raises(DataLoss):
        blobs.read(PATH, digest)
    with pytest.raises(NotFound):
        blobs.open("files/token")


def test_a_file_is_streamed(blobs: Blobs, upload: Callable[[str, bytes], str]) -> None:
    """From its beginning, piece by piece."""
    with blobs.open(upload("token", b"0123456789")) as file:
        assert (file.read(4), file.read(100), file.read(1)) == (b"0123", b"456789", b"")


def test_a_batch_goes_whole_and_leaves_others(blobs: Blobs) -> None:
    """All its shards, and no one else's."""
    digest = blobs.write(PATH, BATCH)
    blobs.write("batches/abc/result-00000-1.arrow", BATCH)
    blobs.write("batches/abcd/payload-00000.arrow", BATCH)
    blobs.remove_batch("abc")
    with pytest.raises(DataLoss):
        blobs.read(PATH, digest)
    assert blobs.read("batches/abcd/payload-00000.arrow", digest).equals(BATCH)


def test_strays_are_all_that_rows_could_speak_of(blobs: Blobs, upload: Callable[[str, bytes], str]) -> None:
    """Batches and files, each once; what is younger than asked for is left out."""
    assert list(blobs.strays(0.0)) == []
    blobs.write(PATH, BATCH)
    blobs.write("batches/abc/payload-00001.arrow", BATCH)
    upload("token", b"x")
    assert sorted(blobs.strays(0.0)) == ["batches/abc", "files/token"]
    assert list(blobs.strays(3600.0)) == []


def test_without_room_nothing_is_to_be_begun(blobs: Blobs) -> None:
    """More than any disk has is refused; nothing at all is always there."""
    blobs.check_room(0)
    if isinstance(blobs, FolderBlobs):
        with pytest.raises(Unavailable) as low:
            blobs.check_room(1 << 62)
        assert low.value.reason == "STORAGE_LOW"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "batches/../../x", ""])
def test_a_path_that_leads_elsewhere_is_damage(blobs: Blobs, path: str) -> None:
    """Such a path can only come from a damaged database."""
    for ask in (lambda: blobs.read(path, ""), lambda: blobs.write(path, BATCH), lambda: blobs.open(path)):
        with pytest.raises(DataLoss):
            ask()
