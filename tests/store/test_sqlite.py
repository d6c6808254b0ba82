"""What is particular to SQLite: how it is opened, who may write, how large its log gets, kill -9."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from storing import NOW, accept, claim, commit, open_database, open_store

from embatch.errors import DataLoss, FailedPrecondition, Unavailable
from embatch.store.store import Store


def test_the_database_is_durable_private_and_says_its_version(tmp_path: Path) -> None:
    """WAL with full synchronisation, files for the owner alone, SQLite's version in words for health."""
    database = open_database(tmp_path)
    store = Store(database)
    accept(store, "a")
    asked = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "fullfsync": 1,
        "checkpoint_fullfsync": 1,
        "busy_timeout": 30_000,
    }
    with database.writer.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        assert {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in asked} == asked
    for name in ("embatch.db", "embatch.db-wal", "embatch.db-shm", "ballast"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    assert store.version() == f"sqlite {sqlite3.sqlite_version}"
    store.close()


def test_readers_can_neither_write_nor_checkpoint(tmp_path: Path) -> None:
    """One connection writes and checkpoints; all others cannot, even by mistake."""
    database = open_database(tmp_path)
    store = Store(database)
    with database.readers.connect() as connection:
        assert connection.execute(text("PRAGMA wal_autocheckpoint")).scalar_one() == 0
        with pytest.raises(OperationalError, match="readonly"):
            connection.execute(text("DELETE FROM batch"))
    store.close()


def test_the_log_is_gone_after_closing(tmp_path: Path) -> None:
    """The last to close is the writer, which leaves one file with everything in it."""
    store = open_store(tmp_path)
    accept(store, "a")
    store.get("a")
    store.close()
    store.close()
    assert not (tmp_path / "embatch.db-wal").exists()
    with sqlite3.connect(tmp_path / "embatch.db") as connection:
        assert connection.execute("SELECT id FROM batch").fetchall() == [("a",)]
    connection.close()
    with pytest.raises(Unavailable):
        store.claim(NOW)


def test_a_store_needs_a_file(tmp_path: Path) -> None:
    """A database in memory would lose everything; a missing folder is told as what it is."""
    with pytest.raises(FailedPrecondition):
        Store.open("sqlite://")
    with pytest.raises(Unavailable, match="No such file"):
        open_store(tmp_path / "nowhere")


def test_damage_is_noticed_at_the_start(tmp_path: Path) -> None:
    """A database with a page overwritten, cut short, or that is something else, is refused and left alone."""
    store = open_store(tmp_path)
    for number in range(50):
        accept(store, f"b{number}", shards=20)
    store.close()
    path = tmp_path / "embatch.db"
    good = path.read_bytes()
    cases = {
        "a page of zeros": good[:8192] + bytes(4096) + good[12288:],
        "no database": b"x" * len(good),
        "cut short": good[: len(good) // 2],
    }
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataLoss, match="restore"):
            open_store(tmp_path)
        assert path.read_bytes() == content, name
    path.write_bytes(good)
    store = open_store(tmp_path)
    assert len(store.ids_of_batches()) == 50
    store.close()


def test_a_page_damaged_while_it_runs_is_not_served(tmp_path: Path) -> None:
    """A reader that meets a damaged page reports it; nothing made up is returned."""
    store = open_store(tmp_path)
    for number in range(20):
        accept(store, f"b{number}", shards=20)
    store.close()
    path = tmp_path / "embatch.db"
    store = open_store(tmp_path)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DataLoss):
        store.get("b1")
    store.close()


def test_words_that_we_never_wrote_are_damage(tmp_path: Path) -> None:
    """A state, a time or a note that makes no sense is not passed on as if it did."""
    store = open_store(tmp_path)
    accept(store, "a")
    store.close()
    for column, nonsense in (("state", "'PENDINH'"), ("create_time", "1 << 62"), ("notes", "'[\"a'")):
        with contextlib.closing(sqlite3.connect(tmp_path / "embatch.db", isolation_level=None)) as connection:
            (good,) = connection.execute(f"SELECT {column} FROM batch").fetchone()  # noqa: S608  (constants)
            connection.execute("PRAGMA ignore_check_constraints=ON")
            store = open_store(tmp_path)
            connection.execute(f"UPDATE batch SET {column} = {nonsense}")  # noqa: S608  (constants)
            with pytest.raises(DataLoss):
                store.get("a")
            connection.execute(f"UPDATE batch SET {column} = ?", (good,))  # noqa: S608  (constants)
            assert store.get("a").id == "a"
            store.close()


def test_the_log_stays_small_under_short_readers(tmp_path: Path) -> None:
    """Readers that overlap all the time let the log grow to its limit and not much further."""
    limit = 2 << 20
    database = open_database(tmp_path)
    database.log_bytes = limit
    store = Store(database)
    ended = threading.Event()
    largest = 0

    def read() -> None:
        while not ended.is_set():
            store.list(50, None)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(16) as pool:
        # About 100 bytes a shard in table and indexes: enough pages to fill the limit several times over.
        for _ in pool.map(lambda n: accept(store, f"b{n}", shards=100), range(400)):
            largest = max(largest, store.wal_bytes())
    ended.set()
    for reader in readers:
        reader.join()
    written = (tmp_path / "embatch.db").stat().st_size
    assert written > 2 * limit
    assert largest < 4 * limit
    store.close()


def test_a_reader_that_never_ends_costs_its_log_and_no_more(tmp_path: Path) -> None:
    """While one reads on, writes go on; once it ends the log is emptied."""
    limit = 1 << 20
    database = open_database(tmp_path)
    database.log_bytes, database.reset_milliseconds = limit, 10
    store = Store(database)
    accept(store, "first")
    with database.readers.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        assert connection.execute(text("SELECT count(*) FROM batch")).scalar_one() == 1
        for number in range(60):
            accept(store, f"b{number}", shards=100)
        grown = store.wal_bytes()
        assert grown > limit
        assert connection.execute(text("SELECT count(*) FROM batch")).scalar_one() == 1
        connection.rollback()
    for number in range(60, 160):
        accept(store, f"b{number}", shards=100)
    assert store.wal_bytes() < grown + 2 * limit
    assert len(store.ids_of_batches()) == 161
    store.close()


BROKEN_DISK = """
import resource, sys
from pathlib import Path
from storing import NOW, accept, claim, open_store
from embatch.errors import Unavailable
store = open_store(Path(sys.argv[1]))
accept(store, "acknowledged")
wal = Path(sys.argv[1]) / "embatch.db-wal"
resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 2000, resource.RLIM_INFINITY))
verbs = (
    lambda: accept(store, "unknown"),
    lambda: store.claim(NOW),
    lambda: store.cancel("acknowledged", NOW),
)
for verb in verbs:
    try:
        verb()
    except Unavailable as error:
        print(error.reason, store.broken, store.broken_signal.wait(0))
    else:
        print("done")
print(store.get("acknowledged").id)
store.close()
"""


def test_a_commit_that_failed_in_the_disk_breaks_the_store(tmp_path: Path) -> None:
    """After an I/O error at commit nothing is written any more, reads go on, and the next start is whole."""
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r})\n{BROKEN_DISK}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [*["STORAGE_ERROR True True"] * 3, "acknowledged"], done.stderr
    store = open_store(tmp_path)
    assert "acknowledged" in store.ids_of_batches()
    assert commit(store, claim(store)).accepted
    store.close()


WRITER = """
import itertools, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from storing import accept, claim, commit, open_database, open_store
store = open_store(Path(sys.argv[1]))
def live(number):
    name = f"{sys.argv[2]}-{number}"
    accept(store, name)
    sys.stdout.write(f"accepted {name}\\n")
    held = claim(store)
    if commit(store, held).accepted:
        sys.stdout.write(f"completed {held.batch_id}\\n")
    sys.stdout.flush()
with ThreadPoolExecutor(8) as pool:
    for _ in pool.map(live, range(100_000)):
        pass
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """A process killed at any moment of writing, its start included, loses nothing it had acknowledged."""
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r})\n{WRITER}"
    acknowledged: list[str] = []
    for life, lines in enumerate((0, 1, 40, 150)):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), f"life{life}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        # The kill comes with the n-th acknowledgement; what follows it in the pipe was acknowledged, too.
        acknowledged += [process.stdout.readline() for _ in range(lines)]
        process.kill()
        acknowledged += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        store = open_store(tmp_path)
        store.release_all()
        for line in acknowledged:
            verb, _, name = line.rstrip("\n").partition(" ")
            if not line.endswith("\n"):
                continue  # cut off by the kill: it acknowledged nothing
            record = store.get(name)
            assert verb == "accepted" or record.state == "COMPLETED", line
            assert record.request_count == 3
        store.close()
    assert len(acknowledged) > 190
