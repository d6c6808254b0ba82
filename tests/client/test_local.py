"""The local target with real processes: one service for all clients of a folder, as long as there are any."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from serving import eventually, serving

from embatch import AsyncClient, Batch, Client, FailedPrecondition, InvalidArgument, State, Unavailable
from embatch.client.cpu_time import service_cpu_seconds
from embatch.client.local import attach, default_data_folder
from embatch.server.folder import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 120.0
"""Generous: the machine may be busy. A service ends two seconds after its last client."""

# No main guard: a start method that imports the script again would start clients without end.
SCRIPT = """
import sys
from embatch import Client
client = Client(data=sys.argv[1], model="unused")
print(sum(1 for _ in client.list_batches()), client._connection.attachment.place.pid, flush=True)
sys.stdin.readline()
print(sum(1 for _ in client.list_batches()), flush=True)
sys.stdin.readline()
"""


@contextmanager
def script(data: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a client in a process of its own; yield it and the service's process id once it is attached."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def service_pid(data: Path) -> int:
    """Return the process id of the service of a folder."""
    pid = json.loads((data / "service.json").read_bytes())["pid"]
    assert isinstance(pid, int)
    return pid


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        os.kill(pid, 0)
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except ProcessLookupError:
        return True
    return state.stdout.strip()[:1] in ("", "Z")


def test_two_processes_share_one_service_which_ends_after_the_last(tmp_path: Path) -> None:
    """The second client joins; the first one's end leaves the service to it; its kill -9 ends the service."""
    with script(tmp_path) as (first, pid), script(tmp_path) as (second, same):
        assert same == pid == service_pid(tmp_path)
        first.communicate("\n\n")
        assert first.returncode == 0
        assert second.stdin is not None
        assert second.stdout is not None
        second.stdin.write("\n")
        second.stdin.flush()
        assert second.stdout.readline().strip() == "0"
        assert not gone(pid)
        second.kill()
        eventually(lambda: gone(pid))
    assert (tmp_path.stat().st_mode & 0o777, (tmp_path / "service.log").stat().st_mode & 0o777)[1] == 0o600


def test_a_killed_service_loses_nothing_and_the_next_client_goes_on(tmp_path: Path) -> None:
    """Killed while PROCESSING: the same client starts another one, and the next client gets the results."""
    texts = [f"sentence number {number}" for number in range(1_000)]

    def kill_while_processing(batch: Batch) -> None:
        if batch.state is State.PROCESSING:
            os.kill(service_pid(tmp_path), signal.SIGKILL)
            raise InterruptedError

    with Client(data=tmp_path) as client:
        name = client.async_batch_embed_contents(texts, display_name="Survivor").name
        first = service_pid(tmp_path)
        with pytest.raises(InterruptedError):
            client.await_batch_completion(name, poll_interval=0.05, on_progress=kill_while_processing)
        assert not client.get_batch_status(name).done
        assert service_pid(tmp_path) != first
    with Client(data=tmp_path) as client:
        batch = client.await_batch_completion(name, poll_interval=0.05)
        result = client.get_batch_embeddings(batch)
        spent = service_cpu_seconds(client)
    assert batch.state is State.COMPLETED
    assert result.to_numpy().shape == (1_000, 384)
    assert not result.failed_responses
    assert spent is None or spent > 0


FORK = """
import os, sys
from embatch import Client
client = Client(data=sys.argv[1], model="unused")
print([*client.list_batches()])
child = os.fork()
if child == 0:
    before = client._connection.attachment.place.pid
    assert not client._connection.attachment.alive
    print([*client.list_batches()], client._connection.attachment.place.pid == before, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print([*client.list_batches()])
client.close()
"""


def test_a_forked_child_attaches_for_itself(tmp_path: Path) -> None:
    """It neither writes into its parent's connection nor keeps the service alive in its parent's name."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.stdout.splitlines() == ["[]", "[] True", "[]"], done.stderr
    eventually(lambda: not (tmp_path / "service.json").exists())


def test_asyncio_starts_the_service_off_the_loop(tmp_path: Path) -> None:
    """While the service starts, the loop goes on with other things; twenty first calls start one service."""

    async def main() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with AsyncClient(data=tmp_path, model="unused") as client:

            async def count() -> int:
                return len([batch async for batch in client.list_batches()])

            counts = await asyncio.gather(*(count() for _ in range(20)))
        ticking.cancel()
        return sum(counts), ticks

    count, ticks = asyncio.run(main())
    assert count == 0
    assert ticks > 10
    eventually(lambda: not (tmp_path / "service.json").exists())


def test_a_service_that_somebody_runs_on_the_folder_is_joined(tmp_path: Path) -> None:
    """`embatch serve --data` on a port: the client finds it through the folder and leaves it running."""
    with serving(tmp_path / "data") as service:
        assert service.process is not None
        for _ in range(2):
            with Client(data=tmp_path / "data") as client:
                assert client.embed_content("text").dimensionality == 64, "the hashing engine answers"
                batch = client.async_batch_embed_contents(["a"], display_name="Test")
                assert client.await_batch_completion(batch, poll_interval=0.01).state is State.COMPLETED
        assert service.process.poll() is None
        assert service_pid(tmp_path / "data") == service.process.pid


class Stranger(http.server.BaseHTTPRequestHandler):
    """Somebody else's server, which answers everything and remembers what it was told."""

    told: ClassVar[list[str]] = []
    headers_said: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        """Answer, and remember."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.told.append(f"{self.requestline} {body!r}")
        self.send_response(200)
        for name, value in self.headers_said.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815  (the name that http.server looks for)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def stranger(**headers: str) -> Iterator[tuple[str, list[str]]]:
    """Run one; yield its address and what it is told."""
    kind = type("Other", (Stranger,), {"told": [], "headers_said": headers})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", kind.told  # type: ignore[attr-defined]  # as above
        finally:
            server.shutdown()


def note(data: Path, url: str, **more: object) -> None:
    """Leave a note as a service does."""
    (data / "service.json").write_text(json.dumps({"pid": os.getpid(), "socket": None, "url": url, **more}))


class Started(Exception):
    """A service of one's own was to be started."""


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start none."""

    def start(data: Path, *, preload: bool) -> None:
        raise Started(data)

    monkeypatch.setattr("embatch.client.local.start", start)


@pytest.mark.usefixtures("starting")
@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["first", "ours"])
def test_a_stranger_at_the_port_of_a_killed_service_is_told_nothing(tmp_path: Path, pid: int) -> None:
    """Its note is still there and the process id is somebody's again; but nobody holds the folder."""
    with stranger() as (url, told):
        (tmp_path / "lock").write_text(f"{pid}\n")
        note(tmp_path, url, pid=pid)
        with Client(data=tmp_path) as client, pytest.raises(Started):
            client.async_batch_embed_contents(["a secret text"], display_name="Test")
        assert told == []


@pytest.mark.usefixtures("starting")
@pytest.mark.parametrize("headers", [{}, {"Embatch-Instance": "another"}])
def test_who_does_not_answer_by_the_name_in_the_note_is_not_joined(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """Though the folder is held: it is asked how it does and no more."""
    with locked(tmp_path), stranger(**headers) as (url, told):
        note(tmp_path, url, instance="the service")
        with pytest.raises(Started):
            attach(tmp_path)
        note(tmp_path, url, instance="the service", pid=1)  # of a service before the one that holds it
        with pytest.raises(Started):
            attach(tmp_path)
        assert told == ["GET /healthz HTTP/1.1 b''"]


@pytest.mark.parametrize("named", [{"instance": "the service"}, {}])
def test_a_service_of_an_earlier_version_has_no_name_and_is_joined(
    tmp_path: Path, named: dict[str, str]
) -> None:
    """That it holds the folder must do; one that has a name answers by it."""
    said = {"Embatch-Instance": "the service"} if named else {}
    with locked(tmp_path), stranger(**said) as (url, _):
        note(tmp_path, url, **named)
        assert attach(tmp_path).place.url == url


def test_a_service_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log's last lines stand in the error, with the path of the log."""
    monkeypatch.setenv("EMBATCH_INLINE_BYTES", "many")
    with Client(data=tmp_path) as client, pytest.raises(Unavailable) as refused:
        client.get_batch_status("batches/x")
    assert "EMBATCH_INLINE_BYTES must be a number" in refused.value.message
    assert str(tmp_path / "service.log") in refused.value.message


def test_without_the_extra_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base installation has the client and no service."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with Client(data=tmp_path) as client, pytest.raises(FailedPrecondition) as refused:
        client.get_batch_status("batches/x")
    assert 'pip install "embatch[local]"' in refused.value.message


def test_a_data_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    """A file stands in its place."""
    (tmp_path / "file").write_text("")
    with Client(data=tmp_path / "file") as client, pytest.raises(InvalidArgument, match="data folder"):
        client.get_batch_status("batches/x")


def test_the_default_folder() -> None:
    """EMBATCH_DATA moves it."""
    assert str(default_data_folder({"EMBATCH_DATA": "/elsewhere"})) == "/elsewhere"
    assert default_data_folder({}).name == "embatch"


def test_tests_leave_the_users_own_folder_alone() -> None:
    """A test that names no data folder finds a temporary one, and so does a command that it starts."""
    shown = "from embatch.client.local import default_data_folder as folder; print(folder(), folder({}))"
    said = subprocess.run([sys.executable, "-c", shown], capture_output=True, check=True, text=True).stdout
    assert said.split() == [str(default_data_folder()), str(default_data_folder({}))]
    assert {Path(place).parent.name.rpartition("-")[0] for place in said.split()} == {"embatch-nobodys"}


def test_nothing_is_started_before_the_first_call(tmp_path: Path) -> None:
    """Making a client costs nothing."""
    with Client(data=tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
