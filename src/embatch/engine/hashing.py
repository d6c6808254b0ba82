"""The engine of the tests: a text's vector is drawn from its hash. No files, no model, no meaning.

Equal texts give equal vectors, different texts almost orthogonal ones, on every machine alike. Options:

    dimensions   how many numbers a vector has (64)
    max_tokens   longer texts are cut; four characters count as one token (512)
    delay        seconds each `forward` takes (0)
    poison       1: a text that contains `embatch-poison:` and a word of `POISON` does what the word says
    mixed        1: texts in company get each other's vectors, as of an engine that lost their order
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from embatch.engine.protocol import Description, Encoded, EngineSpec, Shape
from embatch.engine.texts import cut
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.vectors import normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import TokenRow

CHARACTERS: Final = 4
"""Characters of one token of this engine."""
POISON: Final = ("segv", "abort", "exit", "hang", "nan", "shape", "panic-encode", "hang-encode")
_MARK: Final = re.compile("embatch-poison:(" + "|".join(POISON) + r")(?![\w-])")


class Panic(BaseException):
    """Not an `Exception`: what a panic in a Rust tokenizer looks like from Python."""


def load(spec: EngineSpec) -> HashingEngine:
    """Return the engine. `threads` gives its streams, 0 for one; precision is always f32.

    Raises:
        InvalidArgument: an option is unknown or not a number.
    """
    return HashingEngine(spec)


class HashingEngine:
    """Vectors drawn from a BLAKE2b hash of model and text. See the module for its options."""

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.options) - {"dimensions", "max_tokens", "delay", "poison", "mixed"}
        if unknown:
            raise InvalidArgument(f"the hashing engine has no option {min(unknown)}", field="engine-option")
        dimensions = int(_number(spec, "dimensions", 64))
        max_tokens = int(_number(spec, "max_tokens", 512))
        if dimensions < 1 or max_tokens < 1:
            raise InvalidArgument("dimensions and max_tokens must be 1 or more", field="engine-option")
        self._delay = _number(spec, "delay", 0.0)
        self._poison = _number(spec, "poison", 0) > 0
        self._mixed = _number(spec, "mixed", 0) > 0
        self._salt = spec.model.encode() + b"|"
        identity = hashlib.sha256(self._salt + f"hashing-2|{dimensions}|{max_tokens}".encode())
        self._description = Description(
            engine="hashing",
            model=spec.model,
            identity=identity.hexdigest(),
            dimensions=dimensions,
            max_tokens=max_tokens,
            precision="f32",
            streams=max(1, spec.threads),
            normalized=True,
        )
        self._open = True

    def describe(self) -> Description:
        """Return what is loaded."""
        return self._description

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the texts themselves, cut; lengths are exact in this engine's own tokens."""
        limit = self._description.max_tokens
        rows: list[TokenRow] = []
        truncated = np.zeros(len(texts), np.bool_)
        for place, text in enumerate(texts):
            self._act(text, "panic-encode", "hang-encode")
            kept, shortened = cut(text, limit)
            truncated[place] = shortened or len(kept) > limit * CHARACTERS
            rows.append(kept[: limit * CHARACTERS])
        lengths = np.array([max(1, -(-len(row) // CHARACTERS)) for row in rows], np.int32)
        return Encoded(rows, lengths, truncated)

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of the rows: float32 (len(rows), dimensions). The shape changes nothing."""
        if not self._open:
            raise EngineTrouble("the hashing engine is closed")
        if len(rows) > shape.rows:
            raise InvalidArgument(f"{len(rows)} rows do not fit a shape of {shape.rows}", field="rows")
        if self._delay:
            time.sleep(self._delay)
        dimensions = self._description.dimensions
        seeds = np.empty(len(rows), np.uint64)
        marks: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            if not isinstance(row, str):
                raise InvalidArgument("the hashing engine keeps texts, not token ids", field="rows")
            word = self._act(row, "segv", "abort", "exit", "hang", "nan", "shape")
            if word is not None:
                marks.setdefault(word, []).append(place)
            seeds[place] = int.from_bytes(hashlib.blake2b(self._salt + row.encode(), digest_size=8).digest())
        raw = _drawn(seeds, dimensions)
        raw[marks.get("nan", [])] = np.nan
        vectors = normalize(np.roll(raw, 1, axis=0) if self._mixed else raw)
        return vectors[:, :-1] if "shape" in marks else vectors

    def warm(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Refuse all later work. Repeating is safe."""
        self._open = False

    def _act(self, text: str, *words: str) -> str | None:
        """Do what a poisonous text asks for, if it is one of `words`; return the word if we still live."""
        if not self._poison or (word := _mark(text)) not in words:
            return None
        match word:
            case "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
                _hang()  # another thread may take the signal: this one must not finish first
            case "abort":
                os.abort()
            case "exit":
                os._exit(0)
            case "hang" | "hang-encode":
                _hang()
            case "panic-encode":
                raise Panic
        return word


def _drawn(seeds: NDArray[np.uint64], dimensions: int) -> NDArray[np.float64]:
    """Return numbers between -2**31 and 2**31 for each seed, float64 (len(seeds), dimensions): SplitMix64."""
    steps = np.arange(1, dimensions + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    drawn = seeds[:, None] + steps
    drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn ^= drawn >> np.uint64(31)
    return np.asarray((drawn >> np.uint64(32)).astype(np.float64) - float(1 << 31))


def _mark(text: str) -> str | None:
    found = _MARK.search(text)
    return found.group(1) if found else None


def _hang() -> NoReturn:
    while True:
        threading.Event().wait()


def _number(spec: EngineSpec, name: str, default: float) -> float:
    try:
        value = float(spec.options.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise InvalidArgument(f"{name} must be a number, 0 or more", field="engine-option")
    return value
