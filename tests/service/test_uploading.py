"""Uploads: what is acknowledged is there, offsets decide, and a file is whole or not at all."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from service_rig import Rig, rows, together

from embatch.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NoSuchFile,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from embatch.service.intake import Draft
from embatch.service.planner import Planner
from embatch.settings import Settings
from embatch.states import State
from embatch.store.faults import storage_full
from embatch.store.records import UploadRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from embatch.batch import FileRecord

pytest_plugins = ("rig_fixture",)


def begin(rig: Rig, **more: Any) -> str:
    """Begin an upload."""
    asked: dict[str, Any] = {"file_id": None, "display_name": None, "mime_type": "text/plain", "size": None}
    return rig.service.uploads.begin(**{**asked, **more})


def whole(rig: Rig, file_id: str, content: bytes) -> FileRecord:
    """Upload a file under a name."""
    token = begin(rig, file_id=file_id, size=len(content), mime_type="application/jsonl")
    rig.service.uploads.append(token, 0, content)
    return rig.service.uploads.finish(token)


def requests(count: int) -> bytes:
    """Return an input file of so many requests."""
    return b'{"request":{"content":{"parts":[{"text":"a"}]}}}\n' * count


def worked(rig: Rig, name: str) -> int:
    """Return how many requests of a batch from a file succeeded."""
    batch = rig.done(rig.service.submit_file(Draft(), name).name)
    assert batch.state is State.COMPLETED, batch.error
    return batch.batch_stats.successful_request_count


def test_an_upload_in_pieces_across_a_restart(rig: Rig) -> None:
    """What was appended counts after the restart; size and digest are those of the whole."""
    token = begin(rig, file_id="my-file", display_name="Mine", size=10)
    assert rig.service.uploads.offset(token) == 0
    assert rig.service.uploads.append(token, 0, b"12345") == 5
    rig.restart()
    assert rig.service.uploads.offset(token) == 5
    assert rig.service.uploads.append(token, 5, b"") == 5
    assert rig.service.uploads.append(token, 5, b"67890") == 10
    made = rig.service.uploads.finish(token)
    assert (made.id, made.display_name, made.size, made.source) == ("my-file", "Mine", 10, "UPLOADED")
    assert made.sha256 == hashlib.sha256(b"1234567890").hexdigest()
    assert rig.service.file("files/my-file") == made
    assert (rig.folder / made.path).read_bytes() == b"1234567890"
    assert (rig.folder / made.path).stat().st_mode & 0o777 == 0o600
    with pytest.raises(NotFound):
        rig.service.uploads.append(token, 10, b"more")
    rig.restart()
    assert rig.service.file("files/my-file") == made


def test_a_chunk_that_does_not_fit_changes_nothing(rig: Rig) -> None:
    """At another place, beyond what was announced, or short at the end."""
    token = begin(rig, size=10)
    rig.service.uploads.append(token, 0, b"12345")
    for offset in (0, 4, 6, 1 << 62):
        with pytest.raises(InvalidArgument):
            rig.service.uploads.append(token, offset, b"x")
    with pytest.raises(TooLarge):
        rig.service.uploads.append(token, 5, b"123456")
    with pytest.raises(InvalidArgument):
        rig.service.uploads.finish(token)
    assert rig.service.uploads.offset(token) == 5


def test_no_file_is_larger_than_a_file_may_be(tmp_path: Path) -> None:
    """Announced or not."""
    rig = Rig(tmp_path / "data", settings=Settings(file_bytes=10))
    try:
        with pytest.raises(TooLarge):
            begin(rig, size=11)
        token = begin(rig)
        rig.service.uploads.append(token, 0, b"1234567890")
        with pytest.raises(TooLarge):
            rig.service.uploads.append(token, 10, b"x")
        assert rig.service.uploads.finish(token).size == 10
    finally:
        rig.stop()


@pytest.mark.parametrize("file_id", ["batch-abc", "", "A", "-a", "a-", "a/b", "..", "a" * 41, "ä"])
def test_names_that_a_file_cannot_have(rig: Rig, file_id: str) -> None:
    """Among them those of results files and of other places."""
    with pytest.raises(InvalidArgument):
        begin(rig, file_id=file_id)
    assert rig.files() == set()


def test_a_name_is_given_once(rig: Rig) -> None:
    """To the first of many at the same time, and not again while the file exists."""
    tokens: list[str] = []
    refused: list[AlreadyExists] = []

    def ask(_: int) -> None:
        try:
            tokens.append(begin(rig, file_id="mine"))
        except AlreadyExists as error:
            refused.append(error)

    together(8, ask)
    assert (len(tokens), len(refused)) == (1, 7)
    assert len(rig.files()) == 1
    rig.service.uploads.finish(tokens[0])
    with pytest.raises(AlreadyExists):
        begin(rig, file_id="mine")
    rig.service.delete_file("files/mine")
    begin(rig, file_id="mine")


def test_a_name_taken_again_while_its_file_is_removed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that go are those of the file that was deleted; those of the new one stay."""
    whole(rig, "mine", requests(1))
    remove = rig.blobs.remove

    def late(path: str) -> None:
        monkeypatch.undo()
        whole(rig, "mine", requests(2))
        remove(path)

    monkeypatch.setattr(rig.blobs, "remove", late)
    rig.service.delete_file("files/mine")
    assert worked(rig, "files/mine") == 2
    assert sum(path.startswith("files/") for path in rig.files()) == 1


def test_a_sweep_spares_a_fresh_file_under_an_old_name(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user was quicker: between the list of what has expired and the deletion the name is taken again."""
    whole(rig, "mine", requests(1))
    rig.clock.turn(rig.settings.file_expiry)
    expired = rig.store.expired_files

    def listed(now: datetime) -> Sequence[FileRecord]:
        found = expired(now)
        rig.service.delete_file("files/mine")
        whole(rig, "mine", requests(2))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rig.store, "expired_files", listed)
        rig.service.sweep()
    assert worked(rig, "files/mine") == 2


def test_a_file_of_an_older_data_folder_is_read_and_deleted_where_it_stands(rig: Rig) -> None:
    """There its bytes stand under its name; a start leaves them, and the name can be taken again."""
    made = rig.service.file(rig.upload(requests(3)))
    (rig.folder / "files/mine").write_bytes(requests(3))
    rig.store.begin_upload(UploadRecord("t", "mine", None, made.mime_type, None, rig.clock()))
    rig.store.finish_upload("t", replace(made, id="mine", path="files/mine"))
    rig.restart()
    assert worked(rig, "files/mine") == 3
    rig.service.delete_file("files/mine")
    assert not (rig.folder / "files/mine").exists()
    whole(rig, "mine", requests(2))
    assert worked(rig, "files/mine") == 2


def test_an_upload_is_finished_once_however_often_that_is_asked(rig: Rig) -> None:
    """Whoever did not hear the answer asks again and gets the same file, after a restart too."""
    token = begin(rig, file_id="mine")
    rig.service.uploads.append(token, 0, b"12345")
    made: list[FileRecord] = []
    together(4, lambda _: made.append(rig.service.uploads.finish(token)))
    rig.restart()
    assert {rig.service.uploads.finish(token), *made} == {rig.service.file("files/mine")}
    rig.service.uploads.drop(token)
    assert (rig.folder / made[0].path).read_bytes() == b"12345"
    rig.service.delete_file("files/mine")
    whole(rig, "mine", b"another")
    with pytest.raises(NotFound):
        rig.service.uploads.finish(token)


def test_a_finish_that_fails_changes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload is as it was: it can be finished later, or dropped without a trace."""

    def full(*_: object) -> None:
        raise storage_full()

    tokens = [begin(rig), begin(rig)]
    for token in tokens:
        rig.service.uploads.append(token, 0, b"12345")
        with monkeypatch.context() as patched:
            patched.setattr(rig.store, "finish_upload", full)
            with pytest.raises(Unavailable):
                rig.service.uploads.finish(token)
    assert rig.service.uploads.append(tokens[0], 5, b"67890") == 10
    made = rig.service.uploads.finish(tokens[0])
    assert made.sha256 == hashlib.sha256(b"1234567890").hexdigest()
    rig.service.uploads.drop(tokens[1])
    assert rig.files() == {made.path}


def test_a_chunk_whose_acknowledgement_was_lost_is_not_appended_again(rig: Rig) -> None:
    """As a whole, with more behind it, and when the file is finished; other bytes are refused as ever."""
    token = begin(rig, file_id="mine")
    for _ in range(2):
        assert rig.service.uploads.append(token, 0, b"12345") == 5
    assert rig.service.uploads.append(token, 1, b"234567") == 7
    with pytest.raises(InvalidArgument):
        rig.service.uploads.append(token, 1, b"2x45678")
    rig.service.uploads.finish(token)
    assert rig.service.uploads.append(token, 3, b"4567") == 7
    for offset, chunk in ((3, b"45678"), (3, b"x"), (8, b"")):
        with pytest.raises(NotFound):
            rig.service.uploads.append(token, offset, chunk)
    assert (rig.folder / rig.service.file("files/mine").path).read_bytes() == b"1234567"


def test_an_upload_that_is_dropped_is_gone(rig: Rig) -> None:
    """Also when asked twice, or of none at all."""
    token = begin(rig)
    rig.service.uploads.append(token, 0, b"x")
    for _ in range(2):
        rig.service.uploads.drop(token)
    rig.service.uploads.drop("../../etc/passwd")
    assert rig.files() == set()
    for ask in (rig.service.uploads.offset, rig.service.uploads.finish):
        for name in (token, "nothing", "../../etc/passwd", "", "a" * 65):
            with pytest.raises(NotFound):
                ask(name)


def test_a_chunk_that_the_disk_takes_in_part_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is said to be full, and the chunk can be sent again at its offset."""
    token = begin(rig)
    rig.service.uploads.append(token, 0, b"12345")
    writes: list[int] = []

    class Full(io.FileIO):
        """Takes three bytes, then has no room."""

        def write(self, content: Any, /) -> int:
            if writes:
                raise OSError(errno.ENOSPC, "No space left on device")
            writes.append(1)
            return super().write(bytes(content)[:3])

    def opened(self: Path, mode: str = "r", **_: Any) -> io.FileIO:
        return Full(str(self), mode.replace("b", ""))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", opened)
        with pytest.raises(Unavailable) as caught:
            rig.service.uploads.append(token, 5, b"67890")
    assert caught.value.reason == "STORAGE_FULL"
    assert rig.service.uploads.offset(token) == 5
    rig.service.uploads.append(token, 5, b"67890")
    assert rig.service.uploads.finish(token).sha256 == hashlib.sha256(b"1234567890").hexdigest()


def test_chunks_at_the_same_time_do_not_mix(rig: Rig) -> None:
    """One of them is at the right place; the others are refused."""
    token = begin(rig)
    refused: list[InvalidArgument] = []

    def send(number: int) -> None:
        try:
            rig.service.uploads.append(token, 0, bytes([number]) * 1000)
        except InvalidArgument as error:
            refused.append(error)

    together(8, send)
    assert len(refused) == 7
    rig.service.uploads.finish(token)
    (path,) = (record.path for record in rig.service.files(10, None).items)
    assert len(set((rig.folder / path).read_bytes())) == 1


def test_pages_of_files(rig: Rig) -> None:
    """Newest first, each once; results files are not among them."""
    names = []
    for number in range(5):
        names.append(rig.upload(b"x" * number))
        rig.clock.turn(1)
    seen: list[str] = []
    token: str | None = None
    while True:
        page = rig.service.files(2, token)
        seen += [f"files/{record.id}" for record in page.items]
        token = page.next_page_token
        if token is None:
            break
    assert seen == names[::-1]


def test_results_of_a_file_batch_are_a_file(rig: Rig) -> None:
    """It appears with the end of the batch and goes with it; an uploaded file is not given out."""
    file = rig.upload(b'{"key":"k","request":{"content":{"parts":[{"text":"a"}]}}}\n')
    rig.pool.gated = True
    name = rig.service.submit_file(Draft(display_name="d"), file).name
    results = name.replace("batches/", "files/batch-")
    with pytest.raises(NoSuchFile):
        rig.service.file(results)
    rig.pool.open()
    rig.done(name)
    record = rig.service.file(results)
    assert (record.source, record.display_name) == ("GENERATED", "d")
    parts = list(rig.service.results_of_file(results).parts)
    assert [part.column("key").to_pylist() for part in parts] == [["k"]]
    with pytest.raises(PermissionDenied):
        rig.service.results_of_file(file)
    for other in ("files/nothing", "files/batch-nothing", "nothing"):
        with pytest.raises(NoSuchFile):
            rig.service.results_of_file(other)
    with pytest.raises(NoSuchFile):
        rig.service.delete_file(results)
    inline = rig.done(rig.service.submit_inline(Draft(), rows(1)).name).name
    with pytest.raises(NoSuchFile):
        rig.service.file(inline.replace("batches/", "files/batch-"))
    rig.service.delete(name)
    with pytest.raises(NoSuchFile):
        rig.service.results_of_file(results)


def test_files_that_no_row_speaks_of_go_at_the_start(rig: Rig) -> None:
    """The others stay, though there be more than a page of them."""
    kept = {rig.service.file(rig.upload(b"x")).path for _ in range(3)}
    token = begin(rig)
    (rig.folder / "files/orphan").write_bytes(b"x")
    (rig.folder / "uploads/orphan").write_bytes(b"x")
    rig.restart()
    assert rig.files() == {*kept, f"uploads/{token}"}


def test_what_is_not_ours_stops_no_start_and_stays(rig: Rig) -> None:
    """What a volume, a file server or a person left in the data folder's folders."""
    name = rig.done(rig.service.submit_inline(Draft(), rows(1)).name).name
    there = [
        rig.folder / place
        for place in (
            "files/.snapshot",
            "uploads/lost+found",
            "files/folder",
            "batches/lost+found",
            "batches/a b",
        )
    ]
    for place in there:
        place.mkdir()
    notes = [rig.folder / place for place in ("files/.DS_Store", "uploads/read me.txt", "batches/.DS_Store")]
    for note in notes:
        note.write_bytes(b"x")
    (rig.folder / "batches" / "orphan").mkdir()
    rig.restart()
    assert all(place.exists() for place in (*there, *notes))
    assert not (rig.folder / "batches" / "orphan").exists()
    assert rig.service.get(name).done


def test_a_file_a_batch_is_planned_from_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its requests are counted."""
    file = rig.upload(b"x")
    monkeypatch.setattr(Planner, "wake", lambda _: None)
    name = rig.service.submit_file(Draft(), file).name
    with pytest.raises(FailedPrecondition):
        rig.service.delete_file(file)
    rig.service.cancel(name)
    rig.service.delete_file(file)


def test_a_page_token_of_another_kind_is_refused(rig: Rig) -> None:
    """Whatever somebody made up."""
    forged = [
        "x",
        "",
        "é",
        "\ud800",
        *(
            base64.urlsafe_b64encode(content).decode()
            for content in (
                b"[]",
                b"[1]",
                b'["a",1]',
                b'[18446744073709551615,"a"]',
                b'[1,"a\\u0000"]',
                b"{}",
                b"[1,2,3]",
            )
        ),
    ]
    for token in forged:
        for ask in (rig.service.list, rig.service.files):
            with pytest.raises(InvalidArgument) as caught:
                ask(10, token)
            assert caught.value.field == "page_token"
