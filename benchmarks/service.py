"""What the whole service does: start-up, accepted submits, and a corpus end to end, beside a peer's server.

    .venv/bin/python benchmarks/service.py [--count 1000] [--rounds 3] [--part corpus|start] [--way NAME ...]
                                           [--json FILE]

`corpus` takes the same distinct passages of `corpus.py` from a call to their vectors in an array: as a batch
of a private service over its socket, as a batch over HTTP, and through an infinity server over HTTP (its
OpenAI route, 128 texts a request, four requests at a time, vectors in base64), in alternating rounds with the
bare engine in this process; and from file to file, as a whole command that loads everything itself: ours with
a private service of its own, Parquet to Parquet, and scripts of sentence-transformers, as it is and on its
OpenVINO backend, JSONL to `.npy`; ours also with a service that runs already, and where our own kernel serves
with one on OpenVINO. The model of the OpenVINO backend is converted beforehand. All take the same weights cut
at the same 256 tokens, ours with the engine and precision that `auto` takes, the others with their defaults;
every row's cosine to the bare engine's vectors is in the table. A round takes every way in turn and begins
with another; servers that wait compute nothing. Trust the ratios, not the absolute numbers. `--way`,
repeated, chooses ways; the bare engine and `file to file` always run.

`start` is `first vector`, a whole command from pressing Enter to its exit, on a file of ten texts and an
empty data folder; and `submits`, small batches acknowledged (durable) over HTTP from many threads.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import passages
from benchmarks.engines import machine, model, python, worked
from benchmarks.peers import LOADERS, QUIET
from benchmarks.rounds import in_turn, ratios
from benchmarks.served import LINGER, Served, free_port, serving

from embatch import Client
from embatch.engine import amx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Way = Callable[[list[str]], Vectors]

START_SECONDS: Final = 120.0
BY_FILE: Final = "file to file, "
ALWAYS: Final = ("bare engine", "file to file")
ON_OPENVINO: Final = "file to file, openvino"
WAYS: Final = (
    *ALWAYS,
    "file to file, service running",
    ON_OPENVINO,
    "file to file, sentence-transformers",
    "file to file, sentence-transformers openvino",
    "batch, local",
    "batch, HTTP",
    "infinity, HTTP",
)
A_REQUEST, AT_A_TIME = 128, 4
"""Texts of a request to the infinity server, and requests under way."""


# start


def first_vector(rounds: int) -> list[float]:
    """Return the seconds of `embatch embed` on ten texts, each on a data folder of its own."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.jsonl"
            source.write_text("".join(json.dumps({"text": one}) + "\n" for one in passages(10)))
            begun = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "embatch", "embed", str(source), "-o", f"{folder}/out.parquet"],
                env={**os.environ, "EMBATCH_DATA": f"{folder}/data"},
                check=True,
                capture_output=True,
            )
            seconds.append(time.monotonic() - begun)
    return seconds


def submits(count: int, threads: int) -> float:
    """Return durable acknowledgements of one-text batches a second."""
    # The service ends some moments after its last client has left, and writes until then.
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with place as folder, Client(data=Path(folder)) as client:

        def submit(number: int) -> None:
            client.async_batch_embed_contents([f"text {number}"], display_name=f"batch {number}")

        submit(0)
        with ThreadPoolExecutor(threads) as pool:
            begun = time.monotonic()
            list(pool.map(submit, range(count)))
            return count / (time.monotonic() - begun)


# corpus


def batch(client: Client) -> Way:
    """Return a batch of a service."""

    def run(texts: list[str]) -> Vectors:
        one = client.async_batch_embed_contents(texts, display_name="corpus")
        one = client.await_batch_completion(one.name, poll_interval=0.1)
        vectors = client.get_batch_embeddings(one).to_numpy()
        client.delete_batch(one.name)
        return vectors

    return run


def command(folder: Path, *to: str) -> Way:
    """Return `embatch embed`, Parquet to Parquet, as a whole command; without `to` it starts its service."""
    source, place = folder / "in.parquet", folder / "out.parquet"

    def run(texts: list[str]) -> Vectors:
        if not source.exists():
            pq.write_table(pa.table({"text": texts}), source)
        flags = (*to, "--data", tempfile.mkdtemp(dir=folder), "--no-cache", "--restart")
        said = subprocess.run(
            [sys.executable, "-m", "embatch", "embed", str(source), "-o", str(place), *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            raise RuntimeError(said.stderr)
        column: Any = pq.read_table(place, columns=["embedding"]).column(0).combine_chunks()
        return np.asarray(column.flatten(), np.float32).reshape(len(texts), -1)

    return run


def script(name: str, model_folder: Path, folder: Path) -> Way:
    """Return a peer's user's script, JSONL to `.npy`, as a whole command."""
    source, place = folder / "in.jsonl", folder / f"{name}.npy"
    if name.endswith("openvino"):
        converted = folder / "converted"
        worked(name, "export openvino", model_folder, converted)
        model_folder = converted

    def run(texts: list[str]) -> Vectors:
        if not source.exists():
            source.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        worked(name, "file", name, model_folder, source, place)
        found: Vectors = np.load(place)
        return found

    return run


def infinity(url: str, client: httpx2.Client) -> Way:
    """Return the infinity server's OpenAI route."""

    def one(texts: Sequence[str]) -> Vectors:
        body = {"model": "corpus", "input": list(texts), "encoding_format": "base64"}
        answer = client.post(f"{url}/embeddings", json=body)
        answer.raise_for_status()
        rows = sorted(answer.json()["data"], key=lambda row: int(row["index"]))
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])

    def run(texts: list[str]) -> Vectors:
        requests = [texts[at : at + A_REQUEST] for at in range(0, len(texts), A_REQUEST)]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return np.concatenate(list(pool.map(one, requests)))

    return run


@contextmanager
def infinity_server(folder: Path) -> Iterator[str]:
    """Run an infinity server on a model folder, its environment made if need be; yield its address."""
    port = free_port()
    flags = ("--served-model-name", "corpus", "--engine", "torch", "--device", "cpu", "--dtype", "float32")
    command = (python("infinity").with_name("infinity_emb"), "v2", "--model-id", folder, *flags)
    log = folder.with_name("infinity.log")
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [*map(str, command), "--no-bettertransformer", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **QUIET},
            stdout=said,
            stderr=said,
        ) as process,
    ):
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the infinity server does not answer: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/health").is_success
    return False


class Ways:
    """Makes ways, and the services they need, one after the other; all end with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embatch-bench-")))
        self._folder = model(self._place / "model", "mini")
        self._services: dict[str, Served] = {}

    def make(self, name: str) -> Way:
        """Return one of `WAYS`."""
        makers: dict[str, Callable[[], Way]] = {
            "bare engine": lambda: LOADERS["embatch"]("embatch", str(self._folder))[0],
            "batch, local": lambda: batch(self._client(private=True)),
            "batch, HTTP": lambda: batch(self._client()),
            "file to file": lambda: command(self._place),
            "file to file, service running": lambda: command(self._place, "--to", self._url()),
            ON_OPENVINO: lambda: command(self._place, "--to", self._url("--engine", "openvino")),
            "infinity, HTTP": self._infinity,
        }
        peer = name.removeprefix(BY_FILE)
        return makers[name]() if name in makers else script(peer, self._folder, self._place)

    def engines(self) -> dict[str, list[str]]:
        """Return the engines that ran in every service."""
        return {name: service.engines() for name, service in self._services.items()}

    def _url(self, *flags: str) -> str:
        return str(self._service(*flags).url)

    def _client(self, *, private: bool = False) -> Client:
        return self._stack.enter_context(self._service(private=private).client())

    def _infinity(self) -> Way:
        client = self._stack.enter_context(httpx2.Client(timeout=600.0))
        return infinity(self._stack.enter_context(infinity_server(self._folder)), client)

    def _service(self, *flags: str, private: bool = False) -> Served:
        name = "private" if private else " ".join(flags) or "HTTP"
        if name not in self._services:
            self._services[name] = self._stack.enter_context(serving(flags, private=private))
        return self._services[name]


def corpus(names: Sequence[str], count: int, rounds: int) -> dict[str, Any]:
    """Return seconds of the corpus by every way, round by round, and cosines to the bare engine."""
    texts = list(dict.fromkeys(passages(count)))
    with ExitStack() as stack:
        made = Ways(stack)
        ways = {name: made.make(name) for name in names}
        # The first round loads engines and compiles shapes; it also shows that all give the same vectors.
        first = {name: way(texts) for name, way in ways.items()}
        cosines = {
            name: float(np.einsum("ij,ij->i", vectors, first["bare engine"]).min())
            for name, vectors in first.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for name in in_turn(ways, rounds):
            begun = time.perf_counter()
            ways[name](texts)
            seconds[name].append(time.perf_counter() - begun)
        return {"texts": len(texts), "engines": made.engines(), "seconds": seconds, "least_cosine": cosines}


def print_corpus(found: dict[str, Any]) -> None:
    """Print what `corpus` found."""
    bare, whole = (found["seconds"][name] for name in ALWAYS)
    for name, engines in found["engines"].items():
        print(f"service {name}: {'; '.join(engines)}")
    print(f"{found['texts']} texts{'':34}{'texts/s':>9}{'share of the bare engine':>26}", end="")
    print(f"{'times file to file':>26}{'least cosine':>14}")
    for name, seconds in found["seconds"].items():
        rate = found["texts"] / statistics.median(seconds)
        told = []
        for middle, least, most in (ratios(bare, seconds), ratios(seconds, whole)):
            told.append(f"{middle:.2f} ({least:.2f} to {most:.2f})")
        cosine = found["least_cosine"][name]
        print(f"{name:46}{rate:>9.1f}{told[0]:>26}{told[1]:>26}{cosine:>14.6f}", flush=True)


def start(rounds: int) -> dict[str, Any]:
    """Return what starting and submitting take."""
    return {"first_vector_seconds": first_vector(rounds), "submits_per_second": submits(2000, 32)}


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description="Measure the whole service.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="passages of the corpus (1000)")
    parser.add_argument("--part", choices=("corpus", "start"), help="both by default")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable; all by default")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    os.environ[LINGER] = "2"  # what comes next is measured on a service of its own
    # On OpenVINO by itself everything is already, where our own kernel does not serve.
    ways = [name for name in chosen.way or WAYS if name != ON_OPENVINO or chosen.way or not amx.unavailable()]
    found: dict[str, Any] = {"machine": machine()}
    if chosen.part != "corpus":
        found["start"] = start(chosen.rounds)
        seconds = found["start"]["first_vector_seconds"]
        print(
            f"first vector      {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        )
        print(f"submits accepted  {found['start']['submits_per_second']:.0f} /s")
    if chosen.part != "start":
        found["corpus"] = corpus(list(dict.fromkeys((*ALWAYS, *ways))), chosen.count, chosen.rounds)
        print_corpus(found["corpus"])
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
