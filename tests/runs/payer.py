"""Runs in processes that may be killed at any step, against a stand-in of Gemini: what they cost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from hosted.gemini import GeminiStandIn
from hosted.vertex import VertexStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hosted.behaviour import Behaviour

BLOCK = 3
BLOCKS = 3
KILLED = -9


@dataclass(frozen=True)
class Payer:
    """A process that embeds on demand, in children of its own."""

    process: subprocess.Popen[str]

    def call(self, said: dict[str, Any]) -> dict[str, Any]:
        """Embed once; return how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def payer() -> Iterator[Payer]:
    """Have such a process while the block runs."""
    script = Path(__file__).with_name("payer_script.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield Payer(process)
        process.stdin.close()


@dataclass(frozen=True)
class Paid:
    """One run at one stand-in, called again and again until it is done."""

    payer: Payer
    google: GeminiStandIn | VertexStandIn
    folder: Path

    def write(self, blocks: int = BLOCKS) -> None:
        """Write the input: so many blocks, one text of which cannot be read."""
        texts: list[str | None] = [f"text number {number}" for number in range(blocks * BLOCK)]
        texts[1] = None
        lines = [json.dumps({"id": f"k{at}", "text": text}) for at, text in enumerate(texts)]
        (self.folder / "in.jsonl").write_text("\n".join(lines) + "\n", "utf-8")

    def call(self, *, key: str | None = None, block_rows: int | None = BLOCK, **more: Any) -> dict[str, Any]:
        """Call the command once; `kill` says after how many steps of a name, or of `ANY`, it dies."""
        said: dict[str, Any] = {"folder": str(self.folder), "url": self.google.url, "block_rows": block_rows}
        if isinstance(self.google, VertexStandIn):
            place = {"project": self.google.project, "location": "us-central1"}
            said["client"] = {"target": "vertex", **place, "staging": "gs://stand-in-bucket/runs"}
            said["environ"] = {
                "GOOGLE_APPLICATION_CREDENTIALS": str(self.google.service_account()),
                "STORAGE_EMULATOR_HOST": self.google.url,
            }
        else:
            said["client"] = {"target": "gemini", "api_key": key or self.google.key}
        said.update(more)
        return self.payer.call(said)

    def steps(self) -> list[str]:
        """Return the steps of all calls so far."""
        return (self.folder / "steps").read_text("utf-8").split()

    def left(self) -> list[str]:
        """Return the names of all that the provider keeps for somebody."""
        counts = self.google.counts()
        return [*(counts["files"] if "files" in counts else counts["objects"])]

    @property
    def ledger(self) -> Path:
        """Where its log is."""
        return self.folder / "out.parquet.embatch" / "ledger.jsonl"

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Return what lines of a kind say in the ledger."""
        lines = [json.loads(line) for line in self.ledger.read_text("utf-8").splitlines()[1:]]
        return [line[kind] for line in lines if kind in line]

    def texts_created(self) -> Counter[str]:
        """Return how often each block's batch was created, by the rows in its name."""
        return Counter(job["display_name"].partition(" · ")[0] for job in self.google.counts()["jobs"])

    def vectors(self) -> list[Any]:
        """Return the rows of the output."""
        rows: list[Any] = pq.read_table(self.folder / "out.parquet").to_pylist()
        return rows


@contextlib.contextmanager
def paid_by_vertex(payer_: Payer, folder: Path, behaviour: Behaviour | None = None) -> Iterator[Paid]:
    """Have the same of Vertex."""
    folder.mkdir(exist_ok=True)
    with VertexStandIn(behaviour) as google:
        run = Paid(payer_, google, folder)
        run.write()
        yield run


@contextlib.contextmanager
def paid(
    payer_: Payer, folder: Path, behaviour: Behaviour | None = None, keys: dict[str, str] | None = None
) -> Iterator[Paid]:
    """Have a stand-in, and an input beside it."""
    folder.mkdir(exist_ok=True)
    with GeminiStandIn(behaviour, keys=keys) as google:
        run = Paid(payer_, google, folder)
        run.write()
        yield run
