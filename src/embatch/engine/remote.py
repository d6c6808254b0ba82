"""The engine that is somewhere else: any OpenAI-style `/embeddings` endpoint (vLLM, TEI, infinity, OpenAI).

Tokens stay hidden: rows are the texts themselves, lengths are estimated, and what the endpoint cuts off is
not seen. Equal plans give equal bytes as far as the endpoint keeps to that. What goes wrong is told apart by
whom it concerns: the endpoint (`EndpointTrouble`, after patience), its model (`ModelChanged`) or a text
(`RowsRefused`, a vector of NaN). Only what an endpoint says of a text while it takes another one, a real one
where there is one, is about the text.
The endpoint's key is read from `EMBATCH_ENGINE_KEY` and never logged. Options:

    dimensions         how many numbers a vector has to have; without it, whatever the endpoint gives
    max_tokens         longest text by estimate; far longer ones are cut (8192)
    rows               most texts of one call; TEI takes 32 unless told otherwise (32). It halves where an
                       endpoint answers fewer and not so many, and grows back
    timeout            seconds for one `forward`, all its tries together (90)
    prompt.TASK_TYPE   text to put before the texts of a task type

Keep `timeout` below EMBATCH_MICRO_BATCH_SECONDS: else the process is ended before it can say what is wrong.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.backoff import LONGEST_PAUSE
from embatch.batch import TaskType
from embatch.engine.answers import Expected
from embatch.engine.endpoint import KEY, ONCE, PATIENCE, Changed, Endpoint, Rejected, Unwell
from embatch.engine.pieces import CallSize, HeldVectors
from embatch.engine.protocol import (
    Description,
    Encoded,
    EndpointTrouble,
    EngineSpec,
    ModelChanged,
    OthersTaken,
    RowsRefused,
    Shape,
)
from embatch.engine.texts import cut
from embatch.engine.twins import alike, twins, without_zeros
from embatch.errors import InvalidArgument
from embatch.vectors import norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from embatch.backoff import Backoff
    from embatch.engine.answers import EndpointAnswer
    from embatch.engine.protocol import TokenRow

BYTES: Final = 4
"""Bytes of UTF-8 that count as one token: about right for English."""
STREAMS: Final = 8
"""Calls at once, where no number of threads is given: endpoints batch what arrives together."""
PROBE: Final = "The quick brown fox jumps over the lazy dog."
_BELIEVED: Final = 3
"""How often two texts of one vector are looked at: then the model is one that makes no difference there."""
_PARTS: Final = (2, 8, 32)
"""Which parts of the texts of a refused call are tried."""
_OTHER: Final = "Embeddings are points."
_OPTIONS: Final = frozenset({"dimensions", "max_tokens", "rows", "timeout"})


def load(spec: EngineSpec) -> RemoteEngine:
    """Return the engine once the endpoint has embedded a text.

    Raises:
        EndpointTrouble: the endpoint does not answer, or not with vectors.
        InvalidArgument: the address, the key or an option makes no sense.
    """
    return RemoteEngine(spec, key=os.environ.get(KEY))


@dataclass(slots=True)
class _Witness:
    """What tells an endpoint that is in trouble from one that does not take a text."""

    text: str | None = field(default=None, repr=False)
    """The last one that it gave its vector, of those that it was given to embed; `None`: none yet."""


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
        self._size, self._held = CallSize(_number(spec, "rows", 32)), HeldVectors()
        self._seconds = _number(spec, "timeout", 90)
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._endpoint = Endpoint(
            spec.url or "", spec.model, key=key, wait=self._wait, clock=clock, chance=chance
        )
        said = _number(spec, "dimensions", 1) if "dimensions" in spec.options else None
        self._witness = _Witness()
        first = self._settle(Expected(said))
        known = first.vectors[0]
        self._believed = 0
        self._expected = Expected(len(known), first.name)
        whose = f"remote-1|{self._endpoint.url}|{spec.model}|{len(known)}"
        if first.name not in (None, spec.model):
            whose += f"|{first.name}"
        self._description = Description(
            engine="remote",
            model=spec.model,
            identity=hashlib.sha256(whose.encode()).hexdigest(),
            dimensions=len(known),
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
            EndpointTrouble: the endpoint is down, refuses us, or answers with something that is no embedding.
            ModelChanged: it answers as another model than it was when this engine was loaded.
            RowsRefused: the endpoint does not take these rows.
        """
        if len(rows) > shape.rows:
            raise InvalidArgument(f"{len(rows)} rows do not fit a shape of {shape.rows}", field="rows")
        texts = [row for row in rows if isinstance(row, str)]
        if len(texts) != len(rows):
            raise InvalidArgument("the remote engine keeps texts, not token ids", field="rows")
        vectors = np.empty((len(texts), self._description.dimensions), np.float32)
        deadline = self._clock() + self._seconds
        found = self._held.take(texts)
        left = [at for at in range(len(texts)) if at not in found]
        try:
            while left:
                part = left[: self._size.texts]
                embedded = self._embed([texts[at] for at in part], deadline)
                found |= dict(zip(part, embedded, strict=False))
                left = left[len(embedded) :]
        except BaseException:
            self._held.put({texts[at]: vector for at, vector in found.items() if np.isfinite(vector).all()})
            raise
        for at, vector in found.items():
            vectors[at] = vector
        return vectors

    def warm(self) -> None:
        """Nothing to do: the endpoint has been asked already."""

    def close(self) -> None:
        """Close the connections; whoever waits for a next try gives up. Repeating is safe."""
        self._closed.set()
        self._endpoint.close()

    def _embed(self, texts: list[str], deadline: float) -> NDArray[np.float32]:
        """Return the vectors of the texts, or of the first of them where all were too many for one call."""
        try:
            vectors = self._asked(texts, deadline)
            texts = texts[: len(vectors)]
        except Changed as error:
            raise ModelChanged(f"{error}: the model is loaded anew") from None
        except (Rejected, Unwell) as error:
            if self._closed.is_set():
                raise EndpointTrouble("the remote engine is closed") from None
            if self._is_about_a_text(error, texts, deadline):
                raise RowsRefused(str(error)) from None
            trouble = _trouble(error)
            if self._takes_one_of_before(error, deadline):
                raise OthersTaken(trouble.message, retry_after=trouble.retry_after) from None
            raise trouble from None
        vectors = without_zeros(vectors)
        finite = np.isfinite(vectors).all(axis=1)
        if finite.all():
            self._doubt(texts, vectors, deadline)
            self._witness.text = texts[-1]
            return vectors
        # Where others have numbers, what has none is to blame; where none of several has, as with a 500.
        plain = finite.any() or len(texts) == 1
        if not (self._well(deadline) if plain else self._takes_others(texts, deadline)):
            raise EndpointTrouble("the endpoint answered with vectors that are no numbers, or all zeros")
        return vectors

    def _doubt(self, texts: Sequence[str], vectors: NDArray[np.float32], deadline: float) -> None:
        """Ask once more, one at a time, for two texts that have one vector.

        Raises:
            EndpointTrouble: alone they have others, or the plain text has the same.
        """
        pair = None if self._believed >= _BELIEVED else twins(texts, vectors)
        if pair is None:
            return
        asked = [*(texts[at] for at in pair), PROBE]
        try:
            found = [self._endpoint.embed([text], deadline, self._expected).vectors[0] for text in asked]
        except (Rejected, Unwell):
            raise EndpointTrouble("the endpoint gave different texts the same vector") from None
        same = [np.array_equal(found[-1], vector) for vector in found[:-1]]
        if any(same) or not all(alike(vectors[at], vector) for at, vector in zip(pair, found, strict=False)):
            raise EndpointTrouble("the endpoint gives different texts the same vector")
        self._believed += 1

    def _asked(self, texts: Sequence[str], deadline: float) -> NDArray[np.float32]:
        """Ask for the vectors; where all are refused, perhaps for being many, for some."""
        try:
            vectors = self._endpoint.embed(texts, deadline, self._expected).vectors
        except Unwell as error:
            if len(texts) == 1 or not error.perhaps_too_much or isinstance(error, Changed):
                raise
            if error.slow:  # there is no time left to try: the next call is smaller
                self._size.too_large(len(texts))
                raise
            pause = error.retry_after or 0.0
            if self._clock() + pause >= deadline:
                raise
            if pause:
                self._wait(pause)
            return self._fewer(texts, deadline, error)
        self._size.good()
        return vectors

    def _fewer(self, texts: Sequence[str], deadline: float, error: Unwell) -> NDArray[np.float32]:
        """Return the vectors of the first texts, as many as are taken. Raises `error` if not one is.

        Two calls in a row of a size, where a larger one was refused: that is a limit of what is taken at
        once. One alone may be the first call of the next minute, and more calls would make it worse.
        """
        for size in sorted({max(1, len(texts) // part) for part in _PARTS}, reverse=True):
            found = []
            for begin in (0, size):
                part = texts[begin : begin + size]
                with suppress(Rejected, Unwell):
                    found.append(self._endpoint.embed(part, deadline, self._expected, ONCE).vectors)
                if not found:
                    break
            if len(found) > 1:
                self._size.too_large(2 * size)
            if found:
                return np.concatenate(found)
        raise error

    def _is_about_a_text(self, error: Rejected | Unwell, texts: Sequence[str], deadline: float) -> bool:
        """Whether what the endpoint said is about one of these texts, and not about all that it is asked.

        One that breaks on a text (500) looks broken, and one that has lost its model may say 400 to anything:
        what it says to another text tells. That it refuses (400) may be true of every text there is, so that
        a plain one will do. That it is broken is believed against real texts alone: an endpoint that is well
        for a plain text and for no other is in trouble.
        """
        if isinstance(error, Rejected):
            return self._well(deadline)
        return error.perhaps_a_text and self._takes_others(texts, deadline)

    def _takes_one_of_before(self, error: Rejected | Unwell, deadline: float) -> bool:
        """Whether what will not pass by itself holds up these texts alone: one of before is still taken."""
        known = self._witness.text
        lasting = isinstance(error, Unwell) and not error.passing
        return lasting and known is not None and self._takes(known, deadline, ONCE)

    def _takes_others(self, texts: Sequence[str], deadline: float) -> bool:
        """Whether the endpoint gives real texts their vectors: one of before, or, alone, one of these."""
        if self._witness.text is not None:
            return self._well(deadline)
        return len(texts) > 1 and any(self._takes(text, deadline, ONCE) for text in texts)

    def _well(self, deadline: float) -> bool:
        """Whether the endpoint gives another text its vector now: one that it took before, or a plain one."""
        return self._takes(PROBE if self._witness.text is None else self._witness.text, deadline)

    def _takes(self, text: str, deadline: float, patience: Backoff = PATIENCE) -> bool:
        try:
            found = self._endpoint.embed([text], deadline, self._expected, patience)
        except (Rejected, Unwell):
            return False
        taken = bool(np.isfinite(without_zeros(found.vectors)).all())
        if taken and text != PROBE:
            self._witness.text = text
        return taken

    def _settle(self, expected: Expected) -> EndpointAnswer:
        """Find out which form of vectors the endpoint gives; return its answer to a plain text."""
        deadline = self._clock() + self._seconds
        try:
            try:
                first = self._endpoint.embed([PROBE], deadline, expected)
            except Rejected:
                self._endpoint.compact = False
                first = self._endpoint.embed([PROBE], deadline, expected)
        except (Rejected, Unwell) as error:
            self.close()
            raise _trouble(error, ", to a plain text at the start") from None
        if not np.isfinite(without_zeros(first.vectors)).all():
            self.close()
            raise EndpointTrouble("the endpoint answered with vectors that are no numbers, or all zeros")
        try:
            second = self._endpoint.embed([_OTHER, PROBE], deadline, expected, ONCE).vectors[1]
        except (Rejected, Unwell):  # it may take one at a time
            return first
        if not alike(second, first.vectors[0]):
            self.close()
            raise EndpointTrouble("the endpoint gives a text another vector in company than alone")
        return first


def _trouble(error: Rejected | Unwell, when: str = "") -> EndpointTrouble:
    asked = error.retry_after if isinstance(error, Unwell) else None
    later = None if asked is None else min(asked, LONGEST_PAUSE)
    return EndpointTrouble(f"{error}{when}", retry_after=later)


def _number(spec: EngineSpec, name: str, default: int) -> int:
    said = spec.options.get(name, str(default))
    if not said.isdecimal() or len(said) > 9 or not int(said):
        raise InvalidArgument(f"{name} must be a whole number above 0", field="engine-option")
    return int(said)
