"""What a service still does under attack: how late its event loop is, and how long health takes.

    .venv/bin/python benchmarks/attack.py [--seconds 4] [--only NAME] [--json FILE]

Each attack sends what costs the reader most, again and again for some seconds, from connections of its own:
texts of quotes, fields given twice, lists of nothing, bodies that do not end. Meanwhile health is asked
twenty times a second over another connection, and the service's event loop is sampled every 10 ms
(`probed.py`): a sample is late for as long as anything else held the loop, or Python's lock. `memory` is the
most that the service's process held. All of it runs on one machine, which the attackers share with the
service: `idle` says how late the loop is without them.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.polling import percentiles
from benchmarks.probed import LAGS, SAMPLE
from benchmarks.served import Served, serving

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL: Final = "hashing"
FLAGS: Final = ("--model", MODEL, "--engine", "hashing", "--engine-option", "dimensions=16")
LARGE: Final = 20 << 20
"""What a body may have."""
HEALTH_SECONDS: Final = 0.05
SUBMIT: Final = f"POST /v1/models/{MODEL}:asyncBatchEmbedContent"
EMBED: Final = f"POST /v1/models/{MODEL}:embedContent"
COUNT: Final = f"POST /v1/models/{MODEL}:countTokens"
UPDATE: Final = "PATCH /v1/batches/nothing:updateEmbedContentBatch"
LIST: Final = b'{"batch":{"inputConfig":{"requests":{"requests":['
END: Final = b"]}}}}"


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of request, sent again and again."""

    make: Callable[[], bytes]
    line: str = SUBMIT
    senders: int = 4
    stays: bool = True
    """Whether a sender waits for its answer, or goes as soon as all is sent."""
    announced: int = 0
    """Bytes that the head promises beyond those that come."""
    most: int = 1_000_000
    """Requests after which it is over, however long it took: a flood is another attack."""


def repeated(element: bytes, size: int, head: bytes = LIST, end: bytes = END) -> bytes:
    """Return a list that repeats one element."""
    return head + b",".join([element] * ((size - len(head) - len(end)) // (len(element) + 1))) + end


def request(text: bytes) -> bytes:
    """Return a request of a batch."""
    return b'{"request":{"content":{"parts":[{"text":"' + text + b'"}]}}}'


def fields(size: int) -> bytes:
    """Return an object of many fields, the first of which comes twice."""
    return b"{" + b",".join(b'"k%d":1' % number for number in range(size // 11)) + b',"k0":1}'


ATTACKS: Final[dict[str, Attack | None]] = {
    "idle": None,
    "text of quotes, 40 kB": Attack(lambda: b'{"a":"' + rb"\"" * 20_000 + b"[" * 33),
    "text of quotes, 19 MB": Attack(lambda: b'{"a":"' + rb"\"[" * 6_300_000 + b'"}'),
    "a field twice, 150 kB, senders gone": Attack(lambda: fields(150_000), senders=40, stays=False, most=80),
    "a field twice, 18 MB": Attack(lambda: fields(18 << 20)),
    "an update of 18 MB": Attack(lambda: b'{"displayName":"' + b"x" * (18 << 20) + b'"}', UPDATE),
    "an update of 60 kB": Attack(lambda: repeated(b"[]", 60_000, b'{"a":[', b"]}"), UPDATE, 16),
    "lists of nothing, 20 MB": Attack(lambda: repeated(b"[]", LARGE, b'{"a":[', b"]}")),
    "requests of nothing, 20 MB": Attack(lambda: repeated(b"[]", LARGE)),
    "requests of no text, 20 MB": Attack(lambda: repeated(b'{"request":{}}', LARGE)),
    "metadata of lists, 20 MB": Attack(
        lambda: repeated(repeated(b"[]", 150_000, b'{"metadata":{"a":[', b"]}}"), LARGE)
    ),
    "10,000 requests, 20 MB": Attack(lambda: repeated(request(b"a text, " * 240), LARGE)),
    "contents, 20 MB": Attack(lambda: repeated(b'{"parts":[]}', LARGE, b'{"contents":[', b"]}"), COUNT),
    "one text of 19 MB": Attack(
        lambda: b'{"content":{"parts":[{"text":"' + b"x" * (19 << 20) + b'"}]}}', EMBED
    ),
    "bodies of 60 kB": Attack(lambda: repeated(b"[]", 60_000), senders=16),
    "40 bodies of 20 MB without an end": Attack(
        lambda: repeated(request(b"a text"), 19 << 20), senders=40, announced=1000
    ),
}  # fmt: skip


@dataclass(slots=True)
class Found:
    """What one attack did."""

    sent: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    health: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    memory: float = 0.0

    def told(self) -> dict[str, Any]:
        """Return the figures."""
        lag, health = percentiles(self.lags), percentiles(self.health)
        return {
            "sent": self.sent,
            "statuses": self.statuses,
            "lag_p50_ms": lag["p50_ms"],
            "lag_p99_ms": lag["p99_ms"],
            "lag_most_ms": 1000 * max(self.lags),
            "health_p50_ms": health["p50_ms"],
            "health_most_ms": 1000 * max(self.health),
            "memory_mb": self.memory,
        }


class Attacker:
    """Sends one attack for some seconds."""

    def __init__(self, port: int, attack: Attack | None, found: Found) -> None:
        self._port, self._attack, self._found = port, attack, found
        self._lock, self._numbers = threading.Lock(), count()
        self._body = attack.make() if attack else b""

    def run(self, seconds: float) -> None:
        """Send from all senders and ask for health meanwhile."""
        attack, self._until = self._attack, time.monotonic() + seconds
        with ThreadPoolExecutor((attack.senders if attack else 0) + 1) as pool:
            for _ in range(attack.senders if attack else 0):
                pool.submit(self._send_again)
            self._ask_health()

    def _ask_health(self) -> None:
        with self._connected() as stream:
            while (begun := time.monotonic()) < self._until:
                stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while b"ok" not in answer:
                    answer += stream.recv(4096)
                self._found.health.append(time.monotonic() - begun)
                time.sleep(max(0.0, begun + HEALTH_SECONDS - time.monotonic()))

    def _send_again(self) -> None:
        attack = self._attack
        while attack and time.monotonic() < self._until and next(self._numbers) < attack.most:
            status = "none"
            with suppress(OSError):
                status = self._send()
            with self._lock:
                self._found.sent += 1
                self._found.statuses[status] = self._found.statuses.get(status, 0) + 1

    def _send(self) -> str:
        attack = self._attack
        assert attack is not None  # noqa: S101  (there are no senders without one)
        length = len(self._body) + attack.announced
        head = f"{attack.line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with self._connected() as stream:
            stream.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            with suppress(ConnectionError):  # refused by its length: the answer is there
                stream.sendall(self._body)
            if not attack.stays:
                return "gone"
            stream.settimeout(max(0.1, self._until - time.monotonic() + (0.0 if attack.announced else 60.0)))
            answer = stream.recv(4096)
        return answer[9:12].decode() or "none"

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=60.0)


def attacked(served: Served, lags: Path, attack: Attack | None, seconds: float) -> dict[str, Any]:
    """Attack a service for some seconds; return what came of it."""
    found, port = Found(), int(str(served.url).rpartition(":")[2])
    attacker = Attacker(port, attack, found)
    Path(f"/proc/{served.pid}/clear_refs").write_text("5")  # the most is counted anew
    begun = time.monotonic()
    attacker.run(seconds)
    ended = time.monotonic()
    time.sleep(0.5)  # the last samples are written
    samples = SAMPLE.iter_unpack(lags.read_bytes()[: lags.stat().st_size // SAMPLE.size * SAMPLE.size])
    found.lags = [late for moment, late in samples if begun <= moment <= ended]
    status = Path(f"/proc/{served.pid}/status").read_text()
    found.memory = int(status.partition("VmHWM:")[2].split()[0]) / 1000
    return found.told()


def print_row(name: str, told: dict[str, Any]) -> None:
    """Print what one attack did."""
    statuses = " ".join(f"{status}:{number}" for status, number in told["statuses"].items())
    print(
        f"{name:38}{told['sent']:>6}{told['lag_p50_ms']:>9.1f}{told['lag_p99_ms']:>8.1f}"
        f"{told['lag_most_ms']:>8.1f}{told['health_p50_ms']:>11.1f}{told['health_most_ms']:>8.1f}"
        f"{told['memory_mb']:>9.0f}  {statuses}",
        flush=True,
    )


def main() -> None:
    """Attack a service of its own, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Measure a service under attack.")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each attack (4)")
    parser.add_argument("--only", action="append", choices=ATTACKS, help="repeatable; all by default")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="embatch-attack-") as folder:
        lags = Path(folder, "lags")
        program = (str(Path(__file__).with_name("probed.py")),)
        with serving(FLAGS, environ={LAGS: str(lags)}, program=program) as served:
            print(
                f"{'attack':38}{'sent':>6}{'lag p50':>9}{'p99':>8}{'most':>8}{'health p50':>11}{'most':>8}",
                end="",
            )
            print(f"{'memory':>9}  (ms, MB)")
            for name in chosen.only or ATTACKS:
                found[name] = attacked(served, lags, ATTACKS[name], chosen.seconds)
                print_row(name, found[name])
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
