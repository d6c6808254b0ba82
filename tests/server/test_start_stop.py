"""The service's start and its ends: readiness, drain, second signal, lock, private life, log."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving import MODEL, Served, await_final, connect, serving, short_folder

from embatch.errors import InvalidArgument
from embatch.server import ServeOptions, serve

SENTINEL = "do-not-log-this-text"


def body_of(texts: list[str]) -> dict[str, Any]:
    """Return the body of an inline submit."""
    requests = [{"request": {"content": {"parts": [{"text": text}]}}} for text in texts]
    return {"batch": {"displayName": SENTINEL, "inputConfig": {"requests": {"requests": requests}}}}


def submit(web: httpx2.Client, texts: list[str]) -> str:
    """Submit an inline batch and return its name."""
    reply = web.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body_of(texts))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["name"])


def processing(web: httpx2.Client, name: str) -> dict[str, Any]:
    """Poll a batch until it is being worked, and return its metadata."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metadata: dict[str, Any] = web.get(f"/v1/{name}").json()["metadata"]
        if metadata["state"] == "BATCH_STATE_RUNNING":
            return metadata
        time.sleep(0.02)  # a client has nothing else to wait for
    raise AssertionError("the batch is not begun")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used so far."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def claimed(data: Path) -> int:
    """Count claims in the database of a service that has ended."""
    with sqlite3.connect(f"file:{data / 'embatch.db'}?mode=ro", uri=True) as connection:
        found = connection.execute("select count(*) from shard where state = 'claimed'").fetchone()
    connection.close()
    return int(found[0])


def test_ready_in_seconds_with_one_holder_of_the_folder(tmp_path: Path) -> None:
    """Health says ok and no more; a second service leaves with 75 and names the first; nothing is public."""
    began = time.monotonic()
    with serving(tmp_path / "data") as service:
        took = time.monotonic() - began
        assert service.process is not None
        work = cpu_seconds(service.process.pid)
        with httpx2.Client(base_url=service.url, timeout=60) as web:
            health = web.get("/healthz")
            assert (health.status_code, health.json()) == (200, {"status": "ok"})
            about = json.loads((service.data / "service.json").read_text())
            assert health.headers["Embatch-Instance"] == about["instance"]
            assert len(about["instance"]) == 32
            assert web.get("/readyz").status_code == 200
            assert web.get("/private/attach").status_code == 404
            second = Served(service.data)
            assert second.launch().wait(60) == 75
            assert str(service.process.pid) in second.tail()
            assert service.url in second.tail()
            assert web.get("/healthz").status_code == 200
        # A request that never ends does not hold up the end for long.
        with connect(service.url) as stream:
            stream.sendall(b"POST /upload/v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            assert service.stop(within=25) == 0  # what is not read for 30 seconds is dropped anyway
    print(f"\nready after {took:.1f} s, {work:.1f} s of work")  # noqa: T201  (a figure to report)
    assert work < 10  # the time itself depends on what else the machine does
    assert not (tmp_path / "data" / "service.json").exists()
    for path in (tmp_path / "data").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_sigterm_under_load_drains_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """Exit 0, nothing stays claimed, and the rest is done after the next start."""
    flags = ("--host", "0.0.0.0", "--insecure-no-auth", "--engine-option", "delay=0.05")  # noqa: S104
    with serving(tmp_path / "data", *flags) as service:
        with httpx2.Client(base_url=service.url, timeout=30) as web:
            # Which names lead to an open address is the network's affair.
            assert web.get("/readyz", headers={"Host": "embed.example.org"}).status_code == 200
            name = submit(web, [f"{'many words in it ' * 40}{n}" for n in range(1500)])
            processing(web, name)
        began = time.monotonic()
        assert service.stop() == 0
        print(f"\ndrained in {time.monotonic() - began:.1f} s")  # noqa: T201  (a figure to report)
        assert claimed(service.data) == 0
        service.start()
        with httpx2.Client(base_url=service.url, timeout=30) as web:
            operation = await_final(web, name)
        assert operation["metadata"]["batchStats"]["successfulRequestCount"] == "1500"
        assert len(operation["response"]["inlinedResponses"]["inlinedResponses"]) == 1500


@pytest.mark.parametrize(
    ("held", "database"),
    [("batches/abc/payload-00000.arrow", None), ("files/token", b""), ("uploads/token", None)],
)
def test_beside_a_database_that_is_gone_nothing_is_removed(
    tmp_path: Path, held: str, database: bytes | None
) -> None:
    """A start that took what is there for left over would make an end of it."""
    service = Served(tmp_path / "data")
    place = service.data / held
    place.parent.mkdir(mode=0o700, parents=True)
    service.data.chmod(0o700)
    place.write_bytes(b"texts")
    if database is not None:
        (service.data / "embatch.db").write_bytes(database)
    assert service.launch().wait(timeout=120) == 1
    last = service.tail().splitlines()[-1]
    assert "embatch.db is missing or empty: restore it from a backup" in last
    assert place.read_bytes() == b"texts"


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Even with a micro-batch that takes minutes; the work waits for the next start."""
    with serving(tmp_path / "data", "--engine-option", "delay=200") as service:
        with httpx2.Client(base_url=service.url, timeout=30) as web:
            name = submit(web, ["slow"])
            processing(web, name)
        process = service.process
        assert process is not None
        deadline = time.monotonic() + 60
        process.send_signal(signal.SIGINT)
        while '"leaving"' not in service.tail():
            assert time.monotonic() < deadline, "it does not say that it leaves"
            time.sleep(0.02)  # a log gives no signal
        process.send_signal(signal.SIGTERM)
        # By itself it would have left 30 seconds later at the earliest, with another code.
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not (service.data / "service.json").exists()
        service.flags = ()
        service.start()
        with httpx2.Client(base_url=service.url, timeout=60) as web:
            assert await_final(web, name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


class Lasting(Served):
    """A service whose terminal may go."""

    @property
    def command(self) -> list[str]:
        """The command line of the service."""
        return ["nohup", *super().command]


@pytest.mark.parametrize("kind", [Served, Lasting])
def test_a_hang_up_ends_a_service_unless_it_was_started_by_nohup(tmp_path: Path, kind: type[Served]) -> None:
    """What the one who started it had ignored stays ignored; SIGTERM ends it all the same."""
    service = kind(tmp_path / "data")
    try:
        service.start()
        process = service.process
        assert process is not None
        process.send_signal(signal.SIGHUP)
        if kind is Lasting:
            with httpx2.Client(base_url=service.url, timeout=30) as web:
                assert web.get("/healthz").status_code == 200
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        (leaving,) = (event for event in service.events() if event["event"] == "leaving")
        assert leaving["signal"] == (signal.SIGTERM if kind is Lasting else signal.SIGHUP)
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104  (refused)
def test_an_address_others_can_reach_is_refused(tmp_path: Path, host: str) -> None:
    """Nothing is bound or made without keys, unless it is said aloud."""
    with pytest.raises(InvalidArgument, match="--insecure-no-auth"):
        serve(ServeOptions(data=tmp_path / "data", host=host, port=0))
    assert not (tmp_path / "data").exists()


def test_a_private_service_ends_with_its_last_client(tmp_path: Path) -> None:
    """Two attach; when both have gone it ends by itself and leaves nothing but the data.

    The folder's path is too long for a socket, which is no reason not to work in it.
    """
    deep = tmp_path / ("d" * 100) / "data"
    deep.parent.mkdir()
    with serving(deep, "--private") as service:
        process = service.process
        assert process is not None
        about = json.loads((service.data / "service.json").read_text())
        assert (about["pid"], about["url"]) == (process.pid, None)
        assert Path(about["socket"]).stat().st_mode & 0o077 == 0
        request = b"GET /private/attach HTTP/1.1\r\nHost: embatch\r\n\r\n"
        with connect(service.url) as one, connect(service.url) as two:
            for stream in (one, two):
                stream.sendall(request)
                assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
            began = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - began > 1.5  # a client that comes at once would have found it
    assert {path.name for path in deep.iterdir()} >= {"embatch.db", "lock"}
    assert not Path(about["socket"]).exists()
    assert not (deep / "service.json").exists()


def test_the_log_is_json_lines_without_texts(tmp_path: Path) -> None:
    """Whatever a client sends, in whatever place, the log has routes, ids and sizes (I18)."""
    with short_folder() as folder, serving(tmp_path / "data", "--socket", str(folder / "s")) as service:
        transport = httpx2.HTTPTransport(uds=str(folder / "s"))
        with httpx2.Client(transport=transport, base_url="http://embatch", timeout=30) as web:
            await_final(web, submit(web, [SENTINEL]))
            embed = f"/v1/models/{MODEL}:embedContent"
            web.post(embed, json={"content": {"parts": [{"text": SENTINEL}]}})
            web.post(embed, json={"content": SENTINEL, SENTINEL: SENTINEL})
            web.post(embed, content=SENTINEL, headers={"Content-Type": "application/json"})
            web.get(f"/v1/batches/{SENTINEL}?key={SENTINEL}", headers={"x-goog-api-key": SENTINEL})
            web.get(f"/{SENTINEL}")
            web.request(SENTINEL.upper()[:10], "/v1/batches")
            web.post("/upload/v1/files", content=SENTINEL, headers={"Content-Type": "text/plain"})
            web.post(
                "/upload/v1/files", json={"file": {SENTINEL: 1}}, headers={"X-Goog-Upload-Command": SENTINEL}
            )
        with connect(service.url) as stream:
            stream.sendall(f"{SENTINEL}\r\n\r\n".encode())
            stream.recv(100)
        assert service.stop() == 0
        events = service.events()
    assert SENTINEL not in service.log.read_text()
    requests = [event for event in events if event["event"] == "request"]
    assert len(requests) >= 9
    assert all(event["status"] != 500 for event in requests)
    assert {event["event"] for event in events} >= {"listening", "leaving", "ended"}


def test_broken_storage_ends_the_service_with_an_error(tmp_path: Path) -> None:
    """A commit that fails in the file system is unknown: 503, exit 74, and the next start works."""
    with serving(tmp_path / "data") as service:
        process = service.process
        assert process is not None
        with httpx2.Client(base_url=service.url, timeout=30) as web:
            await_final(web, submit(web, ["a text"]))
            fail_writes(process.pid, (service.data / "embatch.db-wal").stat().st_size)
            reply = web.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body_of(["another"]))
            assert reply.status_code == 503
            assert reply.json()["error"]["status"] == "UNAVAILABLE"
        assert process.wait(60) == 74
        service.start()
        with httpx2.Client(base_url=service.url, timeout=30) as web:
            await_final(web, submit(web, ["a text"]))


def fail_writes(pid: int, size: int) -> None:
    """Let every write of a process beyond this size fail, as a broken disk would."""
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
