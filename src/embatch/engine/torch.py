"""Any model that sentence-transformers runs, on a GPU where there is one: slower to start, wider in reach.

Code and pickles of a model are never run: `folder` refuses them, and what is read here is safetensors only.
Whatever the precision of the transformer, pooling and all that follows it run in float32. Options, beside
those of `folder.OPTIONS`:

    device   `cpu`, `cuda`, `cuda:1`, `mps`; without it the first GPU, else the CPU

On a CPU each stream is one thread, so that the same shape takes the same path through the same kernels.
"""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embatch.engine import models
from embatch.engine.fields import read_object
from embatch.engine.folder import OPTIONS, modules
from embatch.engine.machine import cores, has_bf16
from embatch.engine.protocol import Description, Encoded, EngineSpec, Shape
from embatch.engine.texts import PROMPT_END
from embatch.engine.tokens import FolderTokenizer
from embatch.errors import EngineTrouble, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.engine.folder import ModelFolder
    from embatch.engine.protocol import TokenRow

MULTIPLE: Final = 8
"""Planned lengths: what the matrix units of a GPU like, for some 4 % of padding."""
MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout"})
"""What a model may consist of here: text in, through one transformer, its tokens pooled."""
_WEIGHTED: Final = frozenset({"Dense", "LayerNorm"})
_TRUSTED: Final = "torch."
"""How the names of functions begin that sentence-transformers takes without being told to trust a model."""
_ATTENTION: Final = "embatch_sdpa"
_DTYPES: Final = {"bf16": torch.bfloat16, "f32": torch.float32}
_FAULT: Final = 70  # EX_SOFTWARE


def _mask(*args: Any, **kwargs: Any) -> Any:
    """Return the mask always: where all rows are full, transformers leaves it out and takes other kernels.

    A row would then have other bytes among full rows than beside a shorter one.
    """
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


transformers.AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
transformers.AttentionMaskInterface.register(_ATTENTION, _mask)


def load(spec: EngineSpec) -> TorchEngine:
    """Load the folder `spec.model`; ten seconds, most of them for importing the libraries.

    Raises:
        NotFound: there is no such folder, or a file is missing in it.
        InvalidArgument: this engine cannot run the model, or an option or precision makes no sense here.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    return TorchEngine(spec)


class TorchEngine:
    """A model on one device. See `protocol.Engine`.

    A GPU that has faulted cannot be used again by the same process: the process then ends, and whoever
    supervises it starts another.
    """

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.options) - OPTIONS - {"device"}
        if unknown:
            raise InvalidArgument(f"the torch engine has no option {min(unknown)}", field="engine-option")
        described = models.opened(spec)
        files = _files(described)
        self._device = _device(spec.options.get("device"))
        precision = _precision(spec.precision, self._device)
        on_cpu = self._device.type == "cpu"
        if on_cpu:
            torch.set_num_threads(1)
        self._turn = nullcontext() if on_cpu else threading.Lock()
        self._tokenizer = FolderTokenizer(described)
        self._modules = _load(described, self._tokenizer, self._device, precision)
        self._prompts = (
            _Prompts(described, self._modules[0].tokenizer) if not described.pooled_prompt else None
        )
        self._pad = described.pad
        self._closed = False
        with torch.inference_mode():
            one = np.ones((1, 1), np.int64)
            dimensions = self._run(one * self._pad, one, np.zeros(1, np.int64)).shape[1]
        hashes = described.hashes(files)
        self._description = Description(
            engine="torch",
            model=spec.model,
            identity=described.identity(hashes, precision),
            files=hashes,
            dimensions=dimensions,
            max_tokens=described.max_tokens,
            precision=precision,
            streams=(spec.threads or cores()) if on_cpu else 1,
            normalized=isinstance(self._modules[-1], Normalize),
            prompts=described.prompts,
            multiple=MULTIPLE,
        )

    def describe(self) -> Description:
        """Return what is loaded."""
        return self._description

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the token ids of each text, int32, special tokens included, cut to `max_tokens`.

        Where the pooling leaves prompts out, a further number ends each row: the tokens of its prompt.
        """
        if self._prompts is None:
            return self._tokenizer.encode(texts)
        parted = [self._prompts.part(text) for text in texts]
        encoded = self._tokenizer.encode([text for text, _ in parted])
        rows: list[TokenRow] = [
            np.append(np.asarray(row, np.int32), np.int32(tokens))
            for row, (_, tokens) in zip(encoded.rows, parted, strict=True)
        ]
        return Encoded(rows, encoded.lengths, encoded.truncated)

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of the rows: float32 (len(rows), dimensions).

        Rows fewer than planned are filled up with empty ones, shorter rows with padding on the right.
        """
        prompts = np.zeros(shape.rows, np.int64)
        if self._prompts is not None:
            prompts[: len(rows)] = [row[-1] for row in rows]
            rows = [row[:-1] for row in rows]
        if len(rows) > shape.rows or any(len(row) > shape.tokens for row in rows):
            raise InvalidArgument("the rows do not fit the planned shape", field="rows")
        ids = np.full((shape.rows, shape.tokens), self._pad, np.int64)
        mask = np.zeros((shape.rows, shape.tokens), np.int64)
        mask[:, 0] = 1  # a row that sees nothing would be NaN, and slow
        for place, row in enumerate(rows):
            if isinstance(row, str):
                raise InvalidArgument("this engine wants token ids, not texts", field="rows")
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        with self._turn, torch.inference_mode():
            if self._closed:
                raise EngineTrouble("the engine is closed")
            try:
                return self._run(ids, mask, prompts)[: len(rows)]
            except torch.OutOfMemoryError:
                raise EngineTrouble(
                    "the GPU's memory does not hold a micro-batch: lower EMBATCH_MICRO_BATCH_TOKENS"
                ) from None
            except torch.AcceleratorError:
                os._exit(_FAULT)

    def warm(self) -> None:
        """Run one short text, which loads the kernels that every shape shares."""
        self.forward([np.zeros(1 if self._prompts is None else 2, np.int32)], Shape(1, MULTIPLE))

    def close(self) -> None:
        """Give the memory back once running calls have ended. Repeating is safe."""
        with self._turn:
            self._closed = True
            self._modules = []
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], prompts: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        transformer, pooling, *rest = self._modules
        features: dict[str, Any] = transformer(
            {
                "input_ids": torch.from_numpy(ids).to(self._device),
                "attention_mask": torch.from_numpy(mask).to(self._device),
            }
        )
        features["token_embeddings"] = features["token_embeddings"].float()
        # The library pools rows of one prompt at a time; pooled whole each time, a row keeps its bytes.
        pooled = None
        for tokens in sorted({*prompts.tolist()}):
            found = pooling({**features, "prompt_length": tokens})
            if pooled is None:
                pooled = found
            else:
                of_these = torch.from_numpy(prompts == tokens).to(self._device)
                pooled["sentence_embedding"][of_these] = found["sentence_embedding"][of_these]
        features = pooled or features
        for module in rest:
            features = module(features)
        vectors: NDArray[np.float32] = features["sentence_embedding"].float().cpu().numpy()
        return vectors


class _Prompts:
    """The prompts of a model whose pooling leaves them out, and how many tokens each has."""

    def __init__(self, described: ModelFolder, tokenizer: Any) -> None:
        ours = FolderTokenizer(described)
        special = set(tokenizer.all_special_ids)
        self._tokens: dict[str, int] = {}
        for marked in set(described.prompts.values()):
            prompt = marked.removesuffix(PROMPT_END)
            row = ours.encode([prompt]).rows[0]
            # As the library counts: what closes a text stands behind the text and not behind the prompt.
            self._tokens[prompt] = len(row) - (len(row) > 0 and int(row[-1]) in special) if prompt else 0

    def part(self, text: str) -> tuple[str, int]:
        """Return a text as the model sees it, and the tokens of its prompt."""
        prompt, mark, rest = text.partition(PROMPT_END)
        if not mark or prompt not in self._tokens:
            return text, 0
        return prompt + rest, self._tokens[prompt]


def _device(said: str | None) -> torch.device:
    try:
        device = torch.device(said or ("cuda" if torch.cuda.is_available() else _second_choice()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgument("this machine has no such device for torch", field="engine-option") from error
    return device


def _second_choice() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _precision(wanted: str, device: torch.device) -> str:
    """Return `bf16` where the device multiplies it natively, or on request; else `f32`."""
    if wanted not in {"auto", "f32", "bf16"}:
        raise InvalidArgument("precision must be auto, f32 or bf16", field="precision")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    return "bf16" if device.type == "cpu" and has_bf16() else "f32"


def _parts(described: ModelFolder) -> list[tuple[str, str]]:
    """Return kind and folder of the modules after the transformer; none where the model names none.

    Raises:
        InvalidArgument: one of them is not for this engine.
    """
    parts = modules(described.path)
    strange = next((kind for kind, _ in parts if kind not in MODULES), None)
    if strange:
        raise InvalidArgument(
            f"the torch engine cannot run this model: a {strange[:40]} module", field="model"
        )
    kinds = [kind for kind, _ in parts]
    if parts and (parts[0] != ("Transformer", "") or {"Transformer", "Pooling"} & {*kinds[2:]}):
        raise InvalidArgument(
            "the torch engine cannot run this model: its modules are not a transformer, then pooling, then "
            "the rest",
            field="model",
        )
    if not described.pooling:
        raise InvalidArgument(
            "the folder does not say how token vectors become a text's: add --engine-option pooling=mean "
            "(or cls, as the model's page says)",
            field="engine-option",
        )
    return parts[1:]


def _files(described: ModelFolder) -> list[Path]:
    """Return every file of numbers, and the settings of the modules that have some.

    Raises:
        InvalidArgument: a file of numbers is a pickle, or a module wants a function that is not torch's.
    """
    files = [described.safetensors] if described.safetensors else []
    files = files or sorted(described.path.glob("model-*-of-*.safetensors"))
    settings = []
    for kind, place in _parts(described):
        if kind in _WEIGHTED:
            files += [described.path / place / name for name in ("model.safetensors", "config.json")]
            settings.append(files[-1])
    if not files or not all(file.is_file() for file in files):
        raise InvalidArgument(
            f"{described.path} does not have all its weights as safetensors, and nothing else is read",
            field="model",
        )
    for file in settings:
        wanted = read_object(file).text("activation_function") or _TRUSTED
        if not wanted.startswith(_TRUSTED):  # the library would take tanh instead and only warn
            raise InvalidArgument(
                f"the torch engine cannot run this model: its module {file.parent.name} wants the function "
                f"{wanted[:60]}, and code that is not torch's is never run",
                field="model",
            )
    return files


def _load(
    described: ModelFolder, tokenizer: FolderTokenizer, device: torch.device, precision: str
) -> list[Any]:
    """Return the transformer and the modules after it, in float32, on the device."""
    model = _open(described, device, _DTYPES[precision])
    model.max_seq_length = described.max_tokens
    _compare(model, tokenizer, described.max_tokens)
    transformer, *others = list(model)
    rest: list[Any] = []
    for (kind, place), module in zip(_parts(described), others, strict=False):
        if kind in _WEIGHTED:  # as stored: the library has rounded it to the precision of the transformer
            rest.append(type(module).load(str(described.path), subfolder=place, local_files_only=True))
        elif kind != "Pooling":
            rest.append(module)
    if rest and isinstance(rest[-1], Normalize) and not described.normalize:
        rest.pop()
    elif described.normalize and not (rest and isinstance(rest[-1], Normalize)):
        rest.append(Normalize())
    pooling = Pooling(
        transformer.get_embedding_dimension(), described.pooling, include_prompt=described.pooled_prompt
    )
    return [transformer, *(module.to(device).float().eval() for module in (pooling, *rest))]


def _open(described: ModelFolder, device: torch.device, dtype: torch.dtype) -> Any:
    problem: Exception | None = None
    for attention in (_ATTENTION, "eager"):  # not every architecture lets its attention be chosen
        settings = {"dtype": dtype, "use_safetensors": True, "attn_implementation": attention}
        try:
            return SentenceTransformer(
                str(described.path),
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs=settings,
            ).eval()
        except Exception as error:  # noqa: BLE001  (tokenizers raise plain Exception, the rest many kinds)
            problem = error
    raise InvalidArgument(
        f"sentence-transformers cannot load {described.path} ({type(problem).__name__})", field="model"
    ) from problem


def _compare(model: Any, tokenizer: FolderTokenizer, max_tokens: int) -> None:
    """Make sure that the library itself would give the model the same tokens (it may use a chat template)."""
    for text in ("Tokens, as they ARE?", "word " * (max_tokens + 8), "x"):
        theirs = model.preprocess([text])
        ours = tokenizer.encode([text]).rows[0]
        same = theirs["input_ids"][0].tolist() == list(ours)
        if not same or ("token_type_ids" in theirs and theirs["token_type_ids"].any()):
            raise InvalidArgument(
                "sentence-transformers reads texts for this model in a way of its own: a chat template, or "
                "another tokenizer than tokenizer.json",
                field="model",
            )
