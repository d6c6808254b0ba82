"""Power cuts under the store alone: what was acknowledged of accepts, commits and ends is there after (I3).

Needs root and loop devices, and fails without them: run `pytest -m long tests/store/test_power_cut.py`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from power import Volume
from storing import open_store

from embatch.errors import DataLoss, NotFound
from embatch.states import State
from embatch.store.blobs import FolderBlobs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
CUTS = 10
SEED = 3

WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from storing import NOW, new_batch, open_store
from embatch.shard import REQUESTS, results_schema
from embatch.store.blobs import FolderBlobs
from embatch.store.records import PayloadShard, ResultShard

root, life, weakness = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if weakness == "no sync of blobs":
    from embatch.store import blobs as module
    module.sync = module.sync_folder = lambda _: None
blobs, store = FolderBlobs(root), open_store(root)
blobs.ensure_layout()
if weakness == "no sync of commits":
    with store._database.writer.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA synchronous=NORMAL")
store.release_all()

def say(word, name):
    sys.stdout.write(f"{word} {name}\\n")
    sys.stdout.flush()

def live(number):
    name = f"{life}-{number}"
    rows = [{"index": n, "text": f"{name} {n} " * 40, "auto_truncate": True} for n in range(3)]
    texts = pa.RecordBatch.from_pylist(rows, schema=REQUESTS)
    path = f"batches/{name}/payload-00000.arrow"
    store.accept(replace(new_batch(name)), [PayloadShard(0, path, blobs.write(path, texts), 3, 100, 0)])
    say("accepted", name)
    if number % 5 == 0:
        store.cancel(name, NOW)
        say("cancelled", name)
        if number % 10 == 0:
            say("deleting", name)
            store.delete(name)
            say("deleted", name)
        return
    held = store.claim(NOW)
    if held is None:
        return
    vectors = pa.RecordBatch.from_pylist(
        [{"index": n, "embedding": [float(n)] * 64, "tokens": 1, "truncated": False} for n in range(3)],
        schema=results_schema(64),
    )
    path = f"batches/{held.batch_id}/result-00000-{held.attempt}.arrow"
    if store.commit(held, ResultShard(path, blobs.write(path, vectors), 3, 0, 3, 64), NOW).accepted:
        say("completed", held.batch_id)

with ThreadPoolExecutor(8) as pool:
    for _ in pool.map(live, range(1_000_000)):
        pass
"""


@dataclass(slots=True)
class Tally:
    """What was acknowledged over all cuts, and what of it was missing."""

    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """Words said of each batch."""
    count: int = 0
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def hear(self, lines: list[str]) -> None:
        """Take down what the worker said; a line cut off by the kill says nothing."""
        for line in lines:
            if line.endswith("\n"):
                word, name = line.split()
                self.acknowledged.setdefault(name, set()).add(word)
                self.count += 1

    def check(self, root: Path) -> None:
        """Compare with what the volume holds."""
        store, blobs = open_store(root), FolderBlobs(root)
        for name, words in self.acknowledged.items():
            try:
                state = store.get(name).state
            except NotFound:
                if "deleting" not in words:
                    self.lost.append(f"{name} {sorted(words)}")
                continue
            wanted = {"completed": State.COMPLETED, "cancelled": State.CANCELLED}
            if "deleted" in words or any(word in words and state is not end for word, end in wanted.items()):
                self.lost.append(f"{name} {sorted(words)} is {state}")
        # Also what was never acknowledged: a row speaks only of files that are there, whole.
        for name in store.ids_of_batches():
            for shard in store.shards(name):
                files = [(shard.payload.path, shard.payload.digest)]
                if shard.result is not None:
                    files.append((shard.result.path, shard.result.digest))
                for path, digest in files:
                    try:
                        blobs.read(path, digest)
                    except DataLoss as error:
                        self.damaged.append(f"{path}: {error}")
        store.close()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A volume whose power can be cut."""
    try:
        made = Volume(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"this test needs root and loop devices to mount a volume of its own: {error}")
    yield made
    subprocess.run(["umount", "-l", str(made.root)], check=True)


def cut_and_check(volume: Volume, cuts: int, weakness: str = "") -> Tally:
    """Cut the power of a working store again and again, each after a random number of acknowledgements."""
    tests = Path(__file__).parent
    script = f"import sys; sys.path.insert(0, {str(tests)!r})\n{WORKER}"
    chance, tally = random.Random(SEED), Tally()
    for cut in range(cuts):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(volume.root), f"life{cut}", weakness],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its errors once the power is gone
            text=True,
        )
        assert process.stdout is not None
        tally.hear([process.stdout.readline() for _ in range(chance.randrange(20, 400))])
        volume.cut()
        process.kill()
        tally.hear(process.stdout.readlines())
        process.wait()
        process.stdout.close()
        volume.remount()
        tally.check(volume.root)
        if weakness and (tally.lost or tally.damaged):
            break
    return tally


def figures(text: str) -> None:
    """Print figures, shown with `-s`."""
    sys.stdout.write(f"\n{text}\n")


def test_what_was_acknowledged_survives_a_power_cut(volume: Volume) -> None:
    """Ten cuts at random moments: nothing acknowledged is lost, no row speaks of a file that is not whole."""
    tally = cut_and_check(volume, CUTS)
    figures(f"cuts {CUTS}; acknowledged {tally.count}; lost {len(tally.lost)}; damaged {len(tally.damaged)}")
    assert tally.count > CUTS * 20
    assert (tally.lost, tally.damaged) == ([], [])


@pytest.mark.parametrize("weakness", ["no sync of commits", "no sync of blobs"])
def test_the_cut_is_a_real_one(volume: Volume, weakness: str) -> None:
    """Without either sync the same cuts do lose something: the rig would notice."""
    tally = cut_and_check(volume, 15, weakness)
    figures(f"{weakness}: lost {len(tally.lost)}; damaged {len(tally.damaged)}")
    if weakness == "no sync of commits":
        assert tally.lost
    else:
        assert tally.damaged
