"""A service of its own for a benchmark: on an empty data folder, and what it and its engines spend."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS: Final = 60.0
LINGER: Final = "EMBATCH_LINGER_SECONDS"
"""How long a private service stays after its last client: each benchmark says it, for what stays may be in
the way of what is measured next."""


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds, user and system, ended children included."""

    service: float
    """Of the process that answers and keeps the store."""
    engines: float
    """Of all processes below it."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.service + self.engines

    def __sub__(self, before: Spent) -> Spent:
        """Return what was spent since."""
        return Spent(self.service - before.service, self.engines - before.engines)


@dataclass(frozen=True, slots=True)
class Served:
    """A running service."""

    pid: int
    data: Path
    url: str | None
    """`None`: it listens on its data folder's socket, as the local target's service does."""
    log: Path

    def client(self) -> Client:
        """Return a client of it, to be closed."""
        return Client(data=self.data) if self.url is None else Client(self.url)

    def engines(self) -> list[str]:
        """Return what every engine process said once it was ready, such as `amx, bf16, 2 streams`."""
        said = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        ready = (event for event in said if event.get("event") == "engine ready")
        return [f"{one['engine']}, {one['precision']}, {one['streams']} streams" for one in ready]

    def spent(self) -> Spent:
        """Return the CPU seconds so far; needs /proc.

        An engine process that ends moves from `engines` to `service`: measure between two moments without.
        """
        found = _processes()
        own = found[self.pid][1]
        family, total = [self.pid], 0.0
        for pid in family:
            total += found[pid][1]
            family += [child for child, (parent, _) in found.items() if parent == pid]
        return Spent(own, total - own)

    def engine_seconds(self) -> dict[int, float]:
        """Return the CPU seconds of each engine process so far, by its number; needs /proc."""
        return {pid: spent for pid, (parent, spent) in _processes().items() if parent == self.pid}

    def database_bytes(self) -> int:
        """Return the bytes of the database's pages in use, those not yet checkpointed included."""
        with closing(sqlite3.connect(f"file:{self.data / 'embatch.db'}?mode=ro", uri=True)) as database:
            pages, free, size = (
                int(database.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size


@contextmanager
def serving(
    flags: Sequence[str] = (),
    *,
    private: bool = False,
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "embatch"),
) -> Iterator[Served]:
    """Run `embatch serve` on a data folder of its own; it and the folder are gone at the end.

    Args:
        flags: what else the command is given, such as `--engine hashing`.
        private: listen on the folder's socket, as the service of the local target, and end with its clients.
        environ: settings on top of this process's environment.
        program: what Python runs as the command line.

    Raises:
        RuntimeError: it does not listen in time; what it said is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="embatch-bench-") as folder:
        data, log = Path(folder, "data"), Path(folder, "log")
        port = free_port()
        way = ["--private"] if private else ["--port", str(port)]
        command = [sys.executable, *program, "serve", "--data", str(data), *way, *flags]
        with (
            log.open("wb") as said,
            subprocess.Popen(
                command, env={**os.environ, LINGER: "60", **(environ or {})}, stdout=said, stderr=said
            ) as process,
        ):
            try:
                _await(process, data / "service.json", log)
                yield Served(process.pid, data, None if private else f"http://127.0.0.1:{port}", log)
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10.0)
                process.kill()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _await(process: subprocess.Popen[bytes], note: Path, log: Path) -> None:
    """Return once the service has written where it listens."""
    deadline = time.monotonic() + START_SECONDS
    while not note.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service does not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _processes() -> dict[int, tuple[int, float]]:
    """Return parent and CPU seconds of every process by its number."""
    tick = os.sysconf("SC_CLK_TCK")
    found: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            numbers = (entry / "stat").read_text().rpartition(")")[2].split()
            # After the name: state, parent, …; 11 to 14 are user and system time, own and of ended children.
            found[int(entry.name)] = (int(numbers[1]), sum(map(int, numbers[11:15])) / tick)
    return found
