"""A service on a Postgres database: alone on it, taken up where it was, and ended when it loses it."""

from __future__ import annotations

import itertools
import signal
import socket
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from serving import MODEL, Served, await_final
from sqlalchemy import NullPool, create_engine, make_url, text

from embatch.errors import InvalidArgument
from embatch.server import ServeOptions, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL

pytestmark = pytest.mark.postgres

pytest_plugins = ("postgres_server",)

PASSWORD = "do-not-show-this"  # noqa: S105  (it is to be looked for)
_NUMBERS = itertools.count()


class Server:
    """The Postgres server, and what an administrator does on it."""

    def __init__(self, address: str) -> None:
        self.home = make_url(address).set(drivername="postgresql+psycopg")
        self._engine = create_engine(self.home, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def run(self, statement: str, **parameters: object) -> list[Any]:
        """Run a statement; return the first column."""
        with self._engine.connect() as connection:
            found = connection.execute(text(statement), parameters)
            return list(found.scalars()) if found.returns_rows else []

    def database(self) -> URL:
        """Make an empty database and return its address."""
        name = f"served_{next(_NUMBERS)}"
        self.run(f"CREATE DATABASE {name}")
        return self.home.set(drivername="postgresql", database=name)


@pytest.fixture(scope="module")
def server(postgres: str) -> Server:
    """The Postgres server of this run."""
    return Server(postgres)


@pytest.fixture
def address(server: Server) -> str:
    """The address of an empty database."""
    return server.database().render_as_string(hide_password=False)


@pytest.fixture
def service(tmp_path: Path, address: str) -> Iterator[Served]:
    """A service on it that is not started."""
    made = Served(tmp_path / "data", environ={"EMBATCH_DATABASE": address})
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def submit(service: Served, texts: list[str]) -> str:
    """Submit an inline batch and return its name."""
    requests = [{"request": {"content": {"parts": [{"text": text}]}}} for text in texts]
    body = {"batch": {"displayName": "b", "inputConfig": {"requests": {"requests": requests}}}}
    reply = httpx2.post(f"{service.url}/v1/models/{MODEL}:asyncBatchEmbedContent", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["name"])


def vectors(service: Served, name: str) -> list[list[float]]:
    """Wait for a batch and return its vectors."""
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        answers = await_final(web, name)["response"]["inlinedResponses"]["inlinedResponses"]
    return [answer["response"]["embedding"]["values"] for answer in answers]


def test_what_was_accepted_is_there_after_each_way_to_end(service: Served) -> None:
    """A batch and an uploaded file outlive SIGTERM and kill -9; nothing of it stands in an SQLite file."""
    service.start()
    name = submit(service, ["one", "two"])
    found = vectors(service, name)
    assert len(found) == 2
    line = b'{"request":{"content":{"parts":[{"text":"one"}]}}}\n'
    kind = {"Content-Type": "application/jsonl"}
    upload = httpx2.post(f"{service.url}/upload/v1/files", content=line, headers=kind, timeout=60)
    file = upload.json()["file"]["name"]
    assert service.stop() == 0
    service.start()
    assert vectors(service, name) == found
    later = submit(service, ["three"])
    service.kill()
    service.start()
    assert vectors(service, name) == found
    assert len(vectors(service, later)) == 1
    body = {"batch": {"displayName": "f", "inputConfig": {"fileName": file}}}
    made = httpx2.post(
        f"{service.url}/v1/models/{MODEL}:asyncBatchEmbedContent", json=body, timeout=60
    ).json()["name"]
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        assert await_final(web, made)["metadata"]["batchStats"]["successfulRequestCount"] == "1"
    assert not (service.data / "embatch.db").exists()
    assert (service.data / name).is_dir()


def test_a_second_service_is_refused_in_a_line(service: Served, address: str, tmp_path: Path) -> None:
    """With the exit code of a taken folder; the first one works on, and its end makes room."""
    service.start()
    assert service.process is not None
    second = Served(tmp_path / "other", environ=service.environ)
    assert second.launch().wait(60) == 75
    (line,) = second.tail().splitlines()
    assert f"is in use by the service with process id {service.process.pid} on " in line
    assert len(vectors(service, submit(service, ["one"]))) == 1
    assert service.stop() == 0


def test_a_service_that_loses_its_database_ends_like_one_whose_storage_broke(
    service: Served, server: Server
) -> None:
    """It takes no more, exits with 74, and the next start goes on."""
    service.start()
    process = service.process
    assert process is not None
    name = submit(service, ["one"])
    found = vectors(service, name)
    ended = server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE :name",
        name=f"embatch {process.pid} on %",
    )
    assert ended == [True]
    assert process.wait(60) == 74
    assert any("keeps the database" in str(event["event"]) for event in service.events())
    service.start()
    assert vectors(service, name) == found
    assert service.stop(signal.SIGINT) == 0


def test_files_of_one_database_are_never_taken_for_anothers(
    service: Served, server: Server, tmp_path: Path
) -> None:
    """A start that took them for left over would remove them; one without them would lose every batch."""
    service.start()
    name = submit(service, ["one"])
    found = vectors(service, name)
    assert service.stop() == 0
    other = server.database().render_as_string(hide_password=False)
    wrong = Served(service.data, environ={"EMBATCH_DATABASE": other})
    assert wrong.launch().wait(60) == 1
    assert "holds the files of another database" in wrong.tail().splitlines()[-1]
    sqlite = Served(service.data)
    assert sqlite.launch().wait(60) == 1
    assert "holds the files of a Postgres database" in sqlite.tail().splitlines()[-1]
    empty = Served(tmp_path / "empty", environ=service.environ)
    assert empty.launch().wait(60) == 1
    last = empty.tail().splitlines()[-1]
    assert "are in another folder than" in last
    elsewhere = Served(tmp_path / "empty", "--blobs", str(service.data), environ=service.environ)
    try:
        elsewhere.start()
        assert vectors(elsewhere, name) == found
        assert elsewhere.stop() == 0
    finally:
        if elsewhere.process is not None and elsewhere.process.poll() is None:
            elsewhere.kill()


def test_blobs_elsewhere_are_held_too(service: Served, server: Server, tmp_path: Path) -> None:
    """They stand in the folder named, which no other service gets, whatever its database."""
    blobs = tmp_path / "blobs"
    service.flags = ("--blobs", str(blobs))
    service.start()
    name = submit(service, ["one"])
    vectors(service, name)
    assert (blobs / name).is_dir()
    assert not (service.data / "batches").exists()
    other = server.database().render_as_string(hide_password=False)
    second = Served(tmp_path / "other", "--blobs", str(blobs), environ={"EMBATCH_DATABASE": other})
    assert second.launch().wait(60) == 75
    assert str(blobs) in second.tail()
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("database", "words"),
    [
        (f"postgresql://user:{PASSWORD}@localhost/name", "EMBATCH_DATABASE"),
        (f"postgresql://user@localhost/name?password={PASSWORD}", "EMBATCH_DATABASE"),
        (f"postgresql://user:a@{PASSWORD}@localhost/name", "%40"),
        (f"mysql://user:{PASSWORD}@localhost/name", "Postgres"),
        (f"postgresql://user:{PASSWORD}@localhost:port/name", "postgresql://USER@HOST:PORT/NAME"),
        (PASSWORD, "postgresql://USER@HOST:PORT/NAME"),
        ("postgresql://localhost", "postgresql://USER@HOST:PORT/NAME"),
        ("", "postgresql://USER@HOST:PORT/NAME"),
    ],
)
def test_an_address_that_cannot_be_is_refused_without_its_password(
    tmp_path: Path, database: str, words: str
) -> None:
    """As a flag even one that could be, for it would stand in the list of processes; nothing is made."""
    with pytest.raises(InvalidArgument) as refused:
        serve(ServeOptions(tmp_path / "data", database=database, port=0))
    assert words in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("more", [{"blobs": True}, {"private": True, "database": "postgresql://h/n"}])
def test_what_does_not_go_together_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    """A folder of blobs beside SQLite; a database for a private service."""
    if "blobs" in more:
        more = {"blobs": tmp_path / "blobs"}
    with pytest.raises(InvalidArgument):
        serve(ServeOptions(tmp_path / "data", port=0, **more))
    assert not (tmp_path / "data").exists()


def test_a_database_that_cannot_be_used_is_told_of_in_a_line(tmp_path: Path, server: Server) -> None:
    """No server, no such database, a role that may make no tables: what it said, without the password."""
    role = f"reader_{next(_NUMBERS)}"
    server.run(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    with socket.socket() as silent:  # bound and not listening: whoever comes is refused
        silent.bind(("127.0.0.1", 0))
        _check_refusals(tmp_path, server, role, silent.getsockname()[1])


def _check_refusals(tmp_path: Path, server: Server, role: str, port: int) -> None:
    known = server.database().set(username=role, password=PASSWORD)
    for url, words in (
        (f"postgresql://user:{PASSWORD}@127.0.0.1:{port}/name", "refused"),
        (known.set(database="nothing").render_as_string(hide_password=False), "does not exist"),
        (known.render_as_string(hide_password=False), "permission denied"),
    ):
        service = Served(tmp_path / "data", environ={"EMBATCH_DATABASE": url})
        assert service.launch().wait(60) == 1
        last = service.tail().splitlines()[-1]
        assert last.startswith("error: the database "), last
        assert words in last
        assert PASSWORD not in service.tail()
