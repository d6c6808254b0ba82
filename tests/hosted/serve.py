"""A stand-in in a process of its own: `python -m hosted.serve gemini`, with `tests` on PYTHONPATH.

    with served("gemini", Behaviour(seed=3)) as google:
        ...                   # kill -9 the client as often as you like: google.url, google.key
        google.tell(advance=60, behaviour={"reorder": True}, finish=None)  # None: all batches
        assert google.counts()["creates"] == 1

The process writes one line of JSON, its addresses and keys, and ends when its standard input does. Its clock
stands at the time of its start, or at `--now`, until it is told to advance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hosted.behaviour import Behaviour
from hosted.gemini import GeminiStandIn
from hosted.moment import Clock
from hosted.vectors import Vectors
from hosted.vertex import VertexStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hosted.batch_service import BatchService

_KINDS: dict[str, type[BatchService]] = {"gemini": GeminiStandIn, "vertex": VertexStandIn}


@dataclass(frozen=True)
class Served:
    """A stand-in in another process."""

    url: str
    said: Mapping[str, str]
    """All that it said at its start."""
    process: subprocess.Popen[bytes]

    @property
    def key(self) -> str:
        """The API key that counts."""
        return self.said["key"]

    def tell(self, **said: Any) -> dict[str, Any]:
        """Let time pass, change the behaviour, finish or release batches, await calls; return the counts."""
        return self._control(json.dumps(said).encode())

    def counts(self) -> dict[str, Any]:
        """Return what was counted."""
        return self._control(None)

    def _control(self, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/_control", body)  # noqa: S310  (http, on loopback)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            read: dict[str, Any] = json.load(reply)
        return read


@contextlib.contextmanager
def served(kind: str, behaviour: Behaviour | None = None, *flags: str) -> Iterator[Served]:
    """Run a stand-in (`gemini`, `vertex`) while the block runs."""
    command = [
        sys.executable,
        "-m",
        "hosted.serve",
        kind,
        "--behaviour",
        (behaviour or Behaviour()).to_json(),
    ]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        [*command, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
        start_new_session=True,  # what kills the client's group leaves it alone
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = json.loads(process.stdout.readline())
        try:
            yield Served(said["url"], said, process)
        finally:
            process.stdin.close()
            code = process.wait()
    assert code == 0, "the stand-in failed"


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="Serve a stand-in of one of Google's services.")
    parser.add_argument("kind", choices=sorted(_KINDS))
    parser.add_argument("--behaviour", default="{}", help="JSON, or the name of a file that holds it")
    parser.add_argument("--vectors", choices=("hash", "local"), default="hash")
    parser.add_argument(
        "--now", type=float, default=None, help="seconds since 1970 at which the clock stands"
    )
    said = parser.parse_args(arguments)
    text = said.behaviour if said.behaviour.startswith("{") else Path(said.behaviour).read_text("utf-8")
    clock = Clock(time.time() if said.now is None else said.now)
    with _KINDS[said.kind](Behaviour.from_json(text), clock, Vectors(said.vectors)) as stand_in:
        print(json.dumps(stand_in.addresses()), flush=True)  # noqa: T201
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
