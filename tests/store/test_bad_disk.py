"""Disks that are full or fail: what users can still do, and that nothing acknowledged is lost.

Needs root, loop devices and strace, and fails without them: `pytest -m long tests/store/test_bad_disk.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from power import Volume
from storing import NOW, accept, claim, commit, open_store

from embatch.errors import Unavailable
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.store.store import Store

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Volume]:
    """A volume of 64 MiB."""
    try:
        made = Volume(tmp_path, 64)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"this test needs root and loop devices to mount a volume of its own: {error}")
    yield made
    subprocess.run(["umount", "-l", str(made.root)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def accept_until_refused(store: Store) -> int:
    """Accept until there is no room; return how many it took what the log had of the disk before."""
    for number in range(5000):
        try:
            accept(store, f"late{number}", shards=20)
        except Unavailable as error:
            assert error.reason == "STORAGE_FULL"  # noqa: PT017  (it ends the loop, it is not what is tested)
            return number
    raise AssertionError("the disk is not full")


def test_a_full_disk_can_be_made_room_on(small: Volume) -> None:
    """Accepts are refused, cancel and delete work, nothing is lost, and it goes on by itself."""
    store = open_store(small.root)
    for number in range(40):
        accept(store, f"early{number}", shards=20)
    held = claim(store)
    fill(small.root / "filler")
    accepted = accept_until_refused(store)
    for number in range(1, 40):
        assert store.cancel(f"early{number}", NOW).state is State.CANCELLED
    assert commit(store, held).accepted
    assert store.release(held) is False
    store.delete("early1")
    with pytest.raises(Unavailable, match="full"):
        accept(store, "refused")
    assert not store.broken
    assert not (small.root / "ballast").exists()
    there = store.ids_of_batches()
    assert there == {f"early{n}" for n in range(40) if n != 1} | {f"late{n}" for n in range(accepted)}
    (small.root / "filler").unlink()
    accept(store, "again")
    assert (small.root / "ballast").exists()
    store.close()
    store = open_store(small.root)
    assert store.ids_of_batches() == there | {"again"}
    assert store.get("early2").state is State.CANCELLED
    store.close()


WORKER = """
import sys
from pathlib import Path
from storing import accept, claim, commit, open_store
from embatch.errors import EmbatchError
try:
    store = open_store(Path(sys.argv[1]))
except EmbatchError as error:
    print("refused", error.reason, flush=True)
    sys.exit(75)
for number in range(4):
    try:
        accept(store, f"b{number}")
        print(f"accepted b{number}", flush=True)
        commit(store, claim(store))
        print(f"completed b{number}", flush=True)
    except EmbatchError as error:
        print("failed", error.reason, store.broken, flush=True)
store.close()
"""


def test_every_failing_sync_is_noticed(tmp_path: Path) -> None:
    """The first, second, … sync fails, until none is left to fail: no false acknowledgement, no loss."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("this test needs strace to make syncs fail")
    tests = Path(__file__).parent
    script = f"import sys; sys.path.insert(0, {str(tests)!r})\n{WORKER}"
    noticed = 0
    for call in ("fdatasync", "fsync"):
        for which in range(1, 60):
            folder = tmp_path / f"{call}{which}"
            folder.mkdir()
            trace = tmp_path / "trace"
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={which}"]
            done = subprocess.run(
                [strace, "-f", "-o", str(trace), *inject, sys.executable, "-c", script, str(folder)],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            injected = "INJECTED" in trace.read_text()
            lines = done.stdout.splitlines()
            failures = [line for line in lines if line.startswith(("failed", "refused"))]
            assert all(
                line.startswith(("failed STORAGE_ERROR True", "refused STORAGE_ERROR")) for line in failures
            )
            store = open_store(folder)
            for line in lines:
                word, _, name = line.partition(" ")
                if word in ("accepted", "completed"):
                    state = store.get(name).state
                    assert word == "accepted" or state is State.COMPLETED, (call, which, line)
            store.close()
            if not injected:
                assert not failures
                assert len(lines) == 8
                break
            noticed += bool(failures)
        else:
            pytest.fail(f"{call} never stopped being called")
    assert noticed >= 4
