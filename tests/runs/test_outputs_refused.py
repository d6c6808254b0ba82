"""What cannot be an output is known before anything is embedded: where it is, what is wrong, what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument, Unavailable
from embatch.runs.locations import resolve, shown
from embatch.runs.sinks import Layout, check_sink, open_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["stores"]


def refusal(place: str, ids: Any = None, dimensions: tuple[int, ...] = ()) -> str:
    """Return what is said of a place: one line about the output."""
    with pytest.raises(InvalidArgument) as caught:
        check_sink(place, dimensions, Dtype.FLOAT32, ids)
    assert caught.value.field == "--out"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl", ".npy", ".lance"])
def test_a_link_is_no_output(tmp_path: Path, ending: str) -> None:
    """An output would take its place: whatever it leads to is named, and stays as it is."""
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    for to in ("target", "nowhere", "/dev/null"):
        link = tmp_path / f"out{ending}"
        link.symlink_to(to)
        assert f"is a link to {to}" in refusal(str(link))
        link.unlink()
    (tmp_path / f"out{ending}{'.partial.arrow' if ending == '.lance' else ''}.partial").symlink_to("target")
    assert "is a link to target" in refusal(str(tmp_path / f"out{ending}"))
    assert target.read_bytes() == b"mine"
    assert refusal(str(tmp_path / f"in{ending}" / f"out{ending}")).startswith("there is no folder")


@pytest.mark.parametrize("name", ["out.rejected.jsonl", "out.jsonl.partial", "out.rejected.jsonl.partial"])
def test_nor_is_one_at_a_name_that_the_run_may_need(tmp_path: Path, name: str) -> None:
    """Found at the end, it would have been followed or lost."""
    (tmp_path / name).symlink_to("elsewhere")
    assert f"{name} is a link to elsewhere" in refusal(str(tmp_path / "out.jsonl"))


def test_a_link_that_appears_later_is_not_followed(tmp_path: Path) -> None:
    """Somebody in a shared folder would have another file emptied."""
    (tmp_path / "victim").write_bytes(b"theirs")
    (tmp_path / "out.jsonl.partial").symlink_to("victim")
    sink = open_sink(str(tmp_path / "out.jsonl"), Layout(pa.int64(), 2), {})
    sink.write(0, pa.array([1]), np.ones((1, 2), np.float32), [None])
    sink.finish()
    assert (tmp_path / "victim").read_bytes() == b"theirs"


def test_a_lance_dataset_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    """It is written into, and not replaced."""
    (tmp_path / "far").mkdir()
    (tmp_path / "out.lance").symlink_to("far")
    place = str(tmp_path / "out.lance")
    check_sink(place, (), Dtype.FLOAT32)
    sink = open_sink(place, Layout(pa.int64(), 2), {})
    sink.write(0, pa.array([1]), np.ones((1, 2), np.float32), [None])
    assert sink.finish().bytes
    assert (tmp_path / "out.lance").is_symlink()
    assert list((tmp_path / "far").iterdir())


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".npy", ".lance"])
def test_what_is_no_file_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Nor a pipe or socket: nothing could appear there at once."""
    os.mkfifo(tmp_path / f"pipe{ending}")
    assert "is a pipe: give the output another name" in refusal(str(tmp_path / f"pipe{ending}"))
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # its path may be too long for a socket
        server.bind(f"socket{ending}")
        assert "is a socket" in refusal(str(tmp_path / f"socket{ending}"))
    (tmp_path / f"folder{ending}").mkdir()
    if ending != ".lance":
        assert "is a folder" in refusal(str(tmp_path / f"folder{ending}"))


@pytest.mark.parametrize("place", ["-", "/dev/stdout", "/dev/null", "/dev/fd/1"])
def test_a_stream_is_no_output(place: str) -> None:
    """It says what is one."""
    assert "is no file, and an output appears whole or not at all: give a path" in refusal(place)


def test_a_folder_must_take_files(tmp_path: Path) -> None:
    """One that is not there, is a file, or takes nothing; a name that is too long with what stands beside."""
    (tmp_path / "file").touch()
    assert "there is no folder" in refusal(str(tmp_path / "file" / "out.jsonl"))
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "there is no folder" in refusal(str(tmp_path / "dangling" / "out.jsonl"))
    assert "too long" in refusal(str(tmp_path / f"{'n' * 244}.jsonl"))
    assert "too long" in refusal(str(tmp_path / f"{'n' * 300}.jsonl"))
    if os.geteuid():  # root may write there
        tmp_path.chmod(0o500)
        assert "cannot be written to (Permission denied)" in refusal(str(tmp_path / "out.jsonl"))
        tmp_path.chmod(0o700)
    if Path("/proc/self").is_dir():  # nobody may write here, whatever its permissions say
        assert "/proc cannot be written to (" in refusal("/proc/out.jsonl")


@pytest.mark.parametrize(("store", "scheme"), [("s3", "s3"), ("gcs", "gs")])
def test_a_bucket_must_be_there(store: str, scheme: str, request: pytest.FixtureRequest) -> None:
    """What its store does not know is no place to find out at the end."""
    check_sink(f"{request.getfixturevalue(store)}/out.parquet", (), Dtype.FLOAT32)
    said = refusal(f"{scheme}://nobody/out.parquet")
    assert said == f"{scheme}://nobody/out.parquet: there is no bucket nobody; make it, or name another"
    assert "written to a folder here" in refusal(f"{scheme}://bucket/out.lance")


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to look at; keys in an address are shown to nobody."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    said = refusal("s3://KEY:SECRET@bucket/out.parquet")
    assert said.startswith("s3://bucket/out.parquet cannot be reached: ")
    assert "check the keys" in said
    assert "SECRET" not in said
    with pytest.raises((InvalidArgument, Unavailable)) as caught:
        resolve("s3://KEY:SECRET@bucket/x?nonsense=1")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("out/a@b:c.jsonl", "out/a@b:c.jsonl"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://key:se@cret@bucket/a", "s3://bucket/a"),
        ("qdrant://key@host:6333/x", "qdrant://host:6333/x"),
        ("s3://key:secret@bucket", "s3://bucket"),
        ("postgresql://host/db?sslpassword=x&table=t", "postgresql://host/db?sslpassword=***&table=t"),
    ],
)
def test_no_secret_of_an_address_is_shown(place: str, words: str) -> None:
    """A path is left as it is."""
    assert shown(place) == words


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that lets nobody in; its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401, "Unauthorized")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_qdrant_must_answer(tmp_path: Path, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address and what to do stand in one line; a proxy has no part in it."""
    for name in ("http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:2")
    said = refusal("qdrant://127.0.0.1:1/texts")
    assert said == (
        "qdrant://127.0.0.1:1/texts cannot be reached: [Errno 111] Connection refused; start Qdrant there, "
        "or mend the address; qdrant+file:///folder/NAME needs no server"
    )
    assert "(through the proxy that HTTP_PROXY names): " in refusal("qdrant://qdrant.invalid:6333/texts")
    assert "Unauthorized; give its key in QDRANT_API_KEY" in refusal(f"qdrant://{refusing}/texts")
    assert "cannot be reached" in refusal("qdrant://127.0.0.1:port/texts")
    (tmp_path / "file").touch()
    assert "name another" in refusal(f"qdrant+file://{tmp_path}/file/texts")


def test_a_collection_of_other_vectors_is_refused(tmp_path: Path) -> None:
    """And one of its own is not, of as many dimensions as are asked for."""
    place = f"qdrant+file://{tmp_path}/store/texts"
    open_sink(place, Layout(pa.int64(), 8), {}).finish()
    check_sink(place, (), Dtype.FLOAT32)
    check_sink(place, (8,), Dtype.FLOAT32)
    assert "embedding of 8 dimensions; the run writes embedding of 4" in refusal(place, None, (4,))
    assert "embedding_4 of 4 dimensions, embedding_8" in refusal(place, None, (4, 8))
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
    try:  # in a process of its own, for the library never closes the lock that it did not get
        script = f"from test_outputs_refused import refusal; print(refusal({place!r}))"
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
        assert "already accessed" in done.stdout
    finally:
        client.close()


def test_postgres_must_let_us_in(postgres: str) -> None:
    """Its address without a password, what it says, and what to do."""
    said = refusal("postgresql://user:secret@127.0.0.1:1/db?table=t")
    assert said.startswith("postgresql://user@127.0.0.1:1/db cannot be reached: Connection refused; start it")
    host = postgres.partition("?")[2]
    said = refusal(f"postgresql://postgres:secret@/none?{host}&table=t")
    assert 'database "none" does not exist; create it' in said
    assert "secret" not in said
    assert 'role "nobody" does not exist' in refusal(f"postgresql://nobody@/postgres?{host}&table=t")
    assert "secret" not in refusal("postgresql://user:sec%zzsecret@127.0.0.1:1/db?table=t")
    assert "secret" not in refusal("postgresql://127.0.0.1:1/db?password=secret&table=t")
    assert "invalid port" in refusal("postgresql://user:secret@127.0.0.1:99999/db?table=t")
    assert "63 bytes" in refusal(f"{postgres}&table={'t' * 64}")
    assert "63 bytes" in refusal(f"{postgres}&table=public.{'é' * 32}")
    check_sink(f"{postgres}&table={'t' * 63}", (), Dtype.FLOAT32)


def test_postgres_must_take_the_table(postgres: str) -> None:
    """What its user may not do, and a table that was made otherwise, is said before anything is spent."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE TABLE other (row bigint PRIMARY KEY, id text, note text)")
        connection.execute("CREATE TABLE keyless (row bigint, id bigint, embedding vector, error text)")
        connection.execute("CREATE USER limited")
        check_sink(f"{postgres}&table=fresh", (8,), Dtype.FLOAT32, pa.uint64())
        assert connection.execute("SELECT to_regclass('fresh')").fetchone() == (None,)
        open_sink(f"{postgres}&table=mine", Layout(pa.string(), 8), {}).finish(rows=0)
        connection.execute("ALTER TABLE mine ADD COLUMN note text DEFAULT 'n'")
    check_sink(f"{postgres}&table=mine", (), Dtype.FLOAT32, pa.string())
    check_sink(f"{postgres}&table=mine", (8,), Dtype.FLOAT32, pa.binary())
    assert "column 'id' is text, and the run writes bigint" in refusal(f"{postgres}&table=mine", pa.int64())
    said = refusal(f"{postgres}&table=mine", pa.string(), (4,))
    assert "column 'embedding' is vector(8), and the run writes vector(4): drop that table" in said
    assert "column 'embedding' is not there" in refusal(f"{postgres}&table=other", pa.string())
    assert "cannot be written to" in refusal(f"{postgres}&table=keyless")
    assert "does not exist" in refusal(f"{postgres}&table=noschema.t")
    limited = postgres.replace("postgres:@", "limited@")
    assert "permission denied for schema public" in refusal(f"{limited}&table=fresh")
    assert "permission denied for table mine" in refusal(f"{limited}&table=mine", pa.string())
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON mine TO limited")
    check_sink(f"{limited}&table=mine", (), Dtype.FLOAT32, pa.string())
    open_sink(f"{limited}&table=mine", Layout(pa.string(), 8), {}).finish(rows=0)


def test_a_table_may_be_called_as_the_place_for_a_block(postgres: str) -> None:
    """It would have been taken for that one, and its rows gone with the connection."""
    import psycopg

    sink = open_sink(f"{postgres}&table=embatch_block", Layout(pa.int64(), 2), {})
    sink.write(0, pa.array([7]), np.ones((1, 2), np.float32), [None])
    sink.finish(rows=1)
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT row, id FROM embatch_block").fetchall() == [(0, 7)]
