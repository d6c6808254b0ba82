"""What a run at a hosted service costs beside the service: calls, bytes, processor time, memory.

    .venv/bin/python benchmarks/hosted.py [--rows 100000] [--dim 128] [--verify none] [--json FILE]

`hosted_answers.py`, a Gemini that ends every batch at once, runs in a process of its own, and
`embatch embed … --to gemini` in another one over a Parquet file of short texts. Counted are the command's own
CPU seconds and peak memory (of the one process), the calls by route, the bytes of both ways, heads included,
and the seconds of the whole command. Needs 5 kB of disk a row at 128 dimensions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS: Final = ("invoice", "harbour", "quartz", "meadow", "signal", "ledger", "violin", "copper", "tundra")


def write(path: Path, rows: int) -> None:
    """Write different texts of about sixty bytes."""
    parts = [_part(begin, min(rows, begin + 10_000)) for begin in range(0, rows, 10_000)]
    pq.write_table(pa.concat_tables(parts), path)


def _part(begin: int, end: int) -> pa.Table:
    words = [" ".join(WORDS[(row // 9**at + at) % 9] for at in range(6)) for row in range(begin, end)]
    texts = [f"note {row} on {said}" for row, said in enumerate(words, begin)]
    return pa.table({"id": list(range(begin, end)), "text": texts})


@contextlib.contextmanager
def answering(dimensions: int) -> Iterator[str]:
    """Have the service while the block runs; yields its address."""
    script = str(Path(__file__).with_name("hosted_answers.py"))
    with subprocess.Popen(
        [sys.executable, script, "--dim", str(dimensions)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        yield json.loads(process.stdout.readline())["url"]
        process.stdin.close()


class Counted:
    """A port that leads to another one and counts what passes."""

    def __init__(self, url: str) -> None:
        self.sent = self.received = 0
        self._to = int(url.rpartition(":")[2])
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            mine, _ = self._server.accept()
            theirs = socket.create_connection(("127.0.0.1", self._to))
            for source, sink, out in ((mine, theirs, True), (theirs, mine, False)):
                threading.Thread(target=self._pass, args=(source, sink, out), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, out: bool) -> None:  # noqa: FBT001
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
                if out:
                    self.sent += len(data)
                else:
                    self.received += len(data)
            sink.shutdown(socket.SHUT_WR)


def main() -> None:
    """Run once and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--verify", default="none", help="as of `embatch embed`")
    parser.add_argument("--block-rows", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, answering(said.dim) as url:
        here = Path(folder)
        write(here / "in.parquet", said.rows)
        command = [
            *(sys.executable, "-m", "embatch", "embed", "in.parquet", "--id", "id", "-o", "out.parquet"),
            *(
                "--to",
                "gemini",
                "--dim",
                str(said.dim),
                "--verify",
                said.verify,
                "--data",
                str(here / "data"),
            ),
        ]
        command += [] if said.block_rows is None else ["--block-rows", str(said.block_rows)]
        environment = {
            **os.environ,
            "GOOGLE_GEMINI_BASE_URL": (counted := Counted(url)).url,
            "GOOGLE_API_KEY": "anything",
            "EMBATCH_GEMINI_TIER": "3",
        }
        begun = time.monotonic()
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begun
        if done.returncode:
            sys.exit(done.stderr)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        calls = json.loads(urllib.request.urlopen(f"{url}/counts").read())  # noqa: S310  (on loopback)
        found: dict[str, Any] = {
            "rows": said.rows,
            "dimensions": said.dim,
            "verify": said.verify,
            "batches": calls["create"],
            "calls": calls,
            "bytes_sent": counted.sent,
            "bytes_received": counted.received,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "cpu_seconds_per_100000_rows": round((used.ru_utime + used.ru_stime) * 100_000 / said.rows, 2),
            "peak_mib": round(used.ru_maxrss / 1024, 1),
            "output_bytes": (here / "out.parquet").stat().st_size,
        }
        print(json.dumps(found, indent=2))
        print(done.stderr.strip().splitlines()[-6:])
        if said.json is not None:
            said.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
