"""The engine that is somewhere else: any OpenAI-style `/embeddings` endpoint (vLLM, TEI, infinity, OpenAI).

Tokens stay hidden: rows are the texts themselves, lengths are estimated, and what the endpoint cuts off is
not seen. Equal plans give equal bytes as far as the endpoint keeps to that. What goes wrong is told apart by
whom it concerns: the endpoint (`EngineTrouble`, after patience) or a text (`RowsRefused`, a vector of NaN).
The endpoint's key is read from `EMBATCH_ENGINE_KEY` and never logged. Options:

    dimensions         how many numbers a vector has to have; without it, whatever the endpoint gives
    max_tokens         longest text by estimate; far longer ones are cut (8192)
    rows               most texts of one call; TEI takes 32 unless told otherwise (32)
    timeout            seconds for one `forward`, all its tries together (90)
    prompt.TASK_TYPE   text to put before the texts of a task type

Keep `timeout` below EMBATCH_MICRO_BATCH_SECONDS: else a slow endpoint looks like a text that hangs.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.batch import TaskType
from embatch.engine.endpoint import Endpoint, Rejected, Unwell
from embatch.engine.protocol import Description, Encoded, EngineSpec, RowsRefused, Shape
from embatch.engine.texts import cut
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.vectors import norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow

KEY: Final = "EMBATCH_ENGINE_KEY"
BYTES: Final = 4
"""Bytes of UTF-8 that count as one token: about right for English."""
STREAMS: Final = 8
"""Calls at once, where no number of threads is given: endpoints batch what arrives together."""
PROBE: Final = "The quick brown fox jumps over the lazy dog."
_OPTIONS: Final = frozenset({"dimensions", "max_tokens", "rows", "timeout"})


def load(spec: EngineSpec) -> RemoteEngine:
    """Return the engine once the endpoint has embedded a text.

    Raises:
        EngineTrouble: the endpoint does not answer, or not with vectors.
        InvalidArgument: the address or an option makes no sense.
    """
    return RemoteEngine(spec, key=os.environ.get(KEY))


class RemoteEngine:
    """One model of one endpoint. See `protocol.Engine`; `threads` gives the calls at once."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        key: str | None = None,
        wait: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        prompts = {
            name.partition(".")[2]: text for name, text in spec.options.items() if name[:7] == "prompt."
        }
        unknown = {name for name in spec.options if name not in _OPTIONS and name[:7] != "prompt."}
        if unknown or not prompts.keys() <= set(TaskType):
            raise InvalidArgument(
                f"the remote engine has no option {min(unknown, default='prompt of that task type')}",
                field="engine-option",
            )
        if spec.precision != "auto":
            raise InvalidArgument("the endpoint decides its own precision", field="precision")
        self._max_tokens = _number(spec, "max_tokens", 8192)
        self._rows = _number(spec, "rows", 32)
        self._seconds = _number(spec, "timeout", 90)
        self._clock = clock
        self._closed = threading.Event()
        self._endpoint = Endpoint(
            spec.url or "", spec.model, key=key, wait=wait or self._closed.wait, clock=clock, chance=chance
        )
        said = _number(spec, "dimensions", 1) if "dimensions" in spec.options else None
        known = self._settle(said)
        self._dimensions = int(known.shape[0])
        identity = hashlib.sha256(f"remote-1|{self._endpoint.url}|{spec.model}|{self._dimensions}".encode())
        self._description = Description(
            engine="remote",
            model=spec.model,
            identity=identity.hexdigest(),
            dimensions=self._dimensions,
            max_tokens=self._max_tokens,
            precision="f32",
            streams=spec.threads or STREAMS,
            normalized=bool(abs(float(norm(known)) - 1) < 1e-3),
            prompts=prompts,
        )

    def describe(self) -> Description:
        """Return what is loaded. `precision` is that of the numbers as they arrive."""
        return self._description

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the texts themselves, with lengths estimated from their bytes."""
        pieces = [cut(text, self._max_tokens) for text in texts]
        sizes = [-(-len(piece.encode()) // BYTES) for piece, _ in pieces]
        lengths = np.clip(np.array(sizes, np.int64), 1, self._max_tokens).astype(np.int32)
        return Encoded(
            [piece for piece, _ in pieces], lengths, np.array([over for _, over in pieces], np.bool_)
        )

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of the rows: float32 (len(rows), dimensions). The shape is for the budget only.

        A row the endpoint has no number for comes back as NaN, for the caller to refuse, if the endpoint is
        right about a text that is known to be good.

        Raises:
            EngineTrouble: the endpoint is down, refuses us, or answers with something that is no embedding.
            RowsRefused: the endpoint does not take these rows.
        """
        if len(rows) > shape.rows:
            raise InvalidArgument(f"{len(rows)} rows do not fit a shape of {shape.rows}", field="rows")
        texts = [row for row in rows if isinstance(row, str)]
        if len(texts) != len(rows):
            raise InvalidArgument("the remote engine keeps texts, not token ids", field="rows")
        vectors = np.empty((len(texts), self._description.dimensions), np.float32)
        deadline = self._clock() + self._seconds
        for begin in range(0, len(texts), self._rows):
            part = slice(begin, begin + self._rows)
            vectors[part] = self._embed(texts[part], deadline)
        return vectors

    def warm(self) -> None:
        """Nothing to do: the endpoint has been asked already."""

    def close(self) -> None:
        """Close the connections; whoever waits for a next try gives up. Repeating is safe."""
        self._closed.set()
        self._endpoint.close()

    def _embed(self, texts: list[str], deadline: float) -> NDArray[np.float32]:
        try:
            vectors = self._endpoint.embed(texts, deadline, self._dimensions)
        except (Rejected, Unwell) as error:
            if self._closed.is_set():
                raise EngineTrouble("the remote engine is closed") from None
            # One that breaks on a text (500) looks broken, one that has lost its model may say 400 to
            # anything: what it says to another text tells whose fault it is.
            if (isinstance(error, Rejected) or error.status == 500) and self._well(deadline):
                raise RowsRefused(str(error)) from None
            later = error.retry_after if isinstance(error, Unwell) else None
            raise EngineTrouble(str(error), retry_after=later) from None
        if not np.isfinite(vectors).all() and not self._well(deadline):
            raise EngineTrouble("the endpoint answered with vectors that are no numbers")
        return vectors

    def _well(self, deadline: float) -> bool:
        """Whether the endpoint gives a plain text its vector now."""
        try:
            return bool(np.isfinite(self._endpoint.embed([PROBE], deadline, self._dimensions)).all())
        except (Rejected, Unwell):
            return False

    def _settle(self, dimensions: int | None) -> NDArray[np.float32]:
        """Find out which form of vectors the endpoint gives; return the vector of a plain text."""
        deadline = self._clock() + self._seconds
        try:
            try:
                vectors = self._endpoint.embed([PROBE], deadline, dimensions)
            except Rejected:
                self._endpoint.compact = False
                vectors = self._endpoint.embed([PROBE], deadline, dimensions)
        except (Rejected, Unwell) as error:
            self.close()
            raise EngineTrouble(f"{error}, to a plain text at the start") from None
        if not np.isfinite(vectors).all():
            self.close()
            raise EngineTrouble("the endpoint answered with vectors that are no numbers")
        known: NDArray[np.float32] = vectors[0]
        return known


def _number(spec: EngineSpec, name: str, default: int) -> int:
    said = spec.options.get(name, str(default))
    if not said.isdecimal() or not 0 < int(said) < 1e9:
        raise InvalidArgument(f"{name} must be a whole number above 0", field="engine-option")
    return int(said)
