"""How fast engines embed the same texts: ours, and others as their users run them.

    .venv/bin/python benchmarks/engines.py [--count 1000] [--rounds 5] [--shape mini|base] [--json FILE]

Every engine gets the same passages of `corpus.py` from the same model folder, cut at the same 256 tokens, in
its own process, loaded and warmed before the clock starts; tokenizing counts, loading does not, and where the
two can be told apart `forward` says how many times ours a row takes without tokenizing. Copies of texts are
dropped before any engine sees them. Ours is bare: encode, plan, forward on its streams; `embatch` is the
engine and the precision that `auto` takes, which may be those of a row below it. The others run with their
defaults: sentence-transformers as it is and with its OpenVINO backend, fastembed on an ONNX export of the
same weights (in its batches of 256, and of 32, which pad less), infinity's torch engine in process. Rounds
are interleaved and each starts with another engine: trust the ratios within a round, not the absolute
numbers. Cosines are to sentence-transformers in float32. bfloat16 rows run where the processor multiplies it,
or with `--bf16`. `--shape base` takes 12 layers of 768 (bge-base's configuration) with random weights.

The first run makes the environments that the rows need: `.venv-peers`, `.venv-fastembed`, `.venv-infinity`.
`--engine NAME`, repeated, chooses rows; ours and the reference always run. `--engine torch` is our torch
engine (after `python3 run.py test-torch`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import run  # noqa: E402  (found by the line above: what makes environments)
from benchmarks.corpus import distinct_passages, token_counts  # noqa: E402  (found by the same line)
from benchmarks.peers import QUIET  # noqa: E402  (as above)
from benchmarks.rounds import in_turn, ratios  # noqa: E402  (as above)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORKER: Final = str(ROOT / "benchmarks" / "peers.py")
PEER: Final = "sentence-transformers"
"""The row of the float32 reference."""
OPENVINO: Final = ("embatch openvino bf16", "embatch openvino f32")
BF16: Final = (OPENVINO[0], f"{PEER} bf16")
ROWS: Final = (
    "embatch",
    *OPENVINO,
    PEER,
    BF16[1],
    f"{PEER} openvino",
    "fastembed",
    "fastembed batch 32",
    "infinity",
)
MAX_TOKENS: Final = 256
BASE: Final = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


@dataclass
class Row:
    """What was measured of one engine, a number for each round."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    """Without tokenizing; empty where that cannot be told apart."""
    about: dict[str, Any] = field(default_factory=dict)
    cosine_least: float = 1.0
    cosine_mean: float = 1.0


class Runner:
    """An engine in a process of its own, which works when it is told to."""

    def __init__(self, name: str, folder: Path, texts: Path) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [python(name), WORKER, "work", name, str(folder), str(texts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET},
        )
        self.about = self._answer()

    def ask(self, word: str) -> dict[str, Any]:
        """Say a word and return what comes back."""
        assert self._process.stdin is not None  # noqa: S101  (it was asked for)
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  (it was asked for)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._name} has ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def python(name: str) -> Path:
    """Return the Python of a row's environment, which is made if need be."""
    match name.partition(" ")[0]:
        case "embatch":
            return Path(sys.executable)
        case "torch":
            return ROOT / ".venv-torch" / "bin" / "python"
        case "fastembed":
            return run.environment(".venv-fastembed", ("peers-fastembed.lock",), editable=False)
        case "infinity":
            return run.environment(".venv-infinity", ("peers-infinity.lock",), editable=False, torch=True)
        case _:
            return run.environment(".venv-peers", ("peers.lock",), editable=False, torch=True)


def measure(
    names: Sequence[str], texts: list[str], rounds: int, shape: str
) -> tuple[dict[str, Row], dict[str, Any]]:
    """Return what was measured of each engine, and how alike the reference finds neighbouring texts."""
    for name in names:
        python(name)  # no environment is made while another engine waits
    rows = {name: Row() for name in names}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "texts.json")
        source.write_text(json.dumps(texts), encoding="utf-8")
        folder = model(Path(place, "model"), shape)
        onnx = (
            exported(folder, Path(place, "onnx"))
            if any(one.startswith("fastembed") for one in names)
            else None
        )
        runners: dict[str, Runner] = {}
        try:
            for name in names:
                at = onnx if onnx and name.startswith("fastembed") else folder
                runners[name] = Runner(name, at, source)
            vectors = {
                name: np.load(runner.ask(f"vectors {place}")["file"]) for name, runner in runners.items()
            }
            for name in in_turn(names, rounds):
                spent = runners[name].ask("go")
                rows[name].seconds.append(spent["seconds"])
                rows[name].cpu_seconds.append(spent["cpu_seconds"])
                if spent["tokenizing"] is not None:
                    rows[name].forward.append(spent["seconds"] - spent["tokenizing"])
            for name, runner in runners.items():
                rows[name].about = runner.about | runner.ask("memory")
        finally:
            for runner in runners.values():
                runner.close()
    for name, found in vectors.items():
        alike = cosines(found, vectors[PEER])
        rows[name].cosine_least, rows[name].cosine_mean = float(alike.min()), float(alike.mean())
    return rows, {"unlike": float(cosines(vectors[PEER], np.roll(vectors[PEER], 1, axis=0)).mean())}


def cosines(one: Any, other: Any) -> Any:
    """Return the cosine of each row with the same row of the other, float64."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return np.sum(one * other, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def model(folder: Path, shape: str) -> Path:
    """Make the folder that every engine loads: all-MiniLM-L6-v2, or its tokenizer with random weights."""
    from embatch.engine.models import DEFAULT_MODEL, serve_model  # noqa: PLC0415  (slow to import)

    original = Path(serve_model(DEFAULT_MODEL).spec.model)
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("*.safetensors", "data_config.json"))
    # Its 512 is the table of positions; who reads only this file would cut there and do more work.
    said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": MAX_TOKENS}))
    if shape == "mini":
        (folder / "model.safetensors").symlink_to(original / "model.safetensors")
        return folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | BASE
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.numpy import save_file  # noqa: PLC0415  (the usual shape does without)

    save_file(random_weights(config), folder / "model.safetensors", {"format": "pt"})
    pooling = folder / "1_Pooling" / "config.json"
    said = json.loads(pooling.read_text(encoding="utf-8"))
    pooling.write_text(json.dumps(said | {"word_embedding_dimension": config["hidden_size"]}))
    return folder


def random_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return BERT's tensors as one starts to train it: deviation 0.02, float32, the same each time."""
    random, width, inner = np.random.default_rng(0), config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, Any] = {}

    def dense(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = random.standard_normal(shape, np.float32) * np.float32(0.02)

    def linear(name: str, rows: int, columns: int) -> None:
        dense(name, rows, columns)
        tensors[f"{name}.bias"] = np.zeros(rows, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            np.ones(width, np.float32),
            np.zeros(width, np.float32),
        )

    dense("embeddings.word_embeddings", config["vocab_size"], width)
    dense("embeddings.position_embeddings", config["max_position_embeddings"], width)
    dense("embeddings.token_type_embeddings", config["type_vocab_size"], width)
    norm("embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)
    return tensors


def exported(folder: Path, place: Path) -> Path:
    """Make a folder with the model as ONNX and its tokenizer, and return it."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    worked(PEER, "export", folder, place / "model.onnx")
    return place


def worked(name: str, *words: object) -> None:
    """Run `peers.py` in a row's environment to its end; what it says is only heard if it fails."""
    command = [str(part) for part in (python(name), WORKER, *words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **QUIET})
    if done.returncode:
        raise SystemExit(f"{name}: {words[0]} failed:\n{done.stderr}")


def label(name: str, row: Row) -> str:
    """Return a row's name with the engine and the precision that were taken, each word once."""
    words = (*name.split(), row.about.get("engine", ""), row.about["precision"])
    return " ".join(word for word in dict.fromkeys(words) if word)


def told(mine: Sequence[float], ours: Sequence[float]) -> str:
    """Return the ratios within the rounds as text."""
    middle, least, most = ratios(mine, ours)
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


def table(rows: dict[str, Row], texts: int, tokens: int) -> str:
    """Return the rows as text: medians, and least to most of the rounds."""
    first = next(iter(rows.values()))
    head = f"{'engine':36}{'texts/s':>24}{'tokens/s':>10}{'times as slow':>22}{'forward':>22}"
    lines = [f"{head}{'CPU ms':>8}{'MB':>7}  cosine least / mean"]
    for name, row in rows.items():
        rate = sorted(texts / seconds for seconds in row.seconds)
        lines.append(
            f"{label(name, row):36}"
            f"{f'{statistics.median(rate):.1f} ({rate[0]:.1f} to {rate[-1]:.1f})':>24}"
            f"{tokens / statistics.median(row.seconds):>10.0f}"
            f"{told(row.seconds, first.seconds):>22}"
            f"{told(row.forward, first.forward) if row.forward else '':>22}"
            f"{1000 * statistics.median(row.cpu_seconds) / texts:>8.1f}"
            f"{row.about['megabytes']:>7.0f}  {row.cosine_least:.6f} / {row.cosine_mean:.6f}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    from embatch.engine.machine import cores, has_amx, has_bf16  # noqa: PLC0415  (as the package's others)

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else os.uname().machine,
        "cores": cores(),
        "amx": has_amx(),
        "bf16": has_bf16(),
        "load_before": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


def chosen_rows(only: Sequence[str] | None, *, bf16: bool) -> tuple[str, ...]:
    """Return the rows to measure, ours first; what is left out for want of fast bfloat16 is said."""
    wanted = ROWS if only is None else ("embatch", PEER, *only)
    names = [name for name in dict.fromkeys(wanted) if bf16 or name not in BF16 or (only and name in only)]
    if only is None and not bf16:
        print("without rows in bfloat16: this processor does not multiply it (--bf16 runs them)")
    if BF16[0] in names:
        import openvino as ov  # noqa: PLC0415  (asked only where it matters)

        if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            print(f"without {BF16[0]}: OpenVINO has no bfloat16 on this processor")
            names.remove(BF16[0])
    return tuple(names)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Compare engines on the same texts.")
    parser.add_argument("--count", type=int, default=1000, help="distinct texts (1000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=("mini", "base"), default="mini")
    parser.add_argument(
        "--engine", action="append", choices=(*ROWS, "torch"), help="only these, and the reference"
    )
    parser.add_argument("--bf16", action="store_true", help="rows in bfloat16 on any processor")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if min(chosen.count, chosen.rounds) < 1:
        parser.error("--count and --rounds must be at least 1")
    before = machine()
    names = chosen_rows(chosen.engine, bf16=chosen.bf16 or before["bf16"])
    texts = distinct_passages(chosen.count)[: chosen.count]
    tokens = sum(min(count, MAX_TOKENS) for count in token_counts(texts))
    rows, found = measure(names, texts, chosen.rounds, chosen.shape)
    print(
        f"{before['processor']}, {before['cores']} cores, shape {chosen.shape}, {len(texts)} distinct texts, "
        f"{tokens} tokens, cut at {MAX_TOKENS}; different texts have cosine {found['unlike']:.3f}"
    )
    print(table(rows, len(texts), tokens))
    if chosen.json:
        measured = {name: vars(row) for name, row in rows.items()}
        about = {"shape": chosen.shape, "texts": len(texts), "tokens": tokens, **found}
        chosen.json.write_text(json.dumps({"machine": before, **about, "engines": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
