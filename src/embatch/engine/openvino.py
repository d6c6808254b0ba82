"""The default engine on a CPU: OpenVINO, from safetensors or an ONNX export, without torch.

One process, one single-threaded stream for each thread: the same shape then always takes the same path
through the same kernels, and the same rows give the same bytes on one stream as on many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from embatch.engine import bert, folder, models, pooling, weights
from embatch.engine.machine import cores, has_bf16
from embatch.engine.protocol import Description, Encoded, EngineSpec, Shape
from embatch.engine.streams import Streams
from embatch.engine.tokens import FolderTokenizer
from embatch.errors import EngineTrouble, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow

MULTIPLE: Final = 16
"""Planned lengths: 1.11 times the texts a second of unrounded ones, for 8 % of padding."""
_INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_TEXT_OUTPUTS: Final = ("sentence_embedding", "sentence_embeddings", "text_embeds")
_TOKEN_OUTPUTS: Final = ("last_hidden_state", "token_embeddings")


def load(spec: EngineSpec) -> OpenVinoEngine:
    """Load the folder `spec.model`; some tenths of a second for a model of 90 MB.

    Raises:
        NotFound: there is no such folder, or a file is missing in it.
        InvalidArgument: this engine cannot run the model, or an option or precision makes no sense here.
        DataLoss: a file of a pinned model is not what it has to be.
    """
    return OpenVinoEngine(spec)


def unsupported(described: folder.ModelFolder) -> str | None:
    """Return what of the model this engine cannot do; `None` if it can run it."""
    if described.unsupported:
        return f"a {described.unsupported[:40]} module"
    if problem := folder.unpooled(described):
        return problem
    if described.onnx:
        return None
    if described.safetensors is None:
        return "weights in several files"
    return bert.unsupported(described.config)


class OpenVinoEngine:
    """A compiled model with one inference request for each stream. See `protocol.Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.options) - folder.OPTIONS
        if unknown:
            raise InvalidArgument(f"the openvino engine has no option {min(unknown)}", field="engine-option")
        described = models.opened(spec)
        problem = unsupported(described)
        if problem:
            raise InvalidArgument(
                f"the openvino engine cannot run this model: {problem}; --engine torch may", field="model"
            )
        core = ov.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        precision = choose_precision(spec.precision, able="BF16" in capabilities, fast=has_bf16())
        streams = spec.threads or cores()
        self._tokenizer = FolderTokenizer(described)
        files, model = _model(core, described)
        compiled = core.compile_model(model, "CPU", _properties(precision, streams))
        self._inputs = [(port.any_name, port.element_type.to_dtype()) for port in compiled.inputs]
        self._pad = described.pad
        self._streams = Streams(compiled.create_infer_request() for _ in range(streams))
        hashes = described.hashes(files)
        self._description = Description(
            engine="openvino",
            model=spec.model,
            identity=described.identity(hashes, precision),
            files=hashes,
            dimensions=_dimensions(compiled),
            max_tokens=described.max_tokens,
            precision=precision,
            streams=streams,
            normalized=described.normalize,
            prompts=described.prompts,
            multiple=MULTIPLE,
        )

    def describe(self) -> Description:
        """Return what is loaded."""
        return self._description

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the token ids of each text, int32, special tokens included, cut to `max_tokens`."""
        return self._tokenizer.encode(texts)

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of the rows: float32 (len(rows), dimensions).

        Rows fewer than planned are filled up with empty ones, shorter rows with padding, so that the
        processor does the same whoever stands beside a row.
        """
        if len(rows) > shape.rows or any(len(row) > shape.tokens for row in rows):
            raise InvalidArgument("the rows do not fit the planned shape", field="rows")
        ids = np.full((shape.rows, shape.tokens), self._pad, np.int32)
        mask = np.zeros((shape.rows, shape.tokens), np.int32)
        for place, row in enumerate(rows):
            if isinstance(row, str):
                raise InvalidArgument("this engine wants token ids, not texts", field="rows")
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        with self._streams.one() as request:
            try:
                result = request.infer([self._input(name, kind, ids, mask) for name, kind in self._inputs])
            except RuntimeError as error:
                raise EngineTrouble("OpenVINO could not run the model") from error
            return np.array(result[0][: len(rows)], np.float32)

    def warm(self) -> None:
        """Run one short text, which compiles what every shape shares: some tens of milliseconds."""
        self.forward([np.zeros(1, np.int32)], Shape(1, min(MULTIPLE, self._description.max_tokens)))

    def close(self) -> None:
        """Give the memory back once running calls have ended. Repeating is safe."""
        self._streams.close()

    def _input(
        self, name: str, kind: np.dtype[Any], ids: NDArray[np.int32], mask: NDArray[np.int32]
    ) -> NDArray[Any]:
        match name:
            case "input_ids":
                values = ids
            case "attention_mask":
                values = mask
            case "position_ids":
                values = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
            case _:  # token_type_ids
                values = np.zeros_like(ids)
        return np.ascontiguousarray(values, kind)


def choose_precision(wanted: str, *, able: bool, fast: bool) -> str:
    """Return `bf16` or `f32` for a processor that is able to do bf16, and perhaps fast at it.

    Raises:
        InvalidArgument: no such precision, or not on this processor.
    """
    if wanted not in {"auto", "f32", "bf16"}:
        raise InvalidArgument("precision must be auto, f32 or bf16", field="precision")
    if wanted == "bf16" and not able:  # OpenVINO would compute in float32 without a word
        raise InvalidArgument("this processor has no bfloat16 arithmetic: use f32 or auto", field="precision")
    return "bf16" if wanted == "bf16" or (wanted == "auto" and able and fast) else "f32"


def _properties(precision: str, streams: int) -> dict[str, str]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(streams),
        # Pinned, the processes of both lanes would sit on the same cores while others idle.
        "ENABLE_CPU_PINNING": "NO",
    }


def _model(core: ov.Core, described: folder.ModelFolder) -> tuple[list[Path], ov.Model]:
    """Return the files the weights came from, and the whole model: token ids in, one vector a row out."""
    if described.safetensors and not bert.unsupported(described.config):
        tensors = weights.read(described.safetensors)
        parameters, hidden = bert.encoder(
            described.config, tensors, described.position_offset, described.max_tokens
        )
        return [described.safetensors], _finished(parameters, hidden, described)
    assert described.onnx is not None  # noqa: S101 - `unsupported` has looked
    try:
        exported = core.read_model(described.onnx)
    except RuntimeError as error:
        raise InvalidArgument(f"{described.onnx} cannot be read", field="model") from error
    names = {port.any_name for port in exported.inputs}
    if "input_ids" not in names or not names <= _INPUTS:
        raise InvalidArgument(
            f"{described.onnx} wants other inputs than {', '.join(sorted(_INPUTS))}", field="model"
        )
    files = sorted(described.onnx.parent.glob(f"{described.onnx.name}*"))  # large ones keep data beside them
    return files, _finished(exported.get_parameters(), _source(exported), described)


def _source(exported: ov.Model) -> ov.Output:
    """Return what the export's result is computed from: a vector for each text, or else for each token."""
    ports = {name: port for port in exported.outputs for name in port.names}
    for name in (*_TEXT_OUTPUTS, *_TOKEN_OUTPUTS):
        if name in ports:
            return ports[name].node.input_value(0)
    if len(exported.outputs) != 1:
        # One of several could be the pooler's, which is no embedding of the text.
        raise InvalidArgument("the ONNX export has several outputs and none is named as usual", field="model")
    return exported.outputs[0].node.input_value(0)


def _finished(parameters: list[Any], source: ov.Output, described: folder.ModelFolder) -> ov.Model:
    """Return the model that pools and normalises as the folder says."""
    if source.partial_shape.rank.get_length() == 2:
        vectors = source
    elif not described.pooling:
        raise InvalidArgument(
            "the folder does not say how token vectors become a text's: add --engine-option pooling=mean "
            "(or cls, as the model's page says)",
            field="engine-option",
        )
    else:
        mask = next(p for p in parameters if p.output(0).any_name == "attention_mask")
        vectors = pooling.pool(source, ops.convert(mask, np.float32).output(0), described.pooling)
    if described.normalize:
        vectors = pooling.unit(vectors)
    return ov.Model([ops.result(vectors)], parameters, "embatch")


def _dimensions(compiled: ov.CompiledModel) -> int:
    size = compiled.outputs[0].partial_shape[1]
    if not size.is_static:
        raise InvalidArgument("the ONNX export does not say how many dimensions it gives", field="model")
    return int(size.get_length())
