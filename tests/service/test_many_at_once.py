"""What a service does for each of its batches and files takes four times as long for four times as many."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final

import pytest
from growth import MOST, ratio, seconds
from service_rig import Rig, rows

from embatch.errors import InvalidArgument
from embatch.service.intake import Draft
from embatch.service.views import after

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)
COUNT: Final = 1000
LEFT: Final = 250


def with_batches(folder: Path, count: int) -> Rig:
    """Return a service with so many final batches and as many files, made from one of each."""
    rig = Rig(folder)
    rig.done(rig.service.submit_inline(Draft(), rows(1)).name)
    rig.upload(b"x")
    rig.stop()
    with contextlib.closing(sqlite3.connect(folder / "embatch.db")) as database:
        for table in ("batch", "file"):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            given = ", ".join("'x' || n" if name == "id" else name for name in names)
            database.execute(
                f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) "  # noqa: S608
                f"INSERT INTO {table} SELECT {given} FROM (SELECT * FROM {table} LIMIT 1), c"
            )
        database.commit()
    rig.start()
    return rig


def pages(rig: Rig) -> int:
    """Go through all pages of batches and of files; return how many of both there were."""
    seen = 0
    for look in (rig.service.list, rig.service.files):
        token = None
        while True:
            page = look(50, token)
            seen += len(page.items)
            if (token := page.next_page_token) is None:
                break
    return seen


def test_pages_of_all_batches_and_files(tmp_path: Path) -> None:
    """Each page costs the same, wherever it begins and however many there are."""
    few, many = with_batches(tmp_path / "few", COUNT), with_batches(tmp_path / "many", 4 * COUNT)
    try:
        assert (pages(few), pages(many)) == (2 * COUNT + 2, 8 * COUNT + 2)
        assert ratio(lambda: seconds(lambda: pages(few)), lambda: seconds(lambda: pages(many))) < MOST
    finally:
        few.stop()
        many.stop()


def test_what_a_crash_left_at_the_start(tmp_path: Path) -> None:
    """Folders and files that no row speaks of go, beside those that stay."""
    few, many = with_batches(tmp_path / "few", COUNT), with_batches(tmp_path / "many", 4 * COUNT)

    def start(rig: Rig, count: int) -> float:
        rig.stop()
        orphans = [rig.folder / f"{place}/o{at}" for at in range(count) for place in ("files", "uploads")]
        for orphan in orphans:
            orphan.touch()
        for at in range(count):
            (rig.folder / f"batches/o{at}").mkdir()
        spent = seconds(rig.start)
        assert not any(orphan.exists() for orphan in orphans)
        return spent

    try:
        assert ratio(lambda: start(few, LEFT), lambda: start(many, 4 * LEFT)) < MOST
    finally:
        few.stop()
        many.stop()


@pytest.mark.parametrize("content", [b"[", b"1", b'["a",', b"\\", b" "])
def test_page_tokens_that_somebody_made_up(content: bytes) -> None:
    """What a head has room for, and four times as much, hundreds of times."""

    def read(token: str) -> None:
        for _ in range(600):
            with pytest.raises(InvalidArgument):
                after(token)

    few, many = (
        base64.urlsafe_b64encode(content * (size // len(content))).decode() for size in (12 << 10, 48 << 10)
    )
    assert ratio(lambda: seconds(lambda: read(few)), lambda: seconds(lambda: read(many))) < MOST
