"""The writer: order, groups, one failing write among good ones, and what is known when it answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool
from storing import NOW, accept, claim, open_database

from embatch.errors import Unavailable
from embatch.store.ballast import Ballast
from embatch.store.connect import Database, connect
from embatch.store.store import Store
from embatch.store.writer import GROUP, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with a table of numbers besides our own."""
    opened = connect(f"sqlite:///{tmp_path / 'embatch.db'}")
    with opened.writer.begin() as connection:
        connection.execute(text("CREATE TABLE note (number INTEGER PRIMARY KEY, place INTEGER, stuff BLOB)"))
    yield opened
    opened.close()


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    """A writer on it."""
    made = Writer(database.writer)
    yield made
    made.close()


def add(number: int) -> Callable[[Connection], int]:
    """Return a write that notes a number and the place at which it was written."""

    def write(connection: Connection) -> int:
        place: int = connection.execute(text("SELECT count(*) FROM note")).scalar_one()
        connection.execute(
            text("INSERT INTO note VALUES (:number, :place, NULL)"), {"number": number, "place": place}
        )
        return place

    return write


def notes(database: Database) -> dict[int, int]:
    """Return what another connection sees."""
    with database.readers.connect() as connection:
        return {row.number: row.place for row in connection.execute(text("SELECT number, place FROM note"))}


def in_one_group(writer: Writer, works: list[Callable[[Connection], Any]]) -> list[Future[Any]]:
    """Queue writes in this order behind one that waits, so that they are committed together; await them."""
    assert len(works) < GROUP
    free = threading.Event()
    begun = threading.Event()

    def wait(_: Connection) -> None:
        begun.set()
        assert free.wait(timeout=120)

    with ThreadPoolExecutor(len(works) + 1) as pool:
        first = pool.submit(writer.run, wait)
        assert begun.wait(timeout=120)
        futures = []
        for number, work in enumerate(works, start=1):
            futures.append(pool.submit(writer.run, work))
            deadline = time.monotonic() + 120
            while writer.waiting < number:
                assert time.monotonic() < deadline
        free.set()
        first.result(timeout=120)
    return futures


def test_writes_run_in_the_order_they_were_queued(database: Database, writer: Writer) -> None:
    """The place of each write is the place at which it was queued."""
    futures = in_one_group(writer, [add(number) for number in range(20)])
    assert [future.result() for future in futures] == list(range(20))
    assert notes(database) == {number: number for number in range(20)}


def test_a_failing_write_harms_no_neighbour(database: Database, writer: Writer) -> None:
    """A write that fails, in SQL or in Python, is undone whole; the others of its group stand."""

    def half_then_sql(connection: Connection) -> None:
        add(100)(connection)
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    def half_then_python(connection: Connection) -> None:
        add(101)(connection)
        raise LookupError("no")

    futures = in_one_group(writer, [add(0), half_then_sql, add(1), half_then_python, add(2)])
    assert [futures[at].result() for at in (0, 2, 4)] == [0, 1, 2]
    with pytest.raises(OperationalError, match="nowhere"):
        futures[1].result()
    with pytest.raises(LookupError):
        futures[3].result()
    assert notes(database) == {0: 0, 1: 1, 2: 2}
    assert not writer.broken.is_set()


def test_an_answer_comes_after_the_commit(database: Database, writer: Writer) -> None:
    """What `run` returned is seen by every other connection at once."""
    for number in range(20):
        writer.run(add(number))
        assert len(notes(database)) == number + 1


def test_many_writes_share_few_commits(database: Database) -> None:
    """Under load writes are committed in groups; else each would wait for a disk of its own."""
    commits = 0

    def count() -> None:
        nonlocal commits
        commits += 1

    writer = Writer(database.writer, between=count)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(writer.run, [add(number) for number in range(320)]))
    writer.close()
    assert sorted(notes(database).values()) == list(range(320))
    assert commits < 320


def test_closing_finishes_what_is_queued(database: Database) -> None:
    """Nothing that was asked for is forgotten, and nothing is taken afterwards."""
    writer = Writer(database.writer)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(writer.run, add(number)) for number in range(8)]
        for future in futures:
            future.result()
        writer.close()
    writer.close()
    assert len(notes(database)) == 8
    with pytest.raises(Unavailable):
        writer.run(add(9))


def test_an_error_nobody_foresaw_leaves_nobody_waiting() -> None:
    """Whatever breaks in the writer itself, every caller hears of it and the service is told to exit."""
    # As the store's own: the connection that the writer's thread opens is closed by another one.
    options = {"check_same_thread": False}
    broken_engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=options)

    @event.listens_for(broken_engine, "begin")
    def break_down(_: Connection) -> None:
        raise MemoryError

    writer = Writer(broken_engine)
    with pytest.raises(Unavailable) as failed:
        writer.run(add(1))
    assert failed.value.reason == "STORAGE_ERROR"
    assert writer.broken.is_set()
    with pytest.raises(Unavailable):
        writer.run(add(2))
    writer.close()
    broken_engine.dispose()


def test_trouble_between_two_groups_breaks_the_writer_and_not_its_answers(database: Database) -> None:
    """A checkpoint that fails says nothing about what was committed before it."""

    def break_down() -> None:
        raise MemoryError

    writer = Writer(database.writer, between=break_down)
    assert writer.run(add(1)) == 0
    assert writer.broken.wait(timeout=120)
    with pytest.raises(Unavailable):
        writer.run(add(2))
    writer.close()
    assert notes(database).keys() == {1}


class Room(Ballast):
    """A ballast of pages: the disk is as full as the database is allowed pages."""

    def __init__(self, path: Path, database: Database) -> None:
        super().__init__(path)
        self.database = database
        self.freed = False
        self.fill()

    def allow(self, more: int) -> None:
        """Let the database grow by so many pages and no further."""
        with self.database.writer.connect() as connection:
            driver: Any = connection.connection.driver_connection
            (pages,) = driver.execute("PRAGMA page_count").fetchone()
            driver.execute(f"PRAGMA max_page_count={pages + more}")

    def fill(self) -> None:
        """As on a disk that stays full once the ballast was freed."""
        self.missing = self.freed

    def free(self) -> bool:
        """Give ten pages back."""
        was_there = not self.missing
        self.freed = self.missing = True
        self.allow(10)
        return was_there


def big(number: int) -> Callable[[Connection], None]:
    """Return a write that needs some pages."""

    def write(connection: Connection) -> None:
        connection.execute(text("INSERT INTO note VALUES (:number, 0, zeroblob(12000))"), {"number": number})

    return write


def test_a_full_disk_still_takes_what_makes_room(database: Database, tmp_path: Path) -> None:
    """With no room left an accept is refused and a cancel goes through, on the room the ballast gave back."""
    room = Room(tmp_path / "ballast", database)
    writer = Writer(database.writer, ballast=room)
    room.allow(1)
    with pytest.raises(Unavailable) as full:
        writer.run(big(1))
    assert full.value.reason == "STORAGE_FULL"
    assert not room.freed  # nobody needed it yet
    writer.run(big(2), makes_room=True)
    assert notes(database).keys() == {2}
    with pytest.raises(Unavailable, match="full"):
        writer.run(big(3))
    writer.run(big(4), makes_room=True)
    with pytest.raises(Unavailable, match="full"):  # that room is used up, too
        writer.run(lambda connection: [big(number)(connection) for number in (5, 6)], makes_room=True)
    assert not writer.broken.is_set()
    room.allow(1000)
    room.freed = False
    writer.run(big(7))
    writer.close()
    assert notes(database).keys() == {2, 4, 7}


def test_the_ballast_is_real_bytes_and_comes_back(tmp_path: Path) -> None:
    """It takes the room it promises, gives it back once, and is filled again when there is room."""
    ballast = Ballast(tmp_path / "ballast")
    assert ballast.missing
    ballast.fill()
    there = (tmp_path / "ballast").stat()
    assert there.st_size == there.st_blocks * 512 == 2 << 20
    again = Ballast(tmp_path / "ballast")
    again.fill()
    assert again.free()
    assert not again.free()
    assert not (tmp_path / "ballast").exists()
    again.fill()
    assert not again.missing


def test_a_database_held_by_somebody_else_is_busy_and_not_broken(tmp_path: Path) -> None:
    """While an operator's shell holds the database, writes answer 503 and reads go on; then all goes on."""
    database = open_database(tmp_path)
    store = Store(database)
    with database.writer.connect() as connection:  # its only one, and nobody waits the thirty seconds here
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
    accept(store, "a")
    shell = connect(f"sqlite:///{tmp_path / 'embatch.db'}")
    held = claim(store)
    with shell.writer.connect() as other:
        other.begin()
        with pytest.raises(Unavailable) as busy:
            store.claim(NOW)
        assert busy.value.reason == "STORAGE_BUSY"
        assert store.get("a").request_count == 3
        other.rollback()
    assert not store.broken
    assert store.release(held)
    assert claim(store).attempt == 2
    store.close()
    shell.close()
