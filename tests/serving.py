"""Real services for tests: `embatch serve` in a process group of its own, to be stopped, killed, restarted.

    with serving(folder, "--engine-option", "delay=0.01") as service:
        httpx2.get(f"{service.url}/healthz")
        service.kill()       # kill -9 of the whole group: service and engines at once
        service.start()      # the same folder again

The hashing engine serves unless the flags name another one. Everything here needs a real process; tests that
do not should use the app in-process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import httpx2

MODEL = "test-model"
READY_SECONDS = 60.0
"""Generous: the machine may be busy with other tests. A start takes about three seconds."""
DEADLINE = 120.0
"""Seconds in which what shall come to pass does."""


def eventually(condition: Callable[[], object]) -> None:
    """Wait for something of another process that no handle tells."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class Served:
    """One data folder and the service that runs on it, if any."""

    def __init__(
        self, data: Path, *flags: str, environ: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.data = data
        self.flags = flags
        self.environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Base address once started, without a slash at the end: `http://127.0.0.1:PORT`, or `unix:PATH`."""
        self.log = log or data.with_name(data.name + ".log")
        """What the services on this folder wrote to standard error, one after the other."""

    @property
    def command(self) -> list[str]:
        """The command line of the service."""
        engine = () if "--engine" in self.flags else ("--engine", "hashing", "--model", MODEL)
        place = () if {"--port", "--socket", "--private"} & set(self.flags) else ("--port", "0")
        return [
            sys.executable,
            "-m",
            "embatch",
            "serve",
            "--data",
            str(self.data),
            *engine,
            *place,
            *self.flags,
        ]

    def start(self) -> None:
        """Start and return when the service accepts connections."""
        self.launch()
        self.await_ready()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start without waiting."""
        assert self.process is None or self.process.poll() is not None, "a service is running already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
                start_new_session=True,
            )
        return self.process

    def await_ready(self) -> None:
        """Return when the service launched last accepts connections; fail if it ends before."""
        process = self.process
        assert process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the service ended with {process.returncode}:\n{self.tail()}"
            # A service.json of a killed predecessor stays behind: only the one of this process counts.
            with contextlib.suppress(OSError, ValueError):
                about = json.loads((self.data / "service.json").read_text())
                if about["pid"] == process.pid:
                    self.url = about["url"] or f"unix:{about['socket']}"
                    connect(self.url).close()
                    return
            # There is nothing to await before the service listens; this is the wait itself, not a sleep.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
        raise AssertionError(f"not ready within {READY_SECONDS:.0f} s:\n{self.tail()}")

    def kill(self) -> None:
        """Kill -9 the whole process group and return when the service itself is gone."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=120)

    def stop(self, number: int = signal.SIGTERM, *, within: float = 60.0) -> int:
        """Send a signal to the service alone and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=within)

    def tail(self, size: int = 4000) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def events(self) -> list[dict[str, object]]:
        """Return the log's lines; a line that is no JSON object fails."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def await_final(
    web: httpx2.Client, name: str, *, version: str = "v1", within: float = 120.0
) -> dict[str, Any]:
    """Poll a batch until it is final and return its operation; a client has nothing else to wait for."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        reply = web.get(f"/{version}/{name}")
        assert reply.status_code == 200, reply.text
        operation: dict[str, Any] = reply.json()
        if operation.get("done"):
            return operation
        time.sleep(0.02)
    raise AssertionError(f"{name} is not final within {within:.0f} s")


def connect(url: str) -> socket.socket:
    """Open a plain connection to a service's address."""
    if url.startswith("unix:"):
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.settimeout(30)
            stream.connect(url.removeprefix("unix:"))
        except OSError:
            stream.close()
            raise
        return stream
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=30)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for a socket in it, wherever temporary files are kept."""
    with tempfile.TemporaryDirectory(prefix="embatch-", dir="/tmp") as folder:
        yield Path(folder)


@contextlib.contextmanager
def serving(
    data: Path, *flags: str, environ: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[Served]:
    """Run `embatch serve` on a folder; at the end its whole group is killed if it still runs."""
    service = Served(data, *flags, environ=environ, log=log)
    try:
        service.start()
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()
