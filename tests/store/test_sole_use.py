"""One service a Postgres database: who has it, who is refused, and how its loss is heard."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from embatch.errors import Unavailable
from embatch.store.sole_use import DatabaseTaken, SoleUse, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

pytest_plugins = ("store_databases",)

WITHIN = 120.0
"""Seconds after which a wait has failed."""


@pytest.fixture
def url(new_postgres: Callable[[], str]) -> URL:
    """The address of a database."""
    return make_url(new_postgres())


def end_holders(url: URL) -> None:
    """End every connection that holds a lock of ours, as an administrator may."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        ended = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE :name"
            ),
            {"name": f"embatch {os.getpid()} on %"},
        )
        assert ended.scalars().all() == [True]


def test_a_second_one_is_refused_until_the_first_has_closed(url: URL) -> None:
    """It learns who has it; another database is nobody's affair."""
    first = SoleUse.take(url)
    with pytest.raises(DatabaseTaken) as taken:
        SoleUse.take(url)
    assert str(taken.value).startswith(f"the database {shown(url)} is in use by the service with process id ")
    assert f" {os.getpid()} on " in str(taken.value)
    SoleUse.take(url.set(database="postgres")).close()
    first.close()
    first.close()
    SoleUse.take(url).close()


def test_its_loss_is_heard_and_its_end_is_none(url: URL) -> None:
    """A connection that the server ends is lost, once; one that was closed here is not."""
    lost = threading.Semaphore(0)
    mine = SoleUse.take(url)
    mine.watch(lost.release)
    mine.close()
    again = SoleUse.take(url)
    again.watch(lost.release)
    assert not lost.acquire(blocking=False)
    end_holders(url)
    assert lost.acquire(timeout=WITHIN)
    later = SoleUse.take(url)
    again.close()
    later.close()
    assert not lost.acquire(blocking=False)


def test_a_database_that_refuses_is_told_without_the_password(url: URL) -> None:
    """Its own words in one line, in which even a password that it would repeat is covered."""
    unknown = "nobody-knows-me"
    with pytest.raises(Unavailable) as refused:
        SoleUse.take(url.set(username=unknown, password=unknown, database="nothing"))
    assert "cannot be used" in str(refused.value)
    assert unknown not in str(refused.value)
    assert "\n" not in str(refused.value)
