"""What runs in an engine's own environment: load it, embed texts or a file of them, export a model.

Started by `engines.py` and `service.py`, never by hand. At the top it imports only the standard library and
numpy, so that every environment can run it: `.venv` (ours), `.venv-peers`, `.venv-fastembed`,
`.venv-infinity` and `.venv-torch`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Loaded = tuple[Callable[[list[str]], Any], dict[str, Any]]
    """What embeds texts, and what is known of it: its precision, the versions of its libraries."""

QUIET: Final = {
    "HF_HUB_OFFLINE": "1",  # everything is a local folder
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""The environment of every engine's process."""
FASTEMBED_SMALL: Final = 32
"""The batch of the second fastembed row: its default of 256 pads short texts to the longest of many."""


def work(name: str, folder: str, texts: list[str]) -> None:
    """Load an engine and embed the texts each time a line comes; answers go to standard output as JSON."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    embed, about = LOADERS[name.partition(" ")[0]](name, folder)
    out.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        word, _, place = line.strip().partition(" ")
        answer: dict[str, Any] = {}
        if word == "vectors":  # also the warming: the same shapes come again in every round
            answer["file"] = str(Path(place, f"{name}.npy"))
            np.save(answer["file"], np.asarray(embed(texts), np.float32))
        elif word == "memory":
            answer["megabytes"] = _peak()
        else:
            begun, used, about["tokenizing"] = time.perf_counter(), time.process_time(), 0.0
            embed(texts)
            answer = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
            answer["tokenizing"] = about["tokenizing"] or None  # some do it beside the rest, unseen
        out.write(json.dumps(answer) + "\n")
    os._exit(0)  # infinity's threads would keep the process; everything is written


def _peak() -> float:
    """Return the most memory this process has had resident, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` counts there what the starting process had before this program
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _ours(name: str, folder: str) -> Loaded:
    from embatch.engine.loading import load  # noqa: PLC0415  (peers do not have it)
    from embatch.engine.packing import MicroBatch, plan  # noqa: PLC0415  (nor this)
    from embatch.engine.protocol import EngineSpec  # noqa: PLC0415  (nor this)
    from embatch.settings import Settings  # noqa: PLC0415  (nor this)

    about: dict[str, Any] = {}
    library, _, precision = name.removeprefix("embatch").strip().partition(" ")
    engine = load(EngineSpec(library or "auto", folder, precision or "auto"))
    engine.warm()
    described, budget = engine.describe(), Settings().micro_batch_tokens

    def embed(texts: list[str]) -> Any:
        vectors = np.empty((len(texts), described.dimensions), np.float32)
        begun = time.perf_counter()
        encoded = engine.encode(texts)
        about["tokenizing"] = time.perf_counter() - begun
        planned = plan(encoded.lengths.tolist(), budget, described)

        def forward(part: MicroBatch) -> None:
            vectors[list(part.rows)] = engine.forward([encoded.rows[row] for row in part.rows], part.shape)

        with ThreadPoolExecutor(described.streams) as pool:
            list(pool.map(forward, planned))
        return vectors

    about |= {"precision": described.precision, "engine": described.engine}
    about |= {} if described.engine == "amx" else _versions(described.engine)
    return embed, about


def _sentence_transformers(name: str, folder: str) -> Loaded:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (in .venv-peers only)

    if name.endswith("openvino"):
        model = SentenceTransformer(folder, device="cpu", backend="openvino")
        chosen = model[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT").to_string()
        precision = {"f32": "f32", "bf16": "bf16"}.get(chosen, "f16")
        return _watched(model, {"precision": precision, **_versions("sentence-transformers", "openvino")})
    precision = "bf16" if name.endswith("bf16") else "f32"
    dtype = {"bf16": "bfloat16", "f32": "float32"}[precision]
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    return _watched(model, {"precision": precision, **_versions("sentence-transformers", "torch")})


def _watched(model: Any, about: dict[str, Any]) -> Loaded:
    """Let `about` tell how long a call has spent on tokenizing, which goes on before each forward pass."""
    tokenize = model.preprocess

    def watched(*args: Any, **more: Any) -> Any:
        begun = time.perf_counter()
        found = tokenize(*args, **more)
        about["tokenizing"] = about.get("tokenizing", 0.0) + time.perf_counter() - begun
        return found

    model.preprocess = watched
    return model.encode, about


def _fastembed(name: str, folder: str) -> Loaded:
    # Both are in .venv-fastembed only, and type checks run in .venv.
    from fastembed import TextEmbedding  # type: ignore[import-not-found]  # noqa: PLC0415
    from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]  # noqa: PLC0415

    # A source is demanded and never asked: `specific_model_path` is where the files are.
    TextEmbedding.add_custom_model(
        model="benchmark",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="benchmark"),
        dim=json.loads(Path(folder, "config.json").read_text())["hidden_size"],
        model_file="model.onnx",
    )
    model = TextEmbedding("benchmark", specific_model_path=folder)
    size = {"batch_size": FASTEMBED_SMALL} if name.endswith(str(FASTEMBED_SMALL)) else {}

    def embed(texts: list[str]) -> Any:
        return np.stack(list(model.embed(texts, **size)))

    return embed, {"precision": "f32", **_versions("fastembed", "onnxruntime")}


def _infinity(_: str, folder: str) -> Loaded:
    import asyncio  # noqa: PLC0415  (the others do without)

    # In .venv-infinity only, and type checks run in .venv.
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]  # noqa: PLC0415

    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=folder, engine="torch", device="cpu", dtype="float32")
    )
    loop.run_until_complete(engine.astart())

    def embed(texts: list[str]) -> Any:
        return np.stack(loop.run_until_complete(engine.embed(sentences=texts))[0])

    return embed, {"precision": "f32", **_versions("infinity-emb", "torch")}


def file(name: str, folder: str, source: str, place: str) -> None:
    """Embed a file of one JSON text a line into a `.npy` file, as a script of an engine's user would."""
    texts = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    embed, _ = LOADERS[name.partition(" ")[0]](name, folder)
    np.save(place, np.asarray(embed(texts), np.float32))
    os._exit(0)  # see `work`


LOADERS: Final[dict[str, Callable[[str, str], Loaded]]] = {
    "embatch": _ours,
    "torch": _ours,
    "sentence-transformers": _sentence_transformers,
    "fastembed": _fastembed,
    "infinity": _infinity,
}
"""By the first word of a row's name."""


def export(folder: str, output: str) -> None:
    """Write the model as ONNX, weights as they are: token ids and mask in, token vectors out."""
    import torch  # noqa: PLC0415  (in .venv-peers only)
    from transformers import AutoModel  # noqa: PLC0415  (in .venv-peers only)

    class Tokens(torch.nn.Module):  # type: ignore[misc]  # torch has no types where types are checked
        """The model with its mask made here: what transformers does to make one cannot be traced."""

        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            return self.model(input_ids=input_ids, attention_mask=hidden, token_type_ids=token_type_ids)[0]

    names = ("input_ids", "attention_mask", "token_type_ids")
    ids = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        Tokens(),
        (ids, ids, torch.zeros_like(ids)),
        output,
        input_names=list(names),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "rows", 1: "tokens"} for name in (*names, "last_hidden_state")},
        opset_version=17,
        dynamo=False,  # the other exporter needs onnxscript besides
    )


def export_openvino(folder: str, output: str) -> None:
    """Write the model as the OpenVINO backend keeps it, so that loading it converts nothing."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (in .venv-peers only)

    SentenceTransformer(folder, device="cpu", backend="openvino").save_pretrained(output)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(*sys.argv[2:])
    elif sys.argv[1] == "export openvino":
        export_openvino(*sys.argv[2:])
    elif sys.argv[1] == "file":
        file(*sys.argv[2:])
    else:
        work(sys.argv[2], sys.argv[3], json.loads(Path(sys.argv[4]).read_text(encoding="utf-8")))
