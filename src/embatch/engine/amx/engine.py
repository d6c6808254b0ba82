"""The engine around the kernel: which models it takes, how they are packed and verified, the five methods."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.engine import checkpoint, folder, models, weights
from embatch.engine.amx import library, reference
from embatch.engine.machine import AFFINITY, cores, places
from embatch.engine.protocol import Description, Encoded, EngineSpec, Shape
from embatch.engine.streams import Streams
from embatch.engine.tokens import FolderTokenizer
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.vectors import cosine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow

NUMERICS: Final = "bf16-amx-1"
"""Part of every identity; another one whenever a change of the kernel changes a bit of any vector."""
AGREEMENT: Final = 0.999
"""Least cosine to float32 of a model that is served. Whole models are at 0.9999; what is computed wrongly,
or lies badly in bfloat16, is far below."""
TRIED: Final = (
    "no",
    "Rain fell on the tin roof all night, and by morning the river had taken the lower field.",
    "Which city is the capital of France?",
)
"""What every model is verified with, beside one row without any text."""
_bound = threading.local()
_LAYER: Final = (
    *((f"attention.self.{kind}", 0) for kind in ("query", "key", "value")),
    ("attention.output.dense", 0),
    ("attention.output.LayerNorm", 1),
    ("intermediate.dense", 2),
    ("output.dense", 3),
    ("output.LayerNorm", 1),
)
"""The pairs of weight and bias of a layer in the kernel's order, with which of `shapes` the weight has."""


def load(spec: EngineSpec) -> AmxEngine:
    """Load the folder `spec.model`, pack it, verify it; some tenths of a second for a model of 90 MB.

    Raises:
        NotFound: there is no such folder, or a file is missing in it.
        InvalidArgument: this machine has no AMX, the kernel cannot run the model, a weight is not a number,
            or an option or precision makes no sense here.
        Unfit: the kernel's vectors differ from those of float32, or a weight is beyond bfloat16.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    return AmxEngine(spec)


def unsupported(described: folder.ModelFolder) -> str | None:
    """Return what of the model the kernel does not compute; `None` if it can run it."""
    if described.unsupported:
        return f"a {described.unsupported[:40]} module"
    if problem := folder.unpooled(described):
        return problem
    if described.safetensors is None:
        return "its weights are not in one model.safetensors"
    if problem := checkpoint.unsupported(described.config):
        return problem
    sizes, words = checkpoint.Sizes.of(described.config), "+".join(described.pooling)
    width = sizes.hidden / sizes.heads
    outside = {
        f"the activation function {checkpoint.activation(described.config)[:40]!r}": (
            checkpoint.activation(described.config) != "gelu"
        ),
        f"the pooling {words or 'that nobody names'}": words not in {"mean", "cls"},
        f"texts of more than {library.BLOCK} tokens": described.max_tokens > library.BLOCK,
        f"{sizes.hidden} dimensions": sizes.hidden % 32 != 0 or sizes.hidden > library.MOST_HIDDEN,
        f"{sizes.inner} columns between its products": sizes.inner % 32 != 0,
        f"heads of {width:g} columns": width not in {32, 64},
    }
    return next((problem for problem, found in outside.items() if found), None)


class AmxEngine:
    """A packed model. `forward` may run in any number of threads. See `protocol.Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.options) - folder.OPTIONS - {AFFINITY}
        if unknown:
            raise InvalidArgument(f"the amx engine has no option {min(unknown)}", field="engine-option")
        if spec.precision not in {"auto", "bf16"}:
            raise InvalidArgument("the amx engine computes in bf16 only", field="precision")
        streams = spec.threads or cores()
        borrowed = _streams(spec.options.get(AFFINITY, "none"), streams)
        kernel = library.current()
        described = models.opened(spec)
        problem = unsupported(described)
        if problem or described.safetensors is None:
            raise InvalidArgument(
                f"the amx engine cannot run this model: {problem}; --engine openvino may", field="model"
            )
        self._tokenizer = FolderTokenizer(described)
        form, tensors = packed_form(described)
        self._model = kernel.load(form, tensors)
        try:
            self._verify(form, tensors)
        except BaseException:
            self._model.free()
            raise
        self._streams = Streams(borrowed)
        hashes = described.hashes([described.safetensors])
        self._description = Description(
            engine="amx",
            model=spec.model,
            identity=described.identity(hashes, NUMERICS),
            files=hashes,
            dimensions=form.hidden,
            max_tokens=described.max_tokens,
            precision="bf16",
            streams=streams,
            normalized=described.normalize,
            prompts=described.prompts,
            block=library.BLOCK,
            invariant=True,
        )

    def describe(self) -> Description:
        """Return what is loaded."""
        return self._description

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the token ids of each text, int32, special tokens included, cut to `max_tokens`."""
        return self._tokenizer.encode(texts)

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of the rows: float32 (len(rows), dimensions). Nothing is padded.

        Rows are laid into blocks in the order they come, as `packing.pack_blocks` plans them. With the option
        `affinity=cores` the calling thread stays on one core from then on.
        """
        if len(rows) > shape.rows or any(len(row) > shape.tokens for row in rows):
            raise InvalidArgument("the rows do not fit the planned shape", field="rows")
        tokens = [row for row in rows if not isinstance(row, str)]
        if len(tokens) < len(rows):
            raise InvalidArgument("this engine wants token ids, not texts", field="rows")
        with self._streams.one() as stream:
            stream.settle()
            return self._model.forward(tokens)

    def warm(self) -> None:
        """Nothing is left to do: verifying has used all of the kernel."""

    def close(self) -> None:
        """Give the memory back once running calls have ended. Repeating is safe."""
        if self._streams.close():
            self._model.free()

    def _verify(self, form: library.Form, tensors: Sequence[NDArray[np.float32]]) -> None:
        """Compare a few texts' vectors with float32, and their bytes alone with those in company."""
        limit = form.positions
        rows = [np.asarray(row, np.int32)[:limit] for row in self._tokenizer.encode(TRIED).rows]
        rows.append(np.arange(min(limit, 70), dtype=np.int32) % form.words)  # three times 32 keys
        found = self._model.forward(rows)
        with np.errstate(all="ignore"):  # an unfit model may overflow: it is refused for its vectors
            expected = np.stack([reference.vector(form, tensors, row) for row in rows])
            least = float(np.min(cosine(found, expected)))
        if not least >= AGREEMENT:  # NaN fails here too
            raise library.Unfit(
                f"the kernel's vectors differ from those in float32: least cosine {least:.4f}", field="model"
            )
        alone = b"".join(self._model.forward([row]).tobytes() for row in rows)
        if alone != found.tobytes():
            raise library.Unfit("the kernel gives a text other bytes in company than alone", field="engine")


@dataclass(frozen=True, slots=True)
class _Stream:
    """What a call of `forward` borrows: the right to run, and where."""

    place: int | None
    """The hardware thread it keeps to; `None` leaves that to the system."""

    def settle(self) -> None:
        """Bind the calling thread, and no other, to the place."""
        if self.place is not None and getattr(_bound, "place", None) != self.place:
            os.sched_setaffinity(0, {self.place})
            _bound.place = self.place


def _streams(affinity: str, count: int) -> list[_Stream]:
    if affinity not in {"none", "cores"}:
        raise InvalidArgument("affinity must be none or cores", field="engine-option")
    if affinity == "none":
        return [_Stream(None)] * count
    found = places()
    return [_Stream(found[number % len(found)]) for number in range(count)]


def packed_form(described: folder.ModelFolder) -> tuple[library.Form, list[NDArray[np.float32]]]:
    """Return the form of a model and its tensors in the kernel's order.

    Raises:
        EngineTrouble: it has no safetensors.
    """
    if described.safetensors is None:
        raise EngineTrouble("the model has no model.safetensors")
    sizes = checkpoint.Sizes.of(described.config)
    stored = checkpoint.Checkpoint(weights.read(described.safetensors))
    positions = stored.positions(sizes, described.position_offset, described.max_tokens)[: library.BLOCK]
    hidden, inner = sizes.hidden, sizes.inner
    shapes = ((hidden, hidden), (hidden,), (inner, hidden), (hidden, inner))
    pairs: list[tuple[str, tuple[int, ...]]] = [("embeddings.LayerNorm", shapes[1])]
    pairs += [
        (f"encoder.layer.{layer}.{name}", shapes[kind])
        for layer in range(sizes.layers)
        for name, kind in _LAYER
    ]
    tensors = [stored.words(sizes), positions]
    for name, shape in pairs:
        tensors += [stored.tensor(f"{name}.weight", *shape), stored.tensor(f"{name}.bias", shape[0])]
    form = library.Form(
        hidden=hidden,
        inner=inner,
        layers=sizes.layers,
        heads=sizes.heads,
        words=sizes.words,
        positions=len(positions),
        cls=described.pooling == ("cls",),
        normalize=described.normalize,
        epsilon=sizes.epsilon,
    )
    return form, tensors
