"""What a private service does once its last client has gone, with real processes: it waits for the next one.

And whose next client it is: one that wants other vectors gets a service of its own, or is told why not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from serving import eventually, serving

from embatch import Client, FailedPrecondition, InvalidArgument, State
from embatch.client.ending import Ended, stop
from embatch.client.local import attach, begin

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 120.0
TOKENS = "EMBATCH_MICRO_BATCH_TOKENS"
"""A setting that changes vectors."""
LOOK_SECONDS = 2.0
UNUSED = "unused"
"""A model that nobody asks anything of: the service loads none."""


@pytest.fixture(autouse=True)
def lingering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let services linger for longer than a test takes, and end what is left."""
    monkeypatch.setenv("EMBATCH_LINGER_SECONDS", "300")
    yield
    stop(tmp_path, silence)


def silence() -> None:
    """Say nothing."""


def note(data: Path) -> dict[str, Any]:
    """Return what the service of a folder says of itself."""
    found: dict[str, Any] = json.loads((data / "service.json").read_bytes())
    return found


def rewrite(data: Path, **others: object) -> None:
    """Have the service of a folder say something else of itself; what is `None` it does not say."""
    about = note(data) | others
    said = {name: value for name, value in about.items() if value is not None or name not in others}
    (data / "service.json").write_text(json.dumps(said))


def events(log: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of a kind that a service has told of."""
    said = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [event for event in said if event["event"] == name]


def left(data: Path, times: int = 1) -> int:
    """Return the process id of a service once it lingers for so many times."""
    eventually(lambda: len(events(data / "service.log", "lingering")) >= times)
    pid = note(data)["pid"]
    assert isinstance(pid, int)
    return pid


def visited(data: Path) -> int:
    """Come, look and go; return the process id of the service."""
    with Client(data=data, model=UNUSED) as client:
        assert list(client.list_batches()) == []
        pid = note(data)["pid"]
    assert isinstance(pid, int)
    return pid


class Looked:
    """What a service and its engines have done so far, as the system counts it."""

    def __init__(self, service: int) -> None:
        self.ticks, self.wakeups = 0, 0
        for pid in family(service):
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.ticks += int(numbers[11]) + int(numbers[12])
            for thread in Path(f"/proc/{pid}/task").iterdir():
                words = (thread / "status").read_text().split()
                self.wakeups += int(words[words.index("voluntary_ctxt_switches:") + 1])


def family(service: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{service}/task").glob("*/children")
    return [service, *(int(pid) for child in children for pid in child.read_text().split())]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not count wake-ups")
def test_it_keeps_its_engines_and_does_nothing(tmp_path: Path) -> None:
    """The next client finds the same process, engines loaded; until then nothing runs and little wakes."""
    with Client(data=tmp_path) as client:
        client.embed_content("a text")
        eventually(lambda: len(events(tmp_path / "service.log", "engine ready")) == 2)
    pid = left(tmp_path)
    before = Looked(pid)
    time.sleep(LOOK_SECONDS)  # how often it wakes shows in time alone
    after = Looked(pid)
    assert after.ticks - before.ticks <= 2
    # A look at the engines, a sign of life of each, one last sweep. An idle HTTP server alone takes twenty.
    assert after.wakeups - before.wakeups <= 12
    begun = datetime.now(UTC)
    with Client(data=tmp_path) as client:
        client.embed_content("another text")
        assert note(tmp_path)["pid"] == pid
        transport = httpx2.HTTPTransport(uds=note(tmp_path)["socket"])
        with httpx2.Client(transport=transport, base_url="http://localhost") as web:

            def date() -> datetime:
                return parsedate_to_datetime(web.get("/healthz").headers["date"])

            eventually(lambda: date() > begun - timedelta(seconds=1))
    assert len(events(tmp_path / "service.log", "engine ready")) == 2


def test_what_waits_is_not_begun_before_the_next_client(tmp_path: Path) -> None:
    """The micro-batches under way are finished; the rest waits, and the next client has all of it."""
    texts = [f"text {number} ".ljust(10_000, "x") for number in range(400)]
    flags = ("--private", "--engine-option", "delay=0.05")
    with serving(tmp_path / "data", *flags) as service:
        with Client(data=service.data) as client:
            name = client.async_batch_embed_contents(texts, display_name="Left").name
            eventually(lambda: client.get_batch_status(name).batch_stats.uncommitted_request_count)
        eventually(lambda: events(service.log, "lingering"))
        transport = httpx2.HTTPTransport(uds=service.url.removeprefix("unix:"))
        with httpx2.Client(transport=transport, base_url="http://localhost", timeout=30) as web:

            def counts() -> tuple[int, int, int]:
                stats = web.get(f"/v1/{name}").json()["metadata"]["batchStats"]
                kinds = ("successful", "uncommitted", "pending")
                good, under_way, pending = (int(stats.get(f"{kind}RequestCount", 0)) for kind in kinds)
                return good, under_way, pending

            eventually(lambda: not counts()[1])
            stays = counts()
            assert stays[2] > 0
            time.sleep(0.3)  # of what does not happen there is no signal
            assert counts() == stays
        assert service.process is not None
        with Client(data=service.data) as client:
            assert client.await_batch_completion(name, poll_interval=0.05).state is State.COMPLETED
            assert note(service.data)["pid"] == service.process.pid


def test_clients_that_come_just_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves at once with each client: whatever the next one meets, it has a service in the end."""
    monkeypatch.setenv("EMBATCH_LINGER_SECONDS", "0")
    found = {visited(tmp_path) for _ in range(3)}
    assert len(found) > 1


def test_two_clients_at_once_come_just_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both get the same next service, or each one of its own, one after the other."""
    monkeypatch.setenv("EMBATCH_LINGER_SECONDS", "0")
    visited(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda _: visited(tmp_path), range(2)))


def test_a_service_that_ended_before_its_client_came_is_started_again(tmp_path: Path) -> None:
    """Somebody told it to end, or came first and went again: that is no failure to start."""
    begin(tmp_path, preload=False)
    eventually((tmp_path / "service.json").exists)
    assert stop(tmp_path, silence) is not None
    with Client(data=tmp_path, model=UNUSED) as client:
        assert list(client.list_batches()) == []


def test_killed_while_it_lingers_and_a_note_of_an_earlier_version(tmp_path: Path) -> None:
    """A killed one's note stays behind; the next client starts another service, whose note that is then.

    An earlier version says neither settings nor protocol: it is joined, and told to end all the same.
    """
    first = visited(tmp_path)
    left(tmp_path)
    os.kill(first, signal.SIGKILL)
    second = visited(tmp_path)
    assert second != first
    rewrite(tmp_path, **dict.fromkeys(("private", "wire", "installation", "vectors", "settings")))
    assert visited(tmp_path) == second
    assert stop(tmp_path, silence) == Ended(second, 0)
    assert stop(tmp_path, silence) is None


def test_a_client_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what differs where the service has clients, and ends one that only lingers.

    Settings that change no vector are no reason; those that cannot be are named.
    """
    with Client(data=tmp_path, model=UNUSED) as client:
        assert list(client.list_batches()) == []
        pid = note(tmp_path)["pid"]
        monkeypatch.setenv("EMBATCH_THREADS", "1")
        monkeypatch.setenv("EMBATCH_TEXT_BYTES", "1000")
        assert visited(tmp_path) == pid
        monkeypatch.setenv(TOKENS, "many")
        with Client(data=tmp_path, model=UNUSED) as other, pytest.raises(InvalidArgument, match=TOKENS):
            list(other.list_batches())
        monkeypatch.setenv(TOKENS, "2048")
        with Client(data=tmp_path, model=UNUSED) as other, pytest.raises(FailedPrecondition) as refused:
            list(other.list_batches())
        assert f"{TOKENS} is 4096 there and 2048 here" in refused.value.message
        assert f"embatch stop --data {tmp_path}" in refused.value.message
        assert list(client.list_batches()) == []
        assert note(tmp_path)["pid"] == pid
    left(tmp_path)
    assert visited(tmp_path) != pid
    assert note(tmp_path)["settings"][TOKENS] == "2048"


@pytest.mark.parametrize("setting", ["EMBATCH_LINGER_SECONDS", "EMBATCH_TEXT_BYTES"])
def test_nothing_is_ended_for_a_service_that_could_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """A setting that cannot be is named, and the service that lingers keeps its engines."""
    pid = visited(tmp_path)
    left(tmp_path)
    with monkeypatch.context() as wrong:
        wrong.setenv(TOKENS, "2048")
        wrong.setenv(setting, "-1")
        with Client(data=tmp_path, model=UNUSED) as other, pytest.raises(InvalidArgument, match=setting):
            list(other.list_batches())
    assert visited(tmp_path) == pid


VISIT = """
import sys
from embatch import Client, FailedPrecondition
with Client(data=sys.argv[1], model="unused") as client:
    try:
        print(len(list(client.list_batches())))
    except FailedPrecondition as refused:
        print(refused.message)
"""


def test_clients_of_differing_settings_at_once(tmp_path: Path) -> None:
    """One of them has its service, or one after the other has; whoever is refused is told what differs."""

    def visit(tokens: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", VISIT, str(tmp_path)],
            env={**os.environ, TOKENS: tokens},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(3) as threads:
        said = list(threads.map(visit, ("4096", "2048", "4096")))
    assert "0" in said
    assert all(line == "0" or f"{TOKENS} is" in line for line in said), said


def test_a_service_that_was_given_a_model_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like one that somebody runs with `embatch serve`: its settings are the business of who did."""
    monkeypatch.setenv(TOKENS, "2048")
    with serving(tmp_path / "data", "--private", environ={TOKENS: "1024"}) as service:
        assert visited(service.data) == note(service.data)["pid"]
    with serving(tmp_path / "other", environ={TOKENS: "1024"}) as service:
        assert visited(service.data) == note(service.data)["pid"]


def test_a_service_of_another_copy_or_protocol(tmp_path: Path) -> None:
    """An upgrade does not end what others use, unless it speaks otherwise; what only lingers gives way."""
    with Client(data=tmp_path, model=UNUSED) as client:
        assert list(client.list_batches()) == []
        rewrite(tmp_path, installation="another")
        pid = note(tmp_path)["pid"]
        assert visited(tmp_path) == pid
        rewrite(tmp_path, wire=2)
        with pytest.raises(FailedPrecondition, match="speaks version 2 of the protocol"):
            attach(tmp_path)
    left(tmp_path)
    assert visited(tmp_path) != pid


def test_a_service_of_another_protocol_that_somebody_runs(tmp_path: Path) -> None:
    """It is not asked to end, and not believed to understand."""
    with serving(tmp_path / "data") as service:
        rewrite(service.data, wire=2)
        with pytest.raises(FailedPrecondition, match="speaks version 2 of the protocol"):
            attach(service.data)
        assert service.process is not None
        assert service.process.poll() is None


def test_stop_says_how_to_end_what_clients_did_not_start(tmp_path: Path) -> None:
    """A service that somebody runs is left to them, on a port, on a socket, and of an earlier version."""
    for flags in ((), ("--socket", str(tmp_path / "s"))):
        with serving(tmp_path / "data", *flags) as service:
            assert service.process is not None
            for private in (False, None):
                rewrite(service.data, private=private)
                with pytest.raises(FailedPrecondition, match=f"kill {service.process.pid}"):
                    stop(service.data, silence)
            assert service.process.poll() is None
