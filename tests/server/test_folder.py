"""The data folder: its lock, its socket, its note."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from serving import short_folder

from embatch.errors import InvalidArgument, Unavailable
from embatch.server.folder import About, FolderTaken, Listener, bind_tcp, bind_unix, locked, noted, own_socket
from embatch.settings import digest, installation
from embatch.wire import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {"EMBATCH_MICRO_BATCH_TOKENS": "4096"}
ABOUT = About("name", private=True, vectors=SETTINGS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that a socket can be in."""
    with short_folder() as place:
        yield place


def test_a_folder_has_one_holder_and_the_refusal_names_it(tmp_path: Path) -> None:
    """The second one learns the process id and the address; afterwards the folder is free."""
    place = tmp_path / "data"
    listener = bind_tcp("127.0.0.1", 0)
    with locked(place), noted(place, listener, ABOUT):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        with pytest.raises(FolderTaken) as taken, locked(place):
            pass
        assert str(os.getpid()) in str(taken.value)
        assert str(listener.url) in str(taken.value)
    listener.stream.close()
    with locked(place):
        assert not (place / "service.json").exists()


def test_what_a_dead_service_noted_is_gone_once_the_folder_is_held(tmp_path: Path) -> None:
    """Clients must not look for the next service where the last one was."""
    (tmp_path / "service.json").write_text('{"pid": 1, "url": "http://127.0.0.1:1"}')
    with locked(tmp_path):
        assert not (tmp_path / "service.json").exists()


def test_a_client_that_looks_at_the_lock_keeps_no_service_from_it(tmp_path: Path) -> None:
    """It holds the lock for an instant, and just then a service starts."""
    (tmp_path / "lock").touch()
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        fcntl.flock(looking, fcntl.LOCK_UN)

    with locked(tmp_path, wait=wait):
        assert len(waits) == 1
    os.close(looking)


def test_child_processes_do_not_inherit_the_lock(tmp_path: Path) -> None:
    """An engine process that outlives the service must not keep the folder."""
    program = "print('running', flush=True); input()"
    with locked(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            close_fds=False,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
    with locked(tmp_path):
        pass
    child.communicate("\n", timeout=120)


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="file"), locked(tmp_path / "file" / "data"):
        pass


def test_the_note_says_where_the_service_listens_and_what_it_is(folder: Path) -> None:
    """One of socket and url is set; at the end note and socket are gone."""
    listener = bind_unix(folder / "s")
    with noted(folder, listener, ABOUT):
        about = json.loads((folder / "service.json").read_text())
        place = {"socket": str(folder / "s"), "url": None}
        assert about == {
            "pid": os.getpid(),
            **place,
            "instance": "name",
            "private": True,
            "wire": VERSION,
            "installation": installation(),
            "vectors": digest(SETTINGS),
            "settings": SETTINGS,
        }
    listener.stream.close()
    assert list(folder.iterdir()) == []


def test_a_service_whose_folder_was_replaced_removes_nothing_of_the_next(folder: Path) -> None:
    """The folder is deleted under it and made again by another service: that one's socket and note stay."""
    place = folder / "data"
    place.mkdir()
    old = bind_unix(own_socket(place))
    with noted(place, old, ABOUT):
        shutil.rmtree(place)
        place.mkdir()
        new = bind_unix(own_socket(place))
        (place / "service.json").write_text('{"pid": 1}')
    assert sorted(path.name for path in place.iterdir()) == ["embatch.sock", "service.json"]
    new.remove()
    assert [path.name for path in place.iterdir()] == ["service.json"]
    for listener in (old, new):
        listener.stream.close()


def test_a_socket_is_the_owners_alone_and_a_dead_one_is_replaced(folder: Path) -> None:
    """A crash leaves the socket's file behind; a living service is not pushed aside."""
    path = folder / "s"
    first = bind_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.stream.listen()
    with pytest.raises(Unavailable):
        bind_unix(path)
    first.stream.close()
    second = bind_unix(path)
    second.stream.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    second.stream.close()


def test_a_users_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    """Whatever is no socket stays."""
    (tmp_path / "s").write_text("mine")
    with pytest.raises(InvalidArgument):
        bind_unix(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "mine"


def test_a_long_path_gets_a_short_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths beyond the kernel's limit map to one place each, for this user only."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert own_socket(Path("/short")) == Path("/short/embatch.sock")
    deep = folder / ("x" * 90) / "data"
    path = own_socket(deep)
    assert path == own_socket(deep)
    assert path != own_socket(deep / "other")
    assert len(str(path)) - len(str(folder)) < 60
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listener = Listener(socket.socket(socket.AF_UNIX), None, path)
    listener.stream.close()
    listener.remove()


def test_a_long_place_for_temporary_files_is_no_reason_either(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR has a long path of its own, the socket is in /tmp, and can be bound."""
    monkeypatch.setattr("tempfile.tempdir", str(folder / ("t" * 90)))
    path = own_socket(folder / ("x" * 90))
    assert path.parent == Path(f"/tmp/embatch-{os.getuid()}")  # noqa: S108  (only looked at)
    listener = bind_unix(path)
    listener.stream.close()
    listener.remove()
    assert not path.exists()


def test_a_socket_path_that_is_too_long_is_told_as_that(folder: Path) -> None:
    """The message has the path and says how many bytes there can be."""
    path = folder / ("s" * 120)
    with pytest.raises(InvalidArgument, match=f"{path}: a socket's path can have 100 bytes") as refused:
        bind_unix(path)
    assert refused.value.field == "--socket"


def test_a_taken_port_and_a_foreign_address_are_told_apart() -> None:
    """One may be free later, the other never is."""
    first = bind_tcp("127.0.0.1", 0)
    first.stream.listen()
    with pytest.raises(Unavailable):
        bind_tcp("127.0.0.1", first.stream.getsockname()[1])
    first.stream.close()
    with pytest.raises(InvalidArgument):
        bind_tcp("no host at all", 0)
