"""One service a Postgres database: an advisory lock, held by a connection of its own and lost with it.

The lock is the server's, so it ends with this process however that ends. The connection is awaited, not
asked: whatever ends it makes its socket readable, and a peer that has gone without a word is found by TCP
keepalives, here within twelve seconds, by the server within half a minute. It must lead to the server itself:
a proxy that lends out connections a transaction at a time holds no lock for anybody.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from embatch.errors import InvalidArgument, Unavailable, printable
from embatch.ownership import Taken
from embatch.store.connect import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection

_KEY: Final = int.from_bytes(b"embatch")
_TRIES: Final = 20
_BETWEEN_TRIES: Final = 0.1
"""Seconds. The server takes a moment to notice that a service was killed."""
_CONNECTING: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_OPTIONS: Final = (
    "-c idle_session_timeout=0 -c statement_timeout=10000"
    " -c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)
_HOLDER: Final = text(
    "SELECT activity.application_name FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = :high AND objid = :low"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class DatabaseTaken(Taken):
    """Another service has the database; the message names both."""


class SoleUse:
    """The right to be the only service of a database, until `close` or the loss of its connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closing, self._wake = socket.socketpair()
        self._thread: threading.Thread | None = None

    @classmethod
    def take(cls, url: URL) -> Self:
        """Take the lock.

        Raises:
            DatabaseTaken: another service has it.
            Unavailable: the database cannot be reached; the message never shows the password.
            InvalidArgument: its driver is not installed.
        """
        connection = _connected(url)
        try:
            with refusals(url):
                if _locked(connection):
                    return cls(connection)
                holder = _holder(connection)
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise DatabaseTaken(f"the database {shown(url)} is in use by {holder}")

    def watch(self, lost: Callable[[], object]) -> None:
        """Call `lost` once, from a thread, when the connection has broken. Call this once, before `close`."""
        self._thread = threading.Thread(target=self._await, args=(lost,), name="database-watch", daemon=True)
        self._thread.start()

    def _await(self, lost: Callable[[], object]) -> None:
        driver: Any = self._connection.connection.driver_connection
        with selectors.DefaultSelector() as selector:
            selector.register(driver.fileno(), selectors.EVENT_READ)
            selector.register(self._closing, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._closing in ready:
                    return
                try:  # a server also tells of changed settings, unasked
                    self._connection.execute(text("SELECT 1"))
                except Exception:  # noqa: BLE001  (whatever it is: nobody knows whether the lock is held)
                    break
        lost()

    def close(self) -> None:
        """Let the next service have the database. Repeating is safe."""
        self._wake.close()
        if self._thread is not None:
            self._thread.join()
        self._closing.close()
        with contextlib.suppress(DBAPIError):  # there may be nothing left to close
            self._connection.close()


def _connected(url: URL) -> Connection:
    name = f"embatch {os.getpid()} on {socket.gethostname()}"[:63]
    try:
        engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args={**_CONNECTING, "application_name": name, "options": options_of(url, _OPTIONS)},
        )
    except ModuleNotFoundError as missing:
        raise InvalidArgument(
            f'a Postgres database needs {missing.name}: pip install "embatch[postgres]"', field="--database"
        ) from None
    with refusals(url):
        return engine.connect()


def _locked(connection: Connection) -> bool:
    """Take the lock if nobody else has it."""
    for _ in range(_TRIES):
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar_one():
            return True
        time.sleep(_BETWEEN_TRIES)
    return False


def shown(url: URL) -> str:
    """Return where a database is, without who asks for it."""
    host = url.host or url.query.get("host", "localhost")
    port = "" if url.port is None else f":{url.port}"
    return printable(f"{host if isinstance(host, str) else ','.join(host)}{port}/{url.database or ''}")


@contextlib.contextmanager
def refusals(url: URL) -> Iterator[None]:
    """Say in one line, and without the password, what a database that cannot be used has said.

    Raises:
        Unavailable: it said so.
    """
    try:
        yield
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())
        for secret in (url.password, url.query.get("password")):
            if isinstance(secret, str) and secret:
                said = said.replace(secret, "***")
        raise Unavailable(
            f"the database {shown(url)} cannot be used: {printable(said)}", reason="DATABASE_REFUSED"
        ) from None


def _holder(connection: Connection) -> str:
    held = {"high": _KEY >> 32, "low": _KEY & 0xFFFFFFFF}
    name = connection.execute(_HOLDER, held).scalar() or ""
    _, _, who = name.partition("embatch ")
    return f"the service with process id {printable(who)}" if who else "another service"
