"""How fast engines embed the same texts: ours, and sentence-transformers as its users run it.

    .venv/bin/python benchmarks/engines.py [--count 1000] [--rounds 5] [--json FILE]

Every engine gets the same distinct passages of the demo's corpus in its own process, loaded and warmed before
the clock starts; tokenizing counts, loading does not. Ours is bare: encode, plan, forward on its streams.
sentence-transformers runs `encode()` with its defaults, once as it is and once with its OpenVINO backend, in
`.venv-peers`, which the first run makes (1.5 GB). Rounds are interleaved and each starts with another engine:
trust the ratios within a round, not the absolute numbers. Cosines are to sentence-transformers in float32.
`--engine torch` adds our torch engine (after `python3 run.py test-torch`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
ENGINES: Final = ("embatch", "sentence-transformers", "sentence-transformers openvino", "torch")
PEER: Final = ENGINES[1]
"""The row of the float32 reference."""
QUIET: Final = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


@dataclass
class Row:
    """What was measured of one engine, a number for each round."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    cosine_least: float = 1.0
    cosine_mean: float = 1.0


class Runner:
    """An engine in a process of its own, which works when it is told to."""

    def __init__(self, name: str, folder: Path, texts: Path) -> None:
        command = [_python(name), __file__, "--worker", name, str(folder), str(texts)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **QUIET}
        )
        self.about = self._answer()

    def ask(self, word: str) -> dict[str, Any]:
        """Say a word and return what comes back."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an engine's process has ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _python(name: str) -> str:
    if name == "embatch":
        return sys.executable
    if name == "torch":
        return str(ROOT / ".venv-torch" / "bin" / "python")
    sys.path.insert(0, str(ROOT))
    import run  # noqa: PLC0415  (only where a peer takes part)

    return str(run.environment(".venv-peers", ("peers.lock",), editable=False, torch=True))


def measure(names: Sequence[str], count: int, rounds: int) -> tuple[dict[str, Row], dict[str, Any]]:
    """Return what was measured of each engine, and of what."""
    sys.path.insert(0, str(ROOT / "examples"))
    from corpus import passages  # noqa: PLC0415  (an example, not a package)

    from embatch.engine.models import DEFAULT_MODEL, serve_model  # noqa: PLC0415  (peers do not have it)

    texts = list(dict.fromkeys(one.text for one in passages(count)))
    folder = Path(serve_model(DEFAULT_MODEL).spec.model)
    rows = {name: Row() for name in names}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "texts.json")
        source.write_text(json.dumps(texts))
        runners = {name: Runner(name, folder, source) for name in names}
        vectors = {name: np.load(runner.ask(f"vectors {place}")["file"]) for name, runner in runners.items()}
        for number in range(rounds):
            for name in (*names[number % len(names) :], *names[: number % len(names)]):
                spent = runners[name].ask("go")
                rows[name].seconds.append(spent["seconds"])
                rows[name].cpu_seconds.append(spent["cpu_seconds"])
        for name, runner in runners.items():
            rows[name].about = runner.about | runner.ask("memory")
            runner.close()
    for name, found in vectors.items():
        cosines = np.sum(found * vectors.get(PEER, found), axis=1, dtype=np.float64)
        rows[name].cosine_least, rows[name].cosine_mean = float(cosines.min()), float(cosines.mean())
    return rows, {"texts": len(texts), "tokens": _tokens(folder, texts)}


def _tokens(folder: Path, texts: list[str]) -> int:
    from embatch.engine.loading import load  # noqa: PLC0415  (peers do not have it)
    from embatch.engine.protocol import EngineSpec  # noqa: PLC0415

    engine = load(EngineSpec("auto", str(folder)))
    tokens = int(engine.encode(texts).lengths.sum())
    engine.close()
    return tokens


def table(rows: dict[str, Row], texts: int, tokens: int) -> str:
    """Return the rows as text: medians, and least to most of the rounds."""
    first = next(iter(rows.values()))
    lines = [
        f"{'engine':32}{'texts/s':>24}{'tokens/s':>10}{'times as slow':>22}{'CPU ms':>8}{'MB':>7}  cosine"
    ]
    for name, row in rows.items():
        rate = sorted(texts / seconds for seconds in row.seconds)
        ratio = sorted(mine / ours for mine, ours in zip(row.seconds, first.seconds, strict=True))
        lines.append(
            f"{name + ' ' + row.about['precision']:32}"
            f"{f'{statistics.median(rate):.1f} ({rate[0]:.1f} to {rate[-1]:.1f})':>24}"
            f"{tokens / statistics.median(row.seconds):>10.0f}"
            f"{f'{statistics.median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f})':>22}"
            f"{1000 * statistics.median(row.cpu_seconds) / texts:>8.1f}"
            f"{row.about['megabytes']:>7.0f}  {row.cosine_least:.6f} / {row.cosine_mean:.6f}"
        )
    return "\n".join(lines)


def work(name: str, folder: str, texts: list[str]) -> None:
    """Load an engine and embed the texts each time a line comes; answers go to standard output as JSON."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    embed, about = (_ours if name in {"embatch", "torch"} else _theirs)(name, folder)
    out.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        word, _, place = line.strip().partition(" ")
        answer: dict[str, Any] = {}
        if word == "vectors":  # also the warming: the same shapes come again in every round
            answer["file"] = str(Path(place, f"{name}.npy"))
            np.save(answer["file"], embed(texts))
        elif word == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer["megabytes"] = peak / (1024 if sys.platform == "linux" else 1 << 20)
        else:
            begun, used = time.perf_counter(), time.process_time()
            embed(texts)
            answer = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
        out.write(json.dumps(answer) + "\n")


def _ours(name: str, folder: str) -> tuple[Callable[[list[str]], Any], dict[str, Any]]:
    from embatch.engine.loading import load  # noqa: PLC0415  (peers do not have it)
    from embatch.engine.packing import MicroBatch, pack  # noqa: PLC0415
    from embatch.engine.protocol import EngineSpec  # noqa: PLC0415
    from embatch.settings import Settings  # noqa: PLC0415

    engine = load(EngineSpec("torch" if name == "torch" else "openvino", folder))
    engine.warm()
    described, budget = engine.describe(), Settings().micro_batch_tokens

    def embed(texts: list[str]) -> Any:
        vectors = np.empty((len(texts), described.dimensions), np.float32)
        encoded = engine.encode(texts)
        plan = pack(encoded.lengths.tolist(), budget, described.multiple, described.max_tokens)

        def forward(part: MicroBatch) -> None:
            vectors[list(part.rows)] = engine.forward([encoded.rows[row] for row in part.rows], part.shape)

        with ThreadPoolExecutor(described.streams) as pool:
            list(pool.map(forward, plan))
        return vectors

    library = "torch" if name == "torch" else "openvino"
    return embed, {"precision": described.precision, library: importlib.metadata.version(library)}


def _theirs(name: str, folder: str) -> tuple[Callable[[list[str]], Any], dict[str, Any]]:
    # Installed in .venv-peers only.
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    backend = "openvino" if name.endswith("openvino") else "torch"
    model = SentenceTransformer(folder, device="cpu", backend=backend)
    precision = "f32"
    if backend == "openvino":
        chosen = model[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT")
        precision = {"f32": "f32", "bf16": "bf16"}.get(chosen.to_string(), "f16")
    versions = {
        library: importlib.metadata.version(library) for library in ("sentence-transformers", backend)
    }
    return model.encode, {"precision": precision, **versions}


def machine() -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    from embatch.engine.machine import cores, has_amx  # noqa: PLC0415  (peers do not have it)

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else os.uname().machine,
        "cores": cores(),
        "amx": has_amx(),
        "load_before": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], json.loads(Path(sys.argv[4]).read_text()))
        return
    parser = argparse.ArgumentParser(description="Compare engines on the same texts.")
    parser.add_argument("--count", type=int, default=1000, help="passages, before repetitions are dropped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="one to add to the first three")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    names = tuple(dict.fromkeys((*ENGINES[:3], *(chosen.engine or ()))))
    before = machine()
    rows, corpus = measure(names, chosen.count, chosen.rounds)
    print(
        f"{before['processor']}, {before['cores']} cores, {corpus['texts']} texts, {corpus['tokens']} tokens"
    )
    print(table(rows, **corpus))
    if chosen.json:
        measured = {name: vars(row) for name, row in rows.items()}
        chosen.json.write_text(
            json.dumps({"machine": before, **corpus, "engines": measured}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
