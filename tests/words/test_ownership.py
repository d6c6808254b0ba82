"""A data folder is believed only if it is one's own: its owner, its mode, links, and what lies above it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embatch import Client, InvalidArgument
from embatch.ownership import NAMES, check_entry, check_folder, make_folder, open_own, read_secret
from embatch.runs.ledger import folder_of
from embatch.server.folder import locked
from embatch.store.ballast import BYTES, Ballast

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 12345
ROOT = os.geteuid() == 0


def mode(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def folder(path: Path, permissions: int = 0o700) -> Path:
    """Make a folder with exactly these permissions."""
    path.mkdir()
    path.chmod(permissions)
    return path


def service(data: Path) -> None:
    """Hold a folder as a service does."""
    with locked(data):
        pass


def client(data: Path) -> None:
    """Look for the service of a folder as a client does; none is started where the folder is refused."""
    with Client(data=data) as asking:
        asking.get_batch_status("batches/x")


def run(data: Path) -> None:
    """Ask where a run keeps its ledger."""
    folder_of("s3://bucket/out", data)


EVERYBODY: list[Callable[[Path], None]] = [service, client, run]


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("permissions", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_in_is_refused_with_the_remedy(
    tmp_path: Path, who: Callable[[Path], None], permissions: int
) -> None:
    """Somebody may have put something there; nothing in it is touched."""
    data = folder(tmp_path / "data", permissions)
    (data / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match=f"chmod 700 {data}"):
        who(data)
    assert [path.name for path in data.iterdir()] == ["notes.txt"]
    assert mode(data) == permissions


@pytest.mark.parametrize("permissions", [0o777, 0o775, 0o755])
def test_an_empty_folder_is_closed_to_others(tmp_path: Path, permissions: int) -> None:
    """As a `mkdir` leaves it, whatever the umask is: nothing is in it yet."""
    data = folder(tmp_path / "data", permissions)
    service(data)
    assert mode(data) == 0o700


def test_a_folder_that_holds_more_than_ours_stays_readable(tmp_path: Path) -> None:
    """It may be somebody's home or project; what is ours in it is the owner's alone."""
    data = folder(tmp_path / "data", 0o755)
    (data / "notes.txt").write_text("mine")
    service(data)
    assert mode(data) == 0o755
    assert mode(data / "lock") == 0o600
    (data / "notes.txt").unlink()
    service(data)
    assert mode(data) == 0o700


@pytest.mark.parametrize("who", EVERYBODY)
def test_somebody_elses_folder_is_refused(tmp_path: Path, who: Callable[[Path], None]) -> None:
    """Also by root, whom its owner could lead anywhere."""
    data = Path("/usr")
    if ROOT:
        data = folder(tmp_path / "data")
        os.chown(data, STRANGER, STRANGER)
    with pytest.raises(InvalidArgument, match=f"{data} belongs to .* and not to "):
        who(data)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "embatch.sock"])
def test_somebody_elses_file_in_ones_own_folder_is_refused(tmp_path: Path, name: str) -> None:
    """As it stays there after `chmod 700`: a forged note would get the texts."""
    data = folder(tmp_path / "data")
    (data / name).write_text('{"pid": 1, "socket": null, "url": "http://127.0.0.1:1"}')
    os.chown(data / name, STRANGER, STRANGER)
    for who in EVERYBODY:
        with pytest.raises(InvalidArgument, match=f"{name} in the data folder belongs to "):
            who(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("who", EVERYBODY)
def test_a_link_under_a_name_of_ours_is_refused(
    tmp_path: Path, who: Callable[[Path], None], name: str
) -> None:
    """What it leads to, a file or a folder or nothing, is as it was."""
    victim = tmp_path / "victim"
    data = folder(tmp_path / "data")
    (data / name).symlink_to(victim)
    for make in (lambda: None, lambda: victim.write_text("precious")):
        make()
        with pytest.raises(InvalidArgument, match=f"{name} in the data folder is a link"):
            who(data)
    assert victim.read_text() == "precious"
    victim.unlink()
    victim.mkdir()
    with pytest.raises(InvalidArgument, match="is a link"):
        who(data)
    assert not any(victim.iterdir())


def test_a_second_name_of_another_file_is_refused(tmp_path: Path) -> None:
    """A hard link is as good as a link where the system lets others make one."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    data = folder(tmp_path / "data")
    os.link(victim, data / "lock")
    with pytest.raises(InvalidArgument, match="hard link"):
        service(data)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["lock", "service.json", "service.log"])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, name: str) -> None:
    """It may say what they wrote."""
    data = folder(tmp_path / "data")
    (data / name).touch()
    (data / name).chmod(0o666)
    for who in EVERYBODY:
        with pytest.raises(InvalidArgument, match=f"{name} in the data folder can be written by others"):
            who(data)


def test_what_is_no_file_is_not_opened_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would never answer; a socket and a folder are none either."""
    os.mkfifo(tmp_path / "lock", 0o600)
    with pytest.raises(InvalidArgument, match="is no file"):
        open_own(tmp_path / "lock", os.O_RDONLY)
    with pytest.raises(InvalidArgument, match="is no file"):
        service(tmp_path)
    (tmp_path / "lock").unlink()
    with socket.socket(socket.AF_UNIX) as stream:
        monkeypatch.chdir(tmp_path)  # its path may be too long for a socket
        stream.bind("embatch.sock")
        check_entry(tmp_path / "embatch.sock")
    check_entry(tmp_path / "not there")
    check_entry(tmp_path / "embatch.sock" / "not there")


def test_what_lies_above_a_folder_counts(tmp_path: Path) -> None:
    """Where everybody may rename, it could be another one tomorrow; not where a sticky bit forbids."""
    above = folder(tmp_path / "above", 0o777)
    for who in EVERYBODY:
        with pytest.raises(InvalidArgument, match=f"chmod o-w {above}"):
            who(above / "data")
    assert not any(above.iterdir())
    above.chmod(0o1777)
    service(above / "data")
    above.chmod(0o775)  # as a umask of 002 leaves it
    service(above / "data")


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_somebody_elses_folder_above_or_link_on_the_way_is_refused(tmp_path: Path) -> None:
    """Who owns it can put another one in the place of what lies in it."""
    above = folder(tmp_path / "above")
    data = folder(above / "data")
    os.chown(above, STRANGER, STRANGER)
    with pytest.raises(InvalidArgument, match="can put another folder in its place"):
        service(data)
    own = folder(tmp_path / "own")
    (tmp_path / "way").symlink_to(own)
    os.lchown(tmp_path / "way", STRANGER, STRANGER)
    with pytest.raises(InvalidArgument, match="is a link that belongs to "):
        service(tmp_path / "way")
    assert not any(own.iterdir())


def test_ones_own_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    """As to a larger disk; relative ones, chains and `..` on the way too. A circle is an error."""
    real = folder(tmp_path / "real")
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "nothing" / ".." / "one")
    for place in (tmp_path / "one", tmp_path / "two", tmp_path / "real" / ".." / "one"):
        check_folder(place)
    make_folder(tmp_path / "one")
    real.chmod(0o777)
    (real / "notes.txt").touch()
    with pytest.raises(InvalidArgument, match=f"chmod 700 {real}"):
        check_folder(tmp_path / "two")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(InvalidArgument, match="circle"):
        check_folder(tmp_path / "round")


def test_the_ballast_goes_through_no_link(tmp_path: Path) -> None:
    """A file it leads to would be overwritten; even one of just the right size is none."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * BYTES)
    (tmp_path / "ballast").symlink_to(victim)
    Ballast(tmp_path / "ballast").fill()
    assert victim.read_bytes() == b"x" * BYTES
    assert not (tmp_path / "ballast").is_symlink()


def test_a_secret_is_read_where_only_its_owner_may(tmp_path: Path) -> None:
    """Read-only is as good; whatever else may be done with it, the message says how to close it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"words")
    for permissions in (0o600, 0o400):
        secret.chmod(permissions)
        assert read_secret(secret, 5) == b"words"
    for permissions in (0o640, 0o620, 0o604, 0o601, 0o700, 0o4600):
        secret.chmod(permissions)
        with pytest.raises(InvalidArgument, match=rf"\(mode {permissions:04o}\): chmod 600 {secret}"):
            read_secret(secret, 5)
    secret.chmod(0o600)
    with pytest.raises(InvalidArgument, match="more than 4 bytes"):
        read_secret(secret, 4)


def test_what_is_no_plain_file_of_ones_own_is_no_secret(tmp_path: Path) -> None:
    """A link, a second name, a pipe, which would never answer, a folder, a path that none can be."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"words")
    secret.chmod(0o600)
    (tmp_path / "link").symlink_to(secret)
    (tmp_path / "nowhere").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (
        *(("link", "is a link"), ("nowhere", "is a link"), ("pipe", "is no file"), (".", "is no file")),
        *(("none", "No such file"), ("secret/below", "Not a directory"), ("a\0b", "no path")),
    ):
        with pytest.raises(InvalidArgument, match=why) as refused:
            read_secret(tmp_path / name, 5)
        assert refused.value.message.isprintable()
    os.link(secret, tmp_path / "second")
    with pytest.raises(InvalidArgument, match="hard link"):
        read_secret(secret, 5)
